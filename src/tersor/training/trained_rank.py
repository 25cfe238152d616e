"""Trained rank pruning: weights are cut to a low rank again and again while they are trained, so that the last cut costs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_choice, check_integer, check_number
from tersor.training.factored import Scheme, as_weight, factor_model, full_rank, matricised, saves
from tersor.training.guards import check_trained
from tersor.training.method import Method
from tersor.training.swapping import Layer, swappable

if TYPE_CHECKING:
    from tersor.training.compression import Compression

# Singular values below this share of the largest have directions that are rounding.
_NOISE = 1e-6


@dataclass(eq=False)
class TrainedRankPruning(Method):
    """Low-rank layers from a training that truncates the weights every few steps and lets them grow back in between.

    Use it where a network is trained anyway: cut to the same ranks after an ordinary training it would lose most of what it knows.
    :class:`Maestro` trains the factors themselves and finds ranks too; here the model stays ordinary until :meth:`Compression.finalize`,
    which leaves two thin layers in a row wherever they save both weights and products, at the ranks of the last truncation. Parameters
    are new after that: build another optimizer to fine-tune, and estimate batch norms anew if the last step did not truncate.

    Attributes:
        energy: Share of the squared singular values that a truncation keeps, above 0; each layer finds its rank. 1 truncates nothing.
        period: Steps of the optimizer from one truncation to the next. A truncation takes off ``1 - energy`` of what is left then, so
            that frequent ones press harder.
        nuclear_weight: Of the nuclear norm of the truncated weights, whose gradient joins the loss in the step after a truncation.
        scheme: How convolutions are cut in two, see :func:`tersor.training.factor_layer`.
        targets: Names or patterns of layers, see :func:`tersor.training.prunable`; ``None`` for all linear layers and convolutions that
            have no groups.
        ignore: What of those is left alone; the first convolution and the classifier are the usual choice.

    Raises:
        InvalidArgument: On an option out of range.

    Reference: Xu, Li, Zhang, Wen, Wang, Qi, Chen, Lin, Xiong (2020), "TRP: Trained Rank Pruning for Efficient Deep Neural Networks".
    """

    energy: float = 0.98
    period: int = 5
    nuclear_weight: float = 3e-4
    scheme: Scheme = "channel"
    targets: Sequence[str] | None = None
    ignore: Sequence[str] = ()
    _layers: dict[str, Layer] = field(default_factory=dict, init=False, repr=False)
    _ranks: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    _directions: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    name = "trained_rank_pruning"

    def __post_init__(self) -> None:
        number = isinstance(self.energy, (int, float)) and not isinstance(self.energy, bool)
        if not number or not 0 < self.energy <= 1:
            raise InvalidArgument(f"energy must be a number above 0 and at most 1, got {self.energy!r}")
        check_integer("period", self.period, 1)
        check_number("nuclear_weight", self.nuclear_weight, 0.0)
        check_choice("scheme", self.scheme, Scheme)

    def attach(self, compression: Compression) -> None:
        """See :class:`Method`."""
        self._compression = compression
        self._layers = swappable(compression.model, self.targets, self.ignore, grouped=False)

    def rewrites(self) -> frozenset[str]:
        """See :class:`Method`."""
        return frozenset(f"{name}.weight" for name in self._layers)

    def penalty(self) -> Tensor | None:
        """The weighted nuclear norm of all layers right after they were truncated, and else ``None``."""
        terms = [(self._layers[name].weight * direction).sum() for name, direction in self._directions.items()]
        return self.nuclear_weight * torch.stack(terms).sum() if terms else None

    def after_step(self, step: int) -> None:
        """See :class:`Method`."""
        self._directions = {}
        if step % self.period:
            return
        for name, layer in self._layers.items():
            weight, scheme = layer.weight, self.scheme
            check_trained(f"{name}.weight", weight, step)
            truncated, direction, self._ranks[name] = truncation(matricised(weight, scheme), self.energy)
            if self.energy < 1:
                weight.copy_(as_weight(truncated, weight.shape, scheme))
            if self.nuclear_weight:
                self._directions[name] = as_weight(direction, weight.shape, scheme).to(weight.dtype)

    def finalize(self) -> None:
        """See :class:`Method`."""
        for name, layer in self._layers.items():
            if name not in self._ranks:
                self._ranks[name] = truncation(matricised(layer.weight, self.scheme), self.energy)[2]
        factor_model(self._compression.model, self._ranks, self.scheme)

    def state_dict(self) -> dict[str, Any]:
        """See :class:`Method`."""
        return {"ranks": dict(self._ranks), **{f"direction.{name}": value for name, value in self._directions.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :class:`Method`."""
        self._ranks = dict(state["ranks"])
        self._directions = {key.removeprefix("direction."): value for key, value in state.items() if key != "ranks"}

    def report(self) -> dict[str, Any]:
        """The ranks of the last truncation by layer, what they could be at most, and which layers they make smaller."""
        return {
            "ranks": dict(self._ranks),
            "full": {name: full_rank(layer.weight, self.scheme) for name, layer in self._layers.items()},
            "smaller": [name for name, rank in self._ranks.items() if saves(self._layers[name], rank, self.scheme)],
        }


def truncation(matrix: Tensor, energy: float) -> tuple[Tensor, Tensor, int]:
    """Cut ``matrix`` to the smallest rank that keeps ``energy``.

    Not idempotent: what is cut off counts no more in the next truncation, which may find a lower rank.

    Args:
        matrix: ``[..., m, n]``; each of a stack finds its own rank.
        energy: Share of the squared singular values kept, above 0 and at most 1.

    Returns:
        The truncated matrix and ``U V^T`` of its singular vectors, both in float64, and the rank, the largest of a stack.
    """
    wide = matrix.detach().double()
    if turned := wide.shape[-2] > wide.shape[-1]:
        wide = wide.mT
    # The smaller Gram matrix takes a fraction of a singular value decomposition; in float64 it resolves what float32 can hold.
    values, vectors = torch.linalg.eigh(wide @ wide.mT)
    values, vectors = values.clamp(min=0).flip(-1), vectors.flip(-1)
    reached = values.cumsum(-1)
    ranks = ((reached < energy * reached[..., -1:]).sum(-1) + 1).clamp(max=values.shape[-1])
    kept = torch.arange(values.shape[-1], device=values.device) < ranks.unsqueeze(-1)
    basis = vectors * kept.unsqueeze(-2)
    coordinates = basis.mT @ wide
    told = kept & (values > _NOISE**2 * values[..., :1])
    inverse = torch.where(told, values.clamp(min=torch.finfo(values.dtype).tiny).rsqrt(), 0.0)
    truncated, direction = basis @ coordinates, (basis * inverse.unsqueeze(-2)) @ coordinates
    return (truncated.mT, direction.mT, int(ranks.max())) if turned else (truncated, direction, int(ranks.max()))
