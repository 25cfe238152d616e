"""The application that all commands join, its exit codes, and the options that many of them share."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from tersor.errors import InvalidArgument, TersorError

app = typer.Typer(
    name="tersor", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]}, help="Make models smaller, and say honestly what that cost.",
)  # fmt: skip

INTERRUPTED = 130

ModelArgument = Annotated[str, typer.Argument(help="A folder, a .gguf file, a name such as smollm2-135m, or a hub id.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
OutputOption = Annotated[Path, typer.Option("-o", "--output", help="Where to write.", show_default=False)]


def main() -> NoReturn:
    """Run the command line. Exit codes: 0 done, 1 the job failed, 2 bad arguments."""
    try:
        code = app(standalone_mode=False)
    except InvalidArgument as error:
        fail(error, 2)
    except TersorError as error:
        fail(error, 1)
    except KeyboardInterrupt:
        fail("stopped; the same command resumes", 1)
    except BrokenPipeError:
        sys.exit(1)
    except typer._click.exceptions.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    # Without its standalone mode Typer returns the code of an Exit, and turns an interrupt into one.
    if code == INTERRUPTED:
        fail("stopped; the same command resumes", 1)
    sys.exit(code or 0)


def fail(error: object, code: int) -> NoReturn:
    """Say ``error`` in one sentence and leave with ``code``."""
    print(f"tersor: {error}", file=sys.stderr)
    sys.exit(code)


def show(text: object, as_json: bool, data: Any) -> None:
    """Print ``text``, or ``data`` as JSON."""
    print(json.dumps(data, indent=1) if as_json else text)
