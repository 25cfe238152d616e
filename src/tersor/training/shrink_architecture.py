"""From a large classifier of code and a number of bytes to a small one: search a shape, learn a vocabulary, distil."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tersor import checkpoints
from tersor.errors import InvalidArgument
from tersor.files import write_atomically
from tersor.training.architecture_cost import RobertaCost
from tersor.training.architecture_search import ROBERTA_SPACE, SearchResult, SearchSpace, genetic_search
from tersor.training.distillation import Distillation, Distilled, distill, predict
from tersor.training.storage import export_onnx
from tersor.training.student import build_student, encode, logits, save_student, train_tokenizer

Texts = tuple[str, ...]
Teacher = Callable[[Sequence[Texts]], Tensor]
# Told the name of a stage, steps done, steps in all and a note.
Progress = Callable[[str, int, int, str], None]

_FEWEST = 20
_TEACHER_BATCH = 32
_SAVE_EVERY = 20


@dataclass(frozen=True)
class Shrunk:
    """A small classifier and how it came to be.

    Attributes:
        student: A ``RobertaForSequenceClassification`` in evaluation mode.
        tokenizer: Of its own vocabulary.
        length: Tokens of an input.
        search: Shape, bytes and operations.
        distilled: Losses, and agreement with the teacher on held-out texts.
    """

    student: Any
    tokenizer: Any
    length: int
    search: SearchResult
    distilled: Distilled

    @property
    def agreement(self) -> float:
        """Share of held-out texts on which student and teacher choose the same class; it chose the step, so it is a little high."""
        return max(value for _, value in self.distilled.accuracies)

    def logits(self, texts: Sequence[str] | Sequence[Texts]) -> Tensor:
        """Scores ``[n, classes]`` of texts, or of pairs of them."""
        return predict(self.student, _encoded(self.tokenizer, _as_tuples(texts), self.length))

    def save(self, folder: str | Path) -> int:
        """Write a folder that ``transformers`` and :func:`tersor.training.load_student` read; returns the bytes of the weights."""
        return save_student(self.student, self.tokenizer, folder)

    def export(self, path: str | Path, *, int8: bool = True) -> int:
        """Write ONNX; see :func:`export_student`."""
        return export_student(self.student, path, length=self.length, int8=int8)


def shrink_architecture(
    teacher: Teacher, texts: Sequence[str] | Sequence[Texts], bound: int, *, length: int = 128, space: SearchSpace = ROBERTA_SPACE,
    config: Distillation | None = None, dropout: float = 0.1, held_out: float = 0.1, seed: int = 0, state: str | Path | None = None,
    progress: Progress | None = None,
) -> Shrunk:  # fmt: skip
    """Make a classifier that takes at most ``bound`` bytes out of one that may be any size; no label is needed.

    Use it where a model is far too large and answers one question; where it must stay a general one, compress its weights instead.

    Args:
        teacher: Scores ``[n, classes]`` of a list of ``(text,)`` or ``(text, text)``; :func:`classifier` makes one of a folder.
        texts: Texts of the kind that the student will see, or pairs of them. What is reported must not be measured on these.
        bound: Bytes of ``model.safetensors``, never exceeded.
        length: Tokens of an input in the student's own vocabulary.
        space: Shapes to search.
        config: Training; its seed is replaced by ``seed``.
        dropout: Of the student; the paper takes 0.5 for many epochs.
        held_out: Share of the texts that chooses the best step by agreement with the teacher.
        seed: Of search, weights, order and dropout.
        state: Folder from which a killed call goes on, answers of the teacher included. With another job in it, it is refused.
        progress: Told stage, steps done, steps in all and a note.

    Returns:
        The student.

    Raises:
        InvalidArgument: If there are too few texts, the teacher's scores are not one finite row a text, nothing of the space fits the
            bound, or the state is of another job.

    Reference:
        Shi et al., Compressing pre-trained models of code into 3 MB (2022).
    """
    examples = _as_tuples(texts)
    if len(examples) < _FEWEST or not 0 < held_out < 1:
        raise InvalidArgument(f"shrinking needs {_FEWEST} texts and a held-out share between 0 and 1, got {len(examples)} and {held_out}")
    folder = None if state is None else Path(state)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    told = progress or (lambda stage, step, steps, note: None)
    scores = _answers(teacher, examples, None if folder is None else folder / "teacher.safetensors", told)
    cost = RobertaCost(length, scores.shape[1], len(examples[0]) == 2)
    found = genetic_search(space, cost, bound, seed=seed)
    random = np.random.default_rng(seed)
    order = torch.from_numpy(random.permutation(len(examples)))
    kept_out, trained = order.tensor_split([max(round(held_out * len(examples)), 1)])
    tokenizer = train_tokenizer([text for place in trained.tolist() for text in examples[place]], found.architecture["vocab_size"])
    student = build_student(found.architecture, cost, dropout=dropout, seed=seed)
    ids = _encoded(tokenizer, examples, length)
    distilled = distill(
        student, ids[trained], scores[trained], replace(config or Distillation(), seed=seed),
        validation=(ids[kept_out], scores[kept_out].argmax(-1)), checkpoint=None if folder is None else folder / "student.safetensors",
        progress=lambda step, steps, loss: told("distilling", step, steps, f"loss {loss:.4g}"),
    )  # fmt: skip
    return Shrunk(student, tokenizer, length, found, distilled)


def classifier(folder: str | Path, *, length: int = 512) -> Teacher:
    """A teacher from a folder that holds a sequence classifier of ``transformers`` and its tokenizer; nothing is downloaded.

    Args:
        folder: With ``config.json``, weights and tokenizer.
        length: Tokens to cut inputs at.

    Raises:
        InvalidArgument: If it holds no such model.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if not (Path(folder) / "config.json").is_file():
        raise InvalidArgument(f"{folder} holds no config.json; give the folder of a sequence classifier of transformers")
    try:
        model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError, RuntimeError) as error:
        raise InvalidArgument(f"{folder} holds no sequence classifier of transformers: {str(error).splitlines()[0]}") from None

    @torch.no_grad()
    def scores(texts: Sequence[Texts]) -> Tensor:
        columns = [list(column) for column in zip(*texts, strict=True)]
        inputs = tokenizer(*columns, padding=True, truncation=True, max_length=length, return_tensors="pt")
        answers: Tensor = model(**inputs).logits
        return answers.float()

    return scores


def export_student(student: Any, path: str | Path, *, length: int, int8: bool = True) -> int:
    """Write a student as ONNX: token ids ``[n, length]`` or ``[n, 2, length]`` in, scores out.

    What onnxruntime computes from the float file is compared with the student before weights are rounded.

    Args:
        student: Of :func:`tersor.training.build_student`.
        path: The ``.onnx`` file.
        length: Tokens of an input; the batch may be any.
        int8: Store matrices and tables as 8-bit integers and multiply with those.

    Returns:
        Bytes of the file.

    Raises:
        InvalidArgument: If onnx, onnxscript or onnxruntime is missing.
        TersorError: If onnxruntime computes something else.
    """
    pair = type(student.classifier).__name__ == "PairHead"
    random = torch.Generator().manual_seed(0)
    example = torch.randint(4, student.config.vocab_size, (3, 2, length) if pair else (3, length), generator=random)
    example[..., 0] = 0
    example[1, ..., length // 2 + 1 :] = 1
    target = Path(path)
    plain = target.with_suffix(".float.onnx") if int8 else target
    export_onnx(_Scores(student), (example,), plain)
    if int8:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        try:
            quantize_dynamic(plain, target, op_types_to_quantize=["MatMul", "Gemm", "Gather"], weight_type=QuantType.QInt8)
        finally:
            plain.unlink(missing_ok=True)
    return _without_traces(target)


def _without_traces(path: Path) -> int:
    """Drop what the exporter notes of the source code, which is larger than a small model; the bytes that are left."""
    import onnx

    model = onnx.load(path)
    del model.graph.value_info[:]
    for part in (model, model.graph, *model.graph.node, *model.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    data = model.SerializeToString()
    write_atomically(path, data)
    return len(data)


class _Scores(nn.Module):
    """The student as a function of its ids alone."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, ids: Tensor) -> Tensor:
        return logits(self.student, ids)


def _as_tuples(texts: Sequence[str] | Sequence[Texts]) -> list[Texts]:
    examples = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
    sizes = {len(example) for example in examples}
    if examples and (len(sizes) > 1 or max(sizes) > 2 or min(sizes) < 1):
        raise InvalidArgument(f"examples must all be texts or all be pairs of texts, got tuples of {sorted(sizes)}")
    return examples


def _encoded(tokenizer: Any, examples: Sequence[Texts], length: int) -> Tensor:
    columns = torch.stack([encode(tokenizer, column, length) for column in zip(*examples, strict=True)], 1)
    return columns if columns.shape[1] == 2 else columns[:, 0]


def _answers(teacher: Teacher, examples: list[Texts], path: Path | None, told: Progress) -> Tensor:
    """Scores of the teacher on everything, kept on disk as they come."""
    digest = hashlib.sha256("\0".join(text for example in examples for text in example).encode()).hexdigest()
    identity = {"texts": digest, "examples": len(examples)}
    found = None if path is None else checkpoints.read(path, identity)
    parts = [] if found is None else [found[0]["scores"]]
    done = sum(len(part) for part in parts)
    for count, begin in enumerate(range(done, len(examples), _TEACHER_BATCH), 1):
        batch = examples[begin : begin + _TEACHER_BATCH]
        scores = teacher(batch).detach().float()
        if scores.ndim != 2 or len(scores) != len(batch) or scores.shape[1] < 2 or not bool(scores.isfinite().all()):
            raise InvalidArgument(
                f"the teacher must give one row of at least two finite scores a text; for {len(batch)} texts it gave {tuple(scores.shape)}"
            )
        parts.append(scores)
        done = begin + len(batch)
        if path is not None and (count % _SAVE_EVERY == 0 or done == len(examples)):
            checkpoints.write(path, {"scores": torch.cat(parts)}, {}, identity)
        told("asking the teacher", done, len(examples), "")
    return torch.cat(parts)
