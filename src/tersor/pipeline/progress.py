"""Progress of long work, as the caller wants to see it: nothing, or bars with an ETA on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Progress(Protocol):
    """Receives what long work is doing."""

    def start(self, stage: str, total: int) -> None:
        """Begin ``stage``, made of ``total`` steps."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """``steps`` more of the current stage are done."""

    def message(self, text: str) -> None:
        """A line that the user should see."""


class Silent:
    """Shows nothing; the default of the Python API."""

    def start(self, stage: str, total: int) -> None:
        """Ignore."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Ignore."""

    def message(self, text: str) -> None:
        """Ignore."""


class Timed:
    """Wraps another progress and adds up the seconds of each stage, for reports."""

    def __init__(self, inner: Progress) -> None:
        self.inner = inner
        self.seconds: dict[str, float] = {}
        self._stage = ""
        self._since = time.monotonic()

    def _close(self) -> None:
        now = time.monotonic()
        if self._stage:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._since
        self._since = now

    def start(self, stage: str, total: int) -> None:
        """Begin a stage and its clock."""
        self._close()
        self._stage = stage
        self.inner.start(stage, total)

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Pass on."""
        self.inner.advance(steps, note)

    def message(self, text: str) -> None:
        """Pass on."""
        self.inner.message(text)

    def finish(self) -> dict[str, float]:
        """Stop the clock and return the seconds of every stage."""
        self._close()
        self._stage = ""
        return self.seconds


def counted(progress: Progress, stage: str) -> Callable[[int, int, float], None]:
    """What a training that reports ``(steps done, steps in all, loss)`` calls to be shown as ``stage``."""
    done: list[int] = []

    def advance(step: int, steps: int, loss: float) -> None:
        if not done:
            progress.start(stage, steps)
        progress.advance(step - (done.pop() if done else 0), note=f"loss {loss:.4g}")
        done.append(step)

    return advance


@contextmanager
def bars() -> Iterator[Progress]:
    """Progress bars with elapsed time and ETA on stderr; plain lines where stderr is not a terminal."""
    import sys

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(sys.stderr)
        return
    columns: list[Any] = [
        TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    ]  # fmt: skip
    with RichProgress(*columns, console=console) as rich:
        yield _Bars(rich)


class _Bars:
    def __init__(self, rich: Any) -> None:
        self._rich = rich
        self._task: Any = None

    def start(self, stage: str, total: int) -> None:
        if self._task is not None:
            self._rich.update(self._task, completed=self._rich.tasks[self._task].total)
        self._task = self._rich.add_task(stage, total=total, note="")

    def advance(self, steps: int = 1, note: str = "") -> None:
        if self._task is not None:
            self._rich.update(self._task, advance=steps, note=note)

    def message(self, text: str) -> None:
        self._rich.console.print(text, highlight=False, markup=False)


class _Lines:
    """One line when a stage begins and then at most one every ten seconds, for logs."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._stage, self._total, self._done = "", 0, 0
        self._began = self._shown = time.monotonic()

    def start(self, stage: str, total: int) -> None:
        self._stage, self._total, self._done = stage, total, 0
        self._began = self._shown = time.monotonic()
        print(f"{stage}: {total} steps", file=self._stream, flush=True)

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._done += steps
        now = time.monotonic()
        if now - self._shown >= 10 and self._done:
            self._shown = now
            left = (now - self._began) / self._done * max(self._total - self._done, 0)
            print(f"{self._stage}: {self._done}/{self._total}, about {left:.0f} s left {note}", file=self._stream, flush=True)

    def message(self, text: str) -> None:
        print(text, file=self._stream, flush=True)
