"""A run is a directory: it resumes by default and refuses to mix with another job."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tersor.errors import CorruptFile, InvalidArgument, TersorError
from tersor.files import write_json

FORMAT = 1
_OURS = {"run", "model.safetensors", "tersor.json", "config.json", "report.json", "report.html"}


@dataclass(frozen=True)
class RunDirectory:
    """The output folder of a job, with its working state in ``run/``.

    ``run/job.json`` holds what the job is a function of (model, texts, recipe). Opening a folder with other
    inputs is refused, naming what changed.
    """

    output: Path

    @property
    def work(self) -> Path:
        """Folder of the working state."""
        return self.output / "run"

    @property
    def levels(self) -> Path:
        """Folder of the level database."""
        return self.work / "levels"

    @property
    def search_state(self) -> Path:
        """File in which the search keeps its state."""
        return self.work / "search.json"

    @property
    def tuning_state(self) -> Path:
        """File in which the finetuning keeps its state."""
        return self.work / "tuning.safetensors"

    @property
    def report(self) -> Path:
        """File of the finished run's report."""
        return self.output / "report.json"

    @classmethod
    def open(cls, output: Path, job: dict[str, Any], restart: bool = False) -> RunDirectory:
        """Create ``output`` or resume the run in it.

        Args:
            output: Folder of the run; new, empty, or of an earlier run of the same job.
            job: Plain JSON data that identifies the job.
            restart: Throw away the state of an earlier run first.

        Raises:
            InvalidArgument: If the folder belongs to something else or to a run with other inputs.
            TersorError: If it cannot be written.
        """
        run = cls(output)
        job = json.loads(json.dumps({"format": FORMAT, **job}, sort_keys=True))
        state = run.work / "job.json"
        try:
            if output.exists() and not output.is_dir():
                raise InvalidArgument(f"the output {output} is a file; name a folder")
            if restart and state.is_file():
                shutil.rmtree(run.work)
            if state.is_file() and (before := _read_json(state)) != job and run._idle():
                state.unlink()  # stopped before any work, as by too short a text: nothing binds the next attempt to those inputs
            elif state.is_file():
                run._check_same(before, job)
                return run
            if output.is_dir() and any(child.name not in _OURS or not restart for child in output.iterdir() if not _leftover(child)):
                raise InvalidArgument(f"the output folder {output} is not empty and is not a tersor run; name another or empty it")
            run.levels.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TersorError(f"cannot use the output folder {output}: {error.strerror}") from None
        write_json(state, job)
        return run

    def _idle(self) -> bool:
        """Whether a job was started here and nothing was made of it."""
        return [path for path in self.output.rglob("*") if path.is_file()] == [self.work / "job.json"]

    def _check_same(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if changed:
            details = "; ".join(f"{key}: {_first_difference(before.get(key), now.get(key))}" for key in changed)
            raise InvalidArgument(
                f"the run in {self.output} was started with other inputs ({details}); use a new folder, or --restart to discard its state"
            )

    def clean(self) -> None:
        """Delete the level database, the largest part of the state, of a finished run."""
        shutil.rmtree(self.levels, ignore_errors=True)


def _leftover(child: Path) -> bool:
    return child.name == "run" and child.is_dir() and not (child / "job.json").exists()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptFile(f"the run state {path} cannot be read ({error}); use --restart") from None
    if not isinstance(data, dict):
        raise CorruptFile(f"the run state {path} is not an object; use --restart")
    return data


def _first_difference(before: Any, now: Any, key: str = "") -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                return _first_difference(before.get(name), now.get(name), f"{key}.{name}" if key else name)
    shown = [text if len(text) <= 40 else text[:37] + "..." for text in (json.dumps(before), json.dumps(now))]
    return f"{key + ' ' if key else ''}{shown[0]} before, {shown[1]} now"
