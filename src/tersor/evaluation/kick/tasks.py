"""The five families of tasks: what a model answers, and how right that is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.evaluation.divergence import Progress
from tersor.evaluation.kick.items import Choice, Item
from tersor.evaluation.kick.judges import Judge, compare
from tersor.evaluation.kick.measures import contains, contains_squeezed, exact, word_f1
from tersor.evaluation.kick.mmlu import CATEGORIES, fitted, prompt_of
from tersor.models import Model

Scores = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Answers:
    """What a model answered.

    Attributes:
        texts: One an item, the prompt not included.
        logits: ``[n, vocabulary]``, the prediction with which each answer begins.
        free: Of a multiple choice, the likeliest token of all as text; the same as ``texts`` elsewhere.
        truncated: Items whose prompt lost its beginning, or worked examples, because the context has no room.
    """

    texts: tuple[str, ...]
    logits: Tensor
    free: tuple[str, ...]
    truncated: int


class KickTask(Protocol):
    """A family of items that models answer.

    Attributes:
        name: In tables.
        items: What is asked.
    """

    @property
    def name(self) -> str:
        """In tables."""

    @property
    def items(self) -> Sequence[Item]:
        """What is asked."""

    def answers(self, model: Model, progress: Progress | None = None) -> Answers:
        """Ask ``model`` everything."""

    def scores(self, answers: Answers, dense: Answers) -> Scores:
        """By measure, the scores ``[n]`` of ``answers`` and of the original's, from 0 to 1; the first measure is the main one."""


@dataclass(frozen=True)
class _Written:
    """A task whose answers are written, by greedy decoding."""

    items: tuple[Item, ...]
    new_tokens: int = 32
    stop: str | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if not self.items:
            raise InvalidArgument(f"task {self.name or type(self).__name__} has no items; give at least one")
        if self.new_tokens < 1:
            raise InvalidArgument(f"task {self.name}: new_tokens must be at least 1, got {self.new_tokens}")

    def answers(self, model: Model, progress: Progress | None = None) -> Answers:
        """Ask ``model`` everything."""
        from tersor.models.generation import continue_texts

        if progress is not None:
            progress.start(f"{self.name} with {model.name}", len(self.items))
        prompts = [item.prompt for item in self.items]
        written = continue_texts(
            model, prompts, max_new_tokens=self.new_tokens, stop=self.stop, on_batch=None if progress is None else progress.advance
        )
        texts = tuple(one.text for one in written)
        return Answers(texts, torch.stack([one.logits for one in written]), texts, sum(one.truncated for one in written))


@dataclass(frozen=True)
class _Matched(_Written):
    """Answers that are right or wrong, scored on what was written after the prompt alone."""

    stop: str | None = "\n"
    measures: ClassVar[Mapping[str, Callable[[str, Sequence[str]], float]]] = {}

    def scores(self, answers: Answers, dense: Answers) -> Scores:
        """By measure, the scores of ``answers`` and of the original's."""
        return {
            name: (self._scored(measure, answers), self._scored(measure, dense)) for name, measure in type(self).measures.items()
        }  # fmt: skip

    def _scored(self, measure: Callable[[str, Sequence[str]], float], answers: Answers) -> Tensor:
        pairs = zip(self.items, answers.texts, strict=True)
        return torch.tensor([float(measure(text, item.aliases)) for item, text in pairs], dtype=torch.float64)


@dataclass(frozen=True)
class FactoidQA(_Matched):
    """What the model knows by heart: a hit is an alias among the words of the completion; ``squeezed`` is the paper's looser match.

    Args:
        items: See :func:`factoid_items`.
        new_tokens: Longest answer.
        stop: Ends an answer.
        name: In tables.
    """

    new_tokens: int = 8
    name: str = "factoid"
    measures = {"hit": contains, "squeezed": contains_squeezed}  # noqa: RUF012


@dataclass(frozen=True)
class RetrievalQA(_Matched):
    """Questions with or without the passage that answers them: an alias in the first line written, whole line equal, and word F1.

    Args:
        items: See :func:`retrieval_items`.
        new_tokens: Longest answer.
        stop: Ends an answer.
        name: In tables; say which book is open.
    """

    new_tokens: int = 32
    name: str = "retrieval"
    measures = {"contains": contains, "exact": exact, "f1": word_f1}  # noqa: RUF012


@dataclass(frozen=True)
class _Judged(_Written):
    """Answers that a judge rates beside the original's, in both orders."""

    judges: Mapping[str, Judge] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.judges:
            raise InvalidArgument(f"task {self.name} needs a judge; repetition_judge() is one without a model")

    def scores(self, answers: Answers, dense: Answers) -> Scores:
        """By judge, the ratings of ``answers`` and of the original's."""
        found = {}
        for name, judge in (self.judges or {}).items():
            rated = [compare(judge, *three) for three in zip(self.items, answers.texts, dense.texts, strict=True)]
            own, reference = torch.tensor(rated, dtype=torch.float64).T
            found[name] = own, reference
        return found


@dataclass(frozen=True)
class Summarization(_Judged):
    """Stories to summarise, rated by judges.

    Args:
        items: See :func:`summary_items`.
        new_tokens: Longest summary.
        stop: Ends one.
        name: In tables.
        judges: By name of the measure.
    """

    new_tokens: int = 64
    name: str = "summarisation"


@dataclass(frozen=True)
class Instructions(_Judged):
    """Open instructions to follow, rated by judges.

    Args:
        items: See :func:`instruction_items`.
        new_tokens: Longest response.
        stop: Ends one.
        name: In tables.
        judges: By name of the measure.
    """

    new_tokens: int = 64
    name: str = "instructions"


@dataclass(frozen=True)
class MultipleChoice:
    """Four options behind worked examples, answered by the likeliest of the four letters, not of all tokens.

    ``first_token`` is the paper's way: right if the token that the model would write is the letter.

    Args:
        choices: See :func:`choice_items`.
        shots: Worked examples at most; fewer where the context has no room.
        name: In tables.
    """

    choices: tuple[Choice, ...]
    shots: int = 5
    name: str = "multiple choice"

    def __post_init__(self) -> None:
        if not self.choices:
            raise InvalidArgument(f"task {self.name} has no items; give at least one")
        if self.shots < 0:
            raise InvalidArgument(f"task {self.name}: shots must be at least 0, got {self.shots}")

    @property
    def items(self) -> tuple[Item, ...]:
        """The questions with all their examples, grouped by the category of their subject."""
        return tuple(
            Item(prompt_of(choice, self.shots), (choice.letter,), group=CATEGORIES.get(choice.subject, choice.subject))
            for choice in self.choices
        )

    @property
    def subjects(self) -> tuple[str, ...]:
        """Subject of each question."""
        return tuple(choice.subject for choice in self.choices)

    def answers(self, model: Model, progress: Progress | None = None) -> Answers:
        """Ask ``model`` everything."""
        from tersor.evaluation.task_files import LETTERS
        from tersor.models.generation import next_logits

        if progress is not None:
            progress.start(f"{self.name} with {model.name}", len(self.choices))
        asked = [fitted(model, choice, self.shots) for choice in self.choices]
        logits = next_logits(model, [tokens for tokens, _, _ in asked])
        texts = [LETTERS[int(row[options].argmax())] for row, (_, options, _) in zip(logits, asked, strict=True)]
        free = [str(model.tokenizer.decode([int(token)])).strip() for token in logits.argmax(-1)]  # type: ignore[union-attr]
        truncated = sum(kept < min(self.shots, len(choice.shots)) for (_, _, kept), choice in zip(asked, self.choices, strict=True))
        if progress is not None:
            progress.advance(len(self.choices))
        return Answers(tuple(texts), logits, tuple(free), truncated)

    def scores(self, answers: Answers, dense: Answers) -> Scores:
        """Accuracy by the four letters, and by the one token that would be written."""
        return {
            "accuracy": (self._right(answers.texts), self._right(dense.texts)),
            "first_token": (self._right(answers.free), self._right(dense.free)),
        }  # fmt: skip

    def _right(self, texts: Sequence[str]) -> Tensor:
        pairs = zip(texts, self.choices, strict=True)
        return torch.tensor([float(text == choice.letter) for text, choice in pairs], dtype=torch.float64)
