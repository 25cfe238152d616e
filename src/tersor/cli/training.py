"""Commands that train while they compress: ``tersor train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tersor.cli.common import JsonOption, ModelArgument, OutputOption, app, show
from tersor.errors import InvalidArgument

train = typer.Typer(name="train", no_args_is_help=True, help="Train a model while it is compressed.")
app.add_typer(train)


@train.command()
def prune(
    model: ModelArgument,
    output: OutputOption,
    text: Annotated[str, typer.Option(help="A file or a known name to train on; never report numbers on it.", show_default=False)],
    sparsity: Annotated[float, typer.Option(help="Fraction of every linear layer removed in the end.")] = 0.5,
    pattern: Annotated[str | None, typer.Option(help="Instead: 2:4 keeps two of every four neighbours.")] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 200,
    batch: Annotated[int, typer.Option(help="Windows a step.")] = 2,
    rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-4,
    context: Annotated[int, typer.Option(help="Tokens of a window.")] = 256,
    seed: Annotated[int, typer.Option(help="Seed of the order of the windows.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Prune MODEL gradually while it is trained towards its original. Can be killed and resumed."""
    from tersor.pipeline.progress import bars
    from tersor.pipeline.training import train as run
    from tersor.training import GradualPruning

    n_of_m = None if pattern is None else _pattern(pattern)
    removed = sparsity if n_of_m is None else 1 - n_of_m[0] / n_of_m[1]
    chosen = GradualPruning(removed, pattern=n_of_m, frequency=max(steps // 20, 1))
    with bars() as progress:
        trained = run(model, [chosen], text, output, steps=steps, batch=batch, rate=rate, context=context, seed=seed, progress=progress)
    show(f"{trained}; written to {output}", as_json, {"output": str(output), **trained.to_dict()})


@train.command()
def shrink(
    teacher: Annotated[Path, typer.Argument(help="Folder of a sequence classifier of transformers.", show_default=False)],
    texts: Annotated[Path, typer.Argument(help="Unlabelled texts: .jsonl with text and perhaps pair, or one a line.", show_default=False)],
    output: OutputOption,
    size: Annotated[str, typer.Option(help="Size of the weights, never exceeded: 3MB, 500kB.")] = "3MB",
    length: Annotated[int, typer.Option(help="Tokens of an input.")] = 128,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 1000,
    batch: Annotated[int, typer.Option(help="Texts a step.")] = 16,
    temperature: Annotated[float, typer.Option(help="Softens what the teacher says.")] = 10.0,
    rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    onnx: Annotated[bool, typer.Option("--onnx", help="Also write model.onnx with 8-bit weights.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of search, weights and order.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Search the shape of a classifier of a given size and teach it what TEACHER says of TEXTS. Can be killed and resumed."""
    from tersor.pipeline.progress import bars
    from tersor.pipeline.shrinking import shrink as run
    from tersor.training import Distillation

    config = Distillation(temperature, steps, batch, rate, max(steps // 20, 1))
    with bars() as progress:
        made = run(teacher, texts, size, output, length=length, config=config, seed=seed, onnx=onnx, progress=progress)
    show(f"{made}; written to {output}", as_json, {"output": str(output), **made.to_dict()})


@train.command()
def compresso(
    model: ModelArgument,
    output: OutputOption,
    text: Annotated[str, typer.Option(help="A file or a known name to train on; never report numbers on it.", show_default=False)],
    keep: Annotated[float, typer.Option(help="Fraction of the parameters that is left.")] = 0.8,
    cut: Annotated[str, typer.Option(help="What may go: groups (key-value heads and their queries), units, width.")] = "groups,units,width",
    multiple: Annotated[int, typer.Option(help="Width and units become multiples of it; 32 suits quantised formats.")] = 1,
    prompt: Annotated[bool, typer.Option("--prompt", help="Train with the collaborative prompt in front; use it with the result.")] = False,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 600,
    batch: Annotated[int, typer.Option(help="Windows a step.")] = 4,
    rate: Annotated[float, typer.Option(help="Peak learning rate of the adapters.")] = 2e-3,
    context: Annotated[int, typer.Option(help="Tokens of a window.")] = 256,
    seed: Annotated[int, typer.Option(help="Seed of adapters, gates and the order of the windows.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Cut heads, units and width out of MODEL while adapters heal it; transformers loads the result. Can be killed and resumed."""
    from tersor.pipeline.progress import bars
    from tersor.pipeline.pruning import prune as run
    from tersor.training import COLLABORATIVE_PROMPT, Compresso, Schedule

    method = Compresso(keep, kinds=tuple(cut.split(",")), multiple=multiple)  # type: ignore[arg-type]
    schedule = Schedule(steps, batch, rate, seed=seed)
    front = COLLABORATIVE_PROMPT if prompt else ""
    with bars() as progress:
        made = run(model, text, output, method=method, schedule=schedule, context=context, prompt=front, progress=progress)
    show(f"{made}; written to {output}", as_json, {"output": str(output), **made.to_dict()})


def _pattern(text: str) -> tuple[int, int]:
    keep_n, colon, of_m = text.partition(":")
    if not (colon and keep_n.isdigit() and of_m.isdigit()):
        raise InvalidArgument(f"write a pattern as kept:of, such as 2:4, not {text!r}")
    if not 0 < int(keep_n) < int(of_m):
        raise InvalidArgument(f"a pattern keeps one or more and removes some, as 2:4 does; {text!r} does not")
    return int(keep_n), int(of_m)
