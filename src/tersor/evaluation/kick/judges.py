"""Who says which of two texts is better: a protocol for any judge, and judges that need no network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from tersor.evaluation.kick.items import Item
from tersor.evaluation.kick.measures import repetition, rouge_l, rouge_n
from tersor.models import Model


class Judge(Protocol):
    """Rates two answers to one task; a model behind a network is one as well as a function.

    A judge may favour a place: :func:`compare` asks twice with the answers swapped, unless the judge has an attribute ``symmetric``
    that is true.
    """

    def __call__(self, item: Item, first: str, second: str) -> tuple[float, float]:
        """Ratings of ``first`` and ``second``; higher is better, 0 is worst."""


def compare(judge: Judge, item: Item, first: str, second: str) -> tuple[float, float]:
    """Ratings of both answers, averaged over both orders, so that the place of an answer cannot matter.

    Swapping the answers swaps the ratings: whatever the judge, the margin changes its sign and nothing else.

    Args:
        judge: Asked once in each order.
        item: What the answers are answers to.
        first: One answer.
        second: The other.
    """
    ahead = judge(item, first, second)
    if getattr(judge, "symmetric", False):
        return ahead
    behind = judge(item, second, first)
    return (ahead[0] + behind[1]) / 2, (ahead[1] + behind[0]) / 2


@dataclass(frozen=True)
class SingleJudge:
    """A judge that rates every answer by itself, and therefore cannot favour a place.

    Args:
        rate: Rating of an answer to an item, 0 or more; called once an answer, what it said is remembered.
    """

    rate: Callable[[Item, str], float]
    symmetric: bool = field(default=True, init=False)
    _known: dict[tuple[Item, str], float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, item: Item, first: str, second: str) -> tuple[float, float]:
        """Ratings of both."""
        return self._rated(item, first), self._rated(item, second)

    def _rated(self, item: Item, text: str) -> float:
        key = item, text
        if key not in self._known:
            self._known[key] = self.rate(item, text)
        return self._known[key]


def rouge_judge(kind: str = "L") -> SingleJudge:
    """Overlap with ``item.reference``, from 0 to 1.

    Args:
        kind: ``"1"``, ``"2"`` or ``"L"``.
    """
    measures: dict[str, Callable[[str, str], float]] = {
        "1": rouge_n, "2": lambda text, reference: rouge_n(text, reference, 2), "L": rouge_l
    }  # fmt: skip
    measure = measures[kind]
    return SingleJudge(lambda item, text: measure(text, item.reference))


def repetition_judge(n: int = 3) -> SingleJudge:
    """Share of the ``n``-grams that are new, from 0 to 1: a text that runs in circles is near 0, and so is an empty one."""
    return SingleJudge(lambda item, text: 1 - repetition(text, n) if text.strip() else 0.0)


def likelihood_judge(dense: Model) -> SingleJudge:
    """What the original thinks of an answer: ``exp`` of its mean log-likelihood a token after the prompt, from 0 to 1.

    It is the reciprocal of a perplexity. Texts that run in circles are likely; read it beside :func:`repetition_judge`.

    Args:
        dense: The original, which has read the prompt.
    """
    from tersor.evaluation.scoring import Request, likelihoods

    def rate(item: Item, text: str) -> float:
        start, whole = len(dense.encode(item.prompt)), tuple(dense.encode(item.prompt + text).tolist())
        if not text.strip() or len(whole) <= start:
            return 0.0
        start = min(max(start, 1), len(whole) - 1)
        return math.exp(likelihoods(dense, [Request(whole, start)])[0].log_probability / (len(whole) - start))

    return SingleJudge(rate)
