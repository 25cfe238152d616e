"""Accordion: send more of a layer while its gradient still changes fast, and less once it has calmed down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tersor.errors import InvalidArgument


@dataclass(frozen=True)
class Accordion:
    """Two settings in place of the uniform one, by whether the norm of a layer's gradient still changes from one choice to the next.

    A layer is in a critical regime if that norm changed by ``threshold`` of itself or more, and before anything is known of it.

    Attributes:
        calm: Setting of calm layers, as a multiple of the uniform one.
        critical: Of those in a critical regime, likewise. With ranks of 32, the defaults are the 20 and 48 of L-GreCo's experiments.
        threshold: Relative change of the norm that counts as fast.

    Raises:
        InvalidArgument: If a value is out of range.

    Reference:
        Agarwal, Wang, Lee, Venkataraman, Papailiopoulos: "Adaptive Gradient Communication via Critical Learning Regime Identification",
        2021.
    """

    calm: float = 0.625
    critical: float = 1.5
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.calm <= 1 <= self.critical < math.inf:
            raise InvalidArgument(f"calm must be above 0 and at most 1 and critical at least 1, got {self.calm} and {self.critical}")
        if not 0 < self.threshold < math.inf:
            raise InvalidArgument(f"threshold must be positive and finite, got {self.threshold}")

    def factor(self, before: float | None, now: float) -> float:
        """The multiple of the uniform setting for a layer.

        Args:
            before: Norm of its gradient at the last choice, ``None`` at the first.
            now: Norm at this one.
        """
        return self.critical if before is None or abs(before - now) >= self.threshold * before else self.calm


def nearest(knobs: Sequence[int], wanted: float) -> int:
    """Place of the setting that is closest to ``wanted``, of two the smaller."""
    return min(range(len(knobs)), key=lambda index: (abs(knobs[index] - wanted), knobs[index]))
