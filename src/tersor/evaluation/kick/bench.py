"""The benchmark: compressed models against their original, task by task, and where perplexity says something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch

from tersor.errors import InvalidArgument
from tersor.evaluation.divergence import Progress, token_scores
from tersor.evaluation.kick.resampling import Paired, bootstrap
from tersor.evaluation.kick.tasks import Answers, KickTask
from tersor.evaluation.logits import check_predicts
from tersor.models import Model

TOLERANCE = 0.05  # relative drop within which a compressed model matches, as in the paper


@dataclass(frozen=True)
class KickRow:
    """One measure of one task for one model.

    Attributes:
        model: Name of the model.
        task: Name of the task.
        measure: What was measured, from 0 to 1; the first of a task is the main one.
        items: How many were asked.
        paired: Score, the original's, difference and ratio, with 95 % bootstrap intervals.
        lost: Weighted share of items on which the model scores below the original; for right or wrong, the answers it lost.
        gained: The reverse.
        agreement: Weighted share of items answered in the same words.
        kl: Weighted mean ``KL(original || model)`` in nats of the prediction that begins an answer.
        top1: Weighted share of items whose answers begin with the same likeliest token.
        perplexity: Of the model on the text of the benchmark, ``None`` without one.
        groups: Score by group of items, where there are groups.
        truncated: Items cut because the context has no room.
    """

    model: str
    task: str
    measure: str
    items: int
    paired: Paired
    lost: float
    gained: float
    agreement: float
    kl: float
    top1: float
    perplexity: float | None = None
    groups: Mapping[str, float] = field(default_factory=dict)
    truncated: int = 0

    @property
    def matches(self) -> bool:
        """Whether the score is at most 5 % below the original's, the criterion of the paper."""
        return self.paired.score.value >= (1 - TOLERANCE) * self.paired.reference.value

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        ratio = self.paired.ratio
        flat = {key: getattr(self, key) for key in ("model", "task", "measure", "items")}
        for name, interval in (("score", self.paired.score), ("difference", self.paired.difference), ("ratio", ratio)):
            values = (None, None, None) if interval is None else (interval.value, interval.low, interval.high)
            flat |= dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
        flat["reference"] = self.paired.reference.value
        rest = ("matches", "lost", "gained", "agreement", "kl", "top1", "perplexity", "truncated")
        return flat | {key: getattr(self, key) for key in rest} | {"groups": dict(self.groups)}

    def __str__(self) -> str:
        parts = [f"{self.model:<16} {self.task:<20} {self.measure:<12} {self.paired.score}"]
        parts.append(f"original {self.paired.reference.value:.3g}")
        if self.paired.ratio is not None:
            parts.append(f"ratio {self.paired.ratio}")
        parts.append(f"lost {self.lost:.1%}, gained {self.gained:.1%}, same answer {self.agreement:.1%}, KL {self.kl:.3g}")
        if self.perplexity is not None:
            parts.append(f"perplexity {self.perplexity:.4g}")
        return ", ".join([*parts, f"{self.items} items" + (f" ({self.truncated} cut)" if self.truncated else "")])


@dataclass(frozen=True)
class KickReport:
    """All rows, in the order of models and tasks."""

    rows: tuple[KickRow, ...]

    def main(self) -> list[KickRow]:
        """The first measure of every task and model."""
        first = {(row.model, row.task): row for row in reversed(self.rows)}
        return [row for row in self.rows if first[row.model, row.task] is row]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"rows": [row.to_dict() for row in self.rows], "misleading": [str(pair) for pair in misleading(self.rows)]}

    def __str__(self) -> str:
        return "\n".join(map(str, [*self.rows, *misleading(self.rows)]))


@dataclass(frozen=True)
class Misleading:
    """Two models that perplexity and a task put in opposite orders.

    Attributes:
        task: Name of the task.
        flattered: The model with the lower perplexity and the lower score.
        better: The other one.
        perplexities: Of both, in this order.
        scores: Of both.
    """

    task: str
    flattered: str
    better: str
    perplexities: tuple[float, float]
    scores: tuple[float, float]

    def __str__(self) -> str:
        return (
            f"perplexity misleads on {self.task}: {self.flattered} has {self.perplexities[0]:.4g} against {self.perplexities[1]:.4g} of "
            f"{self.better}, but scores {self.scores[0]:.3g} against {self.scores[1]:.3g}"
        )


def misleading(rows: Sequence[KickRow]) -> list[Misleading]:
    """Every pair of models of which the one with the lower perplexity scores clearly lower on a task.

    Clearly: the 95 % intervals of their differences from the original do not overlap. Rows without a perplexity are left out.
    """
    found = []
    for first, second in combinations([row for row in rows if row.perplexity is not None], 2):
        if (first.task, first.measure) != (second.task, second.measure) or first.perplexity == second.perplexity:
            continue
        low, high = sorted((first, second), key=lambda row: row.perplexity or 0.0)
        if low.paired.difference.high < high.paired.difference.low:
            scores = low.paired.score.value, high.paired.score.value
            perplexities = float(low.perplexity or 0), float(high.perplexity or 0)
            found.append(Misleading(f"{low.task} ({low.measure})", low.model, high.model, perplexities, scores))
    return found


@dataclass(frozen=True)
class KickBench:
    """Tasks to put to an original and to what was made of it.

    Args:
        tasks: With different names.
        resamples: Of the bootstrap.
        seed: Of its draws.

    Example:
        >>> from tersor.evaluation.kick import FactoidQA, Item, KickBench
        >>> bench = KickBench([FactoidQA((Item("The capital of France is", ("Paris",)),))])
        >>> bench.tasks[0].name
        'factoid'

    Reference:
        Jaiswal et al., "Compressing LLMs: the truth is rarely pure and never simple" (2024).
    """

    tasks: Sequence[KickTask]
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        names = [task.name for task in self.tasks]
        if not names or len(set(names)) < len(names):
            raise InvalidArgument(f"a benchmark needs tasks with different names, got {names}")

    def run(
        self, dense: Model, models: Mapping[str, Model], *, perplexity: Callable[[Model], float] | None = None,
        progress: Progress | None = None,
    ) -> KickReport:  # fmt: skip
        """Ask the original once and every model once.

        Args:
            dense: The original.
            models: By the names that the table gives them.
            perplexity: What to print beside the scores, such as ``lambda model: tersor.evaluation.perplexity(model, text).value``.
            progress: Told of every answered item.

        Raises:
            InvalidArgument: If a model has no tokenizer or predicts no tokens, or vocabularies differ.
        """
        known = self.ask(dense, progress)
        rows = [
            row for name, model in models.items()
            for row in self.judge(name, model, known, None if perplexity is None else perplexity(model), progress)
        ]  # fmt: skip
        return KickReport(tuple(rows))

    def ask(self, model: Model, progress: Progress | None = None) -> dict[str, Answers]:
        """What ``model`` answers, by name of the task."""
        check_predicts(model)
        if model.tokenizer is None:
            raise InvalidArgument(f"model {model.name} has no tokenizer, and questions are text; put one into its folder")
        return {task.name: task.answers(model, progress) for task in self.tasks}

    def judge(
        self, name: str, model: Model, dense: Mapping[str, Answers], perplexity: float | None = None, progress: Progress | None = None
    ) -> list[KickRow]:
        """Ask one model and compare it with the original's answers; use it where models are too many to hold at once.

        Args:
            name: In the table.
            model: What to ask.
            dense: From :meth:`ask` of the original.
            perplexity: Of the model, for the table.
            progress: Told of every answered item.
        """
        return self.compare(name, self.ask(model, progress), dense, perplexity)

    def compare(
        self, name: str, answers: Mapping[str, Answers], dense: Mapping[str, Answers], perplexity: float | None = None
    ) -> list[KickRow]:
        """Rows of answers that are there already, such as the original's own beside themselves.

        Args:
            name: In the table.
            answers: From :meth:`ask`.
            dense: From :meth:`ask` of the original.
            perplexity: Of the model that answered, for the table.
        """
        return [row for task in self.tasks for row in self._rows(task, name, answers[task.name], dense[task.name], perplexity)]

    def _rows(self, task: KickTask, name: str, own: Answers, dense: Answers, perplexity: float | None) -> list[KickRow]:
        if own.logits.shape != dense.logits.shape:
            raise InvalidArgument(f"{name} predicts {own.logits.shape[-1]} tokens and the original {dense.logits.shape[-1]}; give its own")
        compared = token_scores(own.logits, dense.logits.argmax(-1), dense.logits)
        assert compared.kl is not None
        weights = torch.tensor([item.weight for item in task.items], dtype=torch.float64)
        same = torch.tensor([first == second for first, second in zip(own.texts, dense.texts, strict=True)])
        groups = [item.group for item in task.items]

        def mean(values: torch.Tensor) -> float:
            return float((weights * values).sum() / weights.sum())

        rows = []
        for measure, (scores, reference) in task.scores(own, dense).items():
            by_group = {group: _group_mean(scores, weights, groups, group) for group in sorted(set(groups)) if group}
            rows.append(KickRow(
                name, task.name, measure, len(groups), bootstrap(scores, reference, weights, self.resamples, self.seed),
                mean(scores < reference), mean(scores > reference), mean(same), mean(compared.kl), mean(compared.right), perplexity,
                by_group, own.truncated,
            ))  # fmt: skip
        return rows


def _group_mean(scores: torch.Tensor, weights: torch.Tensor, groups: list[str], group: str) -> float:
    chosen = torch.tensor([entry == group for entry in groups])
    return float((scores * weights)[chosen].sum() / weights[chosen].sum())
