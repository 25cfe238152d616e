"""Where the sum of layer errors and the whole model disagree about which candidate is better."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol


class Judged(Protocol):
    """A candidate with both numbers; a row of a run report is one."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def layer_error(self) -> float | None:
        """Sum of its layers' errors."""

    @property
    def kl(self) -> float | None:
        """Divergence of its predictions from the original's."""

    @property
    def kl_stderr(self) -> float | None:
        """Standard error of that."""


@dataclass(frozen=True)
class Disagreement:
    """A pair that the two measures put in opposite orders.

    Attributes:
        favoured: The candidate with the lower sum of layer errors and the higher divergence.
        better: The other one.
        layer_errors: Of both, in this order.
        kl: Of both.
        certain: Whether the divergences differ by more than two standard errors; ``None`` where errors are unknown.
    """

    favoured: str
    better: str
    layer_errors: tuple[float, float]
    kl: tuple[float, float]
    certain: bool | None

    def __str__(self) -> str:
        doubt = ", within the noise" if self.certain is False else ""
        return (
            f"layer errors and the whole model disagree: {self.favoured} has the lower sum of layer errors "
            f"({self.layer_errors[0]:.4g} against {self.layer_errors[1]:.4g} of {self.better}) "
            f"but the higher divergence ({self.kl[0]:.4g} against {self.kl[1]:.4g}{doubt}); trust the divergence"
        )


def disagreement(candidates: Iterable[Judged]) -> list[Disagreement]:
    """Every pair of candidates whose order by summed layer error is not their order by divergence.

    A pair now and then is what makes a search over whole models worthwhile; if methods that are better layer by layer come out
    level or worse as a whole, suspect the calibration.

    Args:
        candidates: Those without a layer error or a divergence are left out; ties are no disagreement.
    """
    known = [(item, float(item.layer_error), float(item.kl)) for item in candidates if item.layer_error is not None and item.kl is not None]
    found = []
    for first, second in combinations(known, 2):
        if (first[1] - second[1]) * (first[2] - second[2]) >= 0:
            continue
        (low, low_error, high_kl), (high, high_error, low_kl) = sorted((first, second), key=lambda entry: entry[1])
        errors = (low.kl_stderr, high.kl_stderr)
        certain = None if errors[0] is None or errors[1] is None else high_kl - low_kl > 2 * math.hypot(errors[0], errors[1])
        found.append(Disagreement(low.name, high.name, (low_error, high_error), (high_kl, low_kl), certain))
    return found
