"""From the folder of a text classifier and a file of texts to a small classifier in a folder, resumable at any moment."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tersor.allocation.budget import parse_budget
from tersor.errors import CorruptFile, InvalidArgument
from tersor.models.storage import check_target
from tersor.pipeline.progress import Progress, Silent
from tersor.training import Distillation, Shrunk, classifier, shrink_architecture
from tersor.training.storage import require_onnx


@dataclass(frozen=True)
class ShrunkFolder:
    """What was written.

    Attributes:
        shrunk: The student.
        nbytes: Of ``model.safetensors``.
        onnx_bytes: Of ``model.onnx``, or ``None`` if there is none.
    """

    shrunk: Shrunk
    nbytes: int
    onnx_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the weights left out."""
        search = self.shrunk.search
        return {
            "nbytes": self.nbytes, "onnx_bytes": self.onnx_bytes, "architecture": search.architecture, "parameters": search.parameters,
            "flops": search.flops, "agreement": self.shrunk.agreement, "best_step": self.shrunk.distilled.best_step,
        }  # fmt: skip

    def __str__(self) -> str:
        shape = ", ".join(f"{name} {value}" for name, value in self.shrunk.search.architecture.items())
        return f"{self.nbytes:,} bytes; chooses as the teacher on {self.shrunk.agreement:.1%} of held-out texts; {shape}"


def shrink(
    teacher: str | Path, texts: str | Path, size: int | str, output: str | Path, *,
    length: int = 128, config: Distillation | None = None, seed: int = 0, onnx: bool = False, progress: Progress | None = None,
) -> ShrunkFolder:  # fmt: skip
    """Make a small classifier out of a large one and save it; the same call goes on where a killed one stopped.

    Args:
        teacher: Folder of a sequence classifier of ``transformers`` with its tokenizer.
        texts: Unlabelled: a ``.jsonl`` file with one ``{"text": ...}`` or ``{"text": ..., "pair": ...}`` a line, or one text a line.
        size: Bytes of the weights, such as ``3_000_000`` or ``"3MB"``; never exceeded.
        output: A folder that does not exist or is empty. The state of an unfinished run is kept beside it.
        length: Tokens of an input.
        config: Of the training.
        seed: Of search, weights and order.
        onnx: Also write ``model.onnx`` with 8-bit weights.
        progress: Receives stages and steps.

    Returns:
        What was written.

    Raises:
        InvalidArgument: If there is no such teacher or file, there are too few texts, nothing fits, or the state is of another job.
        CorruptFile: If a line of the file cannot be read.
    """
    target, progress = Path(output), progress or Silent()
    check_target(target)
    if onnx:
        require_onnx()
    bound, examples = parse_budget(size), read_texts(texts)
    state = target.absolute().with_name(f".{target.name}.shrinking")
    stage, done = "", 0

    def advance(name: str, step: int, steps: int, note: str) -> None:
        nonlocal stage, done
        if name != stage:
            stage, done = name, 0
            progress.start(name, steps)
        progress.advance(step - done, note=note)
        done = step

    shrunk = shrink_architecture(
        classifier(teacher), examples, bound, length=length, config=config, seed=seed, state=state, progress=advance
    )  # fmt: skip
    nbytes = shrunk.save(target)
    written = shrunk.export(target / "model.onnx") if onnx else None
    shutil.rmtree(state, ignore_errors=True)
    return ShrunkFolder(shrunk, nbytes, written)


def read_texts(path: str | Path) -> list[tuple[str, ...]]:
    """Texts, or pairs of texts, of a file.

    Args:
        path: ``.jsonl`` with ``text`` and perhaps ``pair`` in each line; of any other file every line is a text. Blank lines are left out.

    Raises:
        InvalidArgument: If there is no such file.
        CorruptFile: If a line is no such object, or the file is not UTF-8.
    """
    source = Path(path)
    if not source.is_file():
        raise InvalidArgument(f"there is no file {source}; give one with a text a line, or .jsonl")
    try:
        lines = [(number, line) for number, line in enumerate(source.read_text(encoding="utf-8").split("\n"), 1) if line.strip()]
    except UnicodeDecodeError as error:
        raise CorruptFile(f"{source} is not UTF-8 text: {error}") from None
    if source.suffix != ".jsonl":
        return [(line,) for _, line in lines]
    examples: list[tuple[str, ...]] = []
    for number, line in lines:
        try:
            entry = json.loads(line)
            example: tuple[Any, ...] = (entry["text"], entry["pair"]) if "pair" in entry else (entry["text"],)
        except (ValueError, KeyError, TypeError):
            example = ()
        if not example or not all(isinstance(text, str) for text in example):
            raise CorruptFile(f'line {number} of {source} must be {{"text": "..."}}, with a "pair" or without')
        examples.append(example)
    return examples
