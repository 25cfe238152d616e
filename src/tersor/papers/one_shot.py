"""What experiments with one-shot layerwise methods share: statistics of every layer once, then any assignment of weights measured."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tersor.layerwise import LayerStats, find_method
from tersor.layerwise.lord import affine_error
from tersor.models import Model
from tersor.papers.frame import Row
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
    """

    model: str
    calibration: int
    evaluation: int
    context: int
    text: str
    held_out: str


@dataclass(frozen=True)
class OneShot:
    """A model with the statistics of its layers' inputs and the windows that it is measured on.

    Attributes:
        model: The original; never changed.
        stats: Statistics by layer name, all taken from the original.
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
        from tersor.papers.workbench import split_texts

        fitted, held_out = (data.windows(model.encode(text), size.context) for text in split_texts(size.text, size.held_out))
        first = size.calibration // size.context
        apart = max(first // 8, 1)
        stats: dict[str, LayerStats] = {}
        unseen: dict[str, LayerStats] = {}
        for step in BlockWalk(model, fitted[:first], fitted[first : first + apart]):
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

    def divergence(self, small: Model) -> Any:
        """Perplexity and divergence of ``small`` from the original on the evaluation windows."""
        from tersor.papers.workbench import divergence_on

        return divergence_on(self.model, small, self.windows)

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
        return sum(affine_error(self.model.matrix(name), weight, stats[name]) for name, weight in weights.items()) / len(weights)
