"""What experiments with one-shot layerwise methods share: statistics of every layer once, then any assignment of weights measured."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from tersor.layerwise import LayerStats, find_method, layer_error
from tersor.models import Model
from tersor.papers.frame import Row
from tersor.papers.workbench import Judge, Judged, split_texts
from tersor.weights import CompressedWeight, distinct_nbytes


@dataclass(frozen=True)
class Size:
    """How much work an experiment spends.

    Attributes:
        model: What ``tersor.load`` takes.
        calibration: Tokens that layers are fitted to.
        evaluation: Tokens that models are measured on.
        context: Tokens of a window.
        text: Fitted on.
        held_out: Measured on; ``NAME.tail`` is the last fifth of ``NAME``.
        every: Of each so many blocks compress some in the middle, and leave the others as they are.
        together: How many.
    """

    model: str
    calibration: int
    evaluation: int
    context: int
    text: str
    held_out: str
    every: int = 1
    together: int = 1

    def chosen(self, block: int) -> bool:
        """Whether a block is compressed."""
        return 0 <= block % self.every - self.every // 2 < self.together

    @property
    def note(self) -> str:
        """What was spent, for the notes of a result."""
        blocks = "every block" if self.every == 1 else f"{self.together} of {self.every} blocks"
        return f"{blocks} compressed; {self.calibration:,} tokens to fit, {self.evaluation:,} to measure, so that one core takes minutes"


@dataclass(frozen=True)
class OneShot:
    """A model with the statistics of its layers' inputs and the windows that it is measured on.

    Attributes:
        model: The original; never changed.
        stats: Statistics by name of the layers that are compressed, all taken from the original.
        held_out: The same on windows that no layer is fitted to.
        fitted: The calibration windows.
        windows: The evaluation windows ``[n, context]``.
        seconds: Spent in layerwise methods, by label.
    """

    model: Model
    stats: dict[str, LayerStats]
    held_out: dict[str, LayerStats]
    fitted: Tensor
    windows: Tensor
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def prepare(cls, model: Model, size: Size) -> OneShot:
        """Walk the blocks of ``model`` once."""
        from tersor import data
        from tersor.models.blocks import BlockWalk

        fitted, held_out = (data.windows(model.encode(text), size.context) for text in split_texts(size.text, size.held_out))
        first = size.calibration // size.context
        apart = max(first // 8, 1)
        stats: dict[str, LayerStats] = {}
        unseen: dict[str, LayerStats] = {}
        for step in BlockWalk(model, fitted[:first], fitted[first : first + apart]):
            if size.chosen(step.index):
                stats |= step.stats
                unseen |= step.held_out
        return cls(model, stats, unseen, fitted[:first], held_out[: size.evaluation // size.context])

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """``(out_features, in_features)`` of every layer of the blocks."""
        return {name: self.model.shape(name) for name in self.stats}

    def weight(self, name: str, method: str, **options: Any) -> CompressedWeight:
        """One layer by a registered method."""
        return find_method(method).function(self.model.matrix(name), self.stats[name], **options)

    def everywhere(self, label: str, method: str, **options: Any) -> dict[str, CompressedWeight]:
        """Every layer of the blocks by a registered method; its time is kept under ``label``."""
        began = time.perf_counter()
        weights = {name: self.weight(name, method, **options) for name in self.stats}
        self.seconds[label] = time.perf_counter() - began
        return weights

    def assembled(self, weights: Mapping[str, CompressedWeight]) -> Model:
        """A copy of the model with ``weights`` in the place of its layers."""
        small = self.model.copy()
        for name, weight in weights.items():
            small.replace(name, weight)
        return small

    @cached_property
    def judge(self) -> Judge:
        """Measures models on the evaluation windows."""
        return Judge.of(self.model, self.windows)

    def divergence(self, small: Model) -> Judged:
        """Perplexity and divergence of ``small`` from the original on the evaluation windows."""
        return self.judge(small)

    def row(self, method: str, weights: Mapping[str, CompressedWeight], **labels: Any) -> Row:
        """A line of a table: bytes of the replaced layers, mean layer errors, divergence and perplexity of the model."""
        measured = self.divergence(self.assembled(weights))
        entries = sum(weight.shape[0] * weight.shape[1] for weight in weights.values())
        nbytes = distinct_nbytes(weights.values())
        return {
            "method": method, **labels, "layer_bytes": nbytes, "of_16_bit": nbytes / (2 * entries),
            "error": self._mean_error(weights, self.stats), "held_out_error": self._mean_error(weights, self.held_out),
            "kl": measured.kl, "perplexity": measured.perplexity, "seconds": self.seconds.get(method),
        }  # fmt: skip

    def _mean_error(self, weights: Mapping[str, CompressedWeight], stats: Mapping[str, LayerStats]) -> float:
        return sum(layer_error(self.model.matrix(name), weight, stats[name]) for name, weight in weights.items()) / len(weights)
