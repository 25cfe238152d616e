"""Maestro: train factors whose coordinates order themselves by importance, and drop those that stay unimportant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from tersor.layerwise.checking import check_choice, check_integer, check_number
from tersor.training.guards import check_trained
from tersor.training.method import Method
from tersor.training.ordered import OrderedLayer, cut_ranks
from tersor.training.swapping import swap_layer, swappable

if TYPE_CHECKING:
    from tersor.training.compression import Compression

Sampler = Literal["one_layer", "every_layer", "none"]


@dataclass(eq=False)
class Maestro(Method):
    """Low-rank factors in place of weights, trained at a rank that is drawn anew for each step.

    Coordinates that come first are trained at every rank, later ones at few, so that they order themselves: any prefix is a good layer,
    and :func:`tersor.training.cut_ranks` gives models of several sizes from one training. A group lasso over tails pulls unneeded
    coordinates to zero, and after each epoch those below the threshold are dropped. Unlike trained-rank pruning no decomposition is
    computed on the way, and the loss itself, not the weight's spectrum, says what is important.

    The rank holds from one step of the optimizer to the next, so accumulated gradients and recomputed activations see the same. Evaluation
    uses the whole working rank. The paper adds the loss at full rank, and lets it teach the drawn rank; that takes two passes in the loop::

        with maestro.full_rank():
            full = model(x)
        loss = F.cross_entropy(full, labels) + F.cross_entropy(model(x), full.detach().softmax(-1))

    Attributes:
        sampler: ``"one_layer"``: each step draws the rank of one layer, every pair of layer and rank once a sweep; ``"every_layer"``: each
            layer's rank is drawn independently; ``"none"``: always the working rank, which leaves the lasso alone.
        group_lasso: Weight of the penalty, see :meth:`penalty`; the paper searches powers of two times 1e-6.
        hierarchical: Penalise tails, which orders coordinates; else each coordinate for itself.
        threshold: Coordinates whose importance is below are dropped when an epoch ends.
        least_rank: Never go below; 0 allows a layer that only adds its bias.
        merge: In the end, make a layer dense again where its factors would hold more weights.
        targets: Names or patterns of layers, see :func:`tersor.training.prunable`; ``None`` for all linear layers and convolutions.
        ignore: What of those is left alone; the paper leaves the first layers of deep networks.

    Raises:
        InvalidArgument: On an option out of range.

    Reference: Horvath, Laskaridis, Rajput, Wang (2024), "Maestro: Uncovering low-rank structures via trainable decomposition".
    """

    sampler: Sampler = "one_layer"
    group_lasso: float = 1e-6
    hierarchical: bool = True
    threshold: float = 1e-5
    least_rank: int = 1
    merge: bool = True
    targets: Sequence[str] | None = None
    ignore: Sequence[str] = ()
    _layers: dict[str, OrderedLayer] = field(default_factory=dict, init=False, repr=False)
    _sweep: Tensor | None = field(default=None, init=False, repr=False)
    _next: int = field(default=0, init=False, repr=False)
    _history: list[dict[str, int]] = field(default_factory=list, init=False, repr=False)

    name = "maestro"

    def __post_init__(self) -> None:
        check_choice("sampler", self.sampler, Sampler)
        check_number("group_lasso", self.group_lasso, 0.0)
        check_number("threshold", self.threshold, 0.0)
        check_integer("least_rank", self.least_rank, 0)

    def attach(self, compression: Compression) -> None:
        """See :class:`Method`."""
        self._compression = compression
        model = compression.model
        found = swappable(model, self.targets, self.ignore, grouped=False)
        for name, layer in found.items():
            self._layers[name] = OrderedLayer(layer).train(layer.training)
            swap_layer(model, layer, self._layers[name])
        self._draw()

    def rewrites(self) -> frozenset[str]:
        """See :class:`Method`; the factors are none of its own, but a mask on one would end what their order means."""
        return frozenset(f"{name}.{part}" for name in self._layers for part in ("weight", "inner.weight", "outer.weight"))

    @contextmanager
    def full_rank(self) -> Iterator[None]:
        """Passes inside use the whole working rank, as evaluation does, whatever was drawn for this step."""
        drawn = {name: layer.sampled for name, layer in self._layers.items()}
        try:
            for layer in self._layers.values():
                layer.sampled = layer.rank
            yield
        finally:
            for name, layer in self._layers.items():
                layer.sampled = drawn[name]

    def penalty(self) -> Tensor | None:
        """``group_lasso * sum_b (||U_b:|| + ||V_b:||)`` over layers and coordinates ``b``, with tails ``b:`` if hierarchical."""
        if self.group_lasso == 0:
            return None
        terms = [
            torch.cat(layer.tails() if self.hierarchical else layer.column_norms()).sum() for layer in self._layers.values() if layer.rank
        ]
        return self.group_lasso * torch.stack(terms).sum() if terms else None

    def after_step(self, step: int) -> None:
        """See :class:`Method`."""
        self._draw()

    def epoch_end(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Drop the coordinates from the first one whose importance is below the threshold."""
        before = self.ranks
        for name, layer in self._layers.items():
            check_trained(name, layer.importance(), self._compression.step)
            needed = int((layer.importance() >= self.threshold).sum())
            layer.rank = min(max(needed, self.least_rank), layer.rank)
        self._history.append(self.ranks)
        if self.ranks != before:
            self._sweep = None
            self._draw()

    @property
    def ranks(self) -> dict[str, int]:
        """Working rank by layer."""
        return {name: layer.rank for name, layer in self._layers.items()}

    @property
    def importance(self) -> dict[str, Tensor]:
        """Importance of the coordinates ``[rank]`` by layer, see :meth:`OrderedLayer.importance`."""
        return {name: layer.importance() for name, layer in self._layers.items()}

    def _draw(self) -> None:
        """Choose the ranks of the next step."""
        generator = self._compression.generator
        for layer in self._layers.values():
            layer.sampled = layer.rank
        if self.sampler == "every_layer":
            for layer in self._layers.values():
                if layer.rank:
                    layer.sampled = int(torch.randint(1, layer.rank + 1, (), generator=generator))
        elif self.sampler == "one_layer":
            pairs = [(layer, rank) for layer in self._layers.values() for rank in range(1, layer.rank + 1)]
            if not pairs:
                return
            if self._sweep is None or self._next == len(self._sweep):
                self._sweep, self._next = torch.randperm(len(pairs), generator=generator), 0
            layer, layer.sampled = pairs[int(self._sweep[self._next])]
            self._next += 1

    def finalize(self) -> None:
        """See :class:`Method`."""
        if self._layers:
            cut_ranks(self._compression.model, self.ranks, merge=self.merge)
        self._final = self._report()
        self._layers.clear()

    def state_dict(self) -> dict[str, Any]:
        """See :class:`Method`."""
        return {
            "ranks": self.ranks, "sampled": {name: layer.sampled for name, layer in self._layers.items()}, "next": self._next,
            "history": self._history, "sweep": self._sweep,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :class:`Method`."""
        for name, layer in self._layers.items():
            layer.rank, layer.sampled = state["ranks"][name], state["sampled"][name]
        self._sweep, self._next, self._history = state["sweep"], state["next"], list(state["history"])

    def report(self) -> dict[str, Any]:
        """Working ranks by layer, now and after each epoch, the full ranks, and weights of the layers then and dense."""
        return self._report() if self._layers else self._final

    def _report(self) -> dict[str, Any]:
        dense = {name: layer.shape[0] * layer.shape[1] for name, layer in self._layers.items()}
        held = {name: layer.parameters_at(layer.rank) for name, layer in self._layers.items()}
        return {
            "ranks": self.ranks, "full_ranks": {name: min(layer.shape) for name, layer in self._layers.items()},
            "weights": sum(held.values()), "dense_weights": sum(dense.values()), "history": self._history,
        }  # fmt: skip
