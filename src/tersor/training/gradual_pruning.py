"""Gradual pruning: remove the smallest weights while the model is trained, ever fewer at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_choice, check_integer, check_number
from tersor.training.guards import check_trained
from tersor.training.masks import Latent, check_places, check_shape, end_latent, global_masks, magnitude_mask, make_latent
from tersor.training.method import Method
from tersor.training.targets import prunable

if TYPE_CHECKING:
    from tersor.training.compression import Compression

Scope = Literal["layer", "global"]


@dataclass(eq=False)
class GradualPruning(Method):
    """Magnitude pruning along a cubic schedule, in any training loop.

    Use it when a model is trained anyway: at high sparsity it keeps far more than pruning a trained model at once, which
    :func:`tersor.layerwise.magnitude` does. Weights that are removed are zeros in the model itself after every step.

    Attributes:
        sparsity: Fraction removed in the end, of each weight or of all together, see ``scope``.
        initial_sparsity: Fraction removed at ``begin``.
        begin: Step of the optimizer with the first removal, or a share of the training; best once the loss has begun to fall.
        end: Step with the last one; leave a fifth of the training or more after it, and a learning rate that is not tiny yet.
        frequency: Steps from one removal to the next.
        power: Of the schedule; 3 removes fast at first, when weights are redundant.
        scope: ``"layer"``: every weight gets the same sparsity; ``"global"``: the smallest of all weights go.
        pattern: ``(keep_n, of_m)`` instead of free positions: 2 of 4 for ``(2, 4)``, whose sparsity must be that of the pattern.
        block: ``(rows, columns)`` of blocks that are kept or removed whole, by mean magnitude.
        regrow: Let removed weights go on being trained unseen, so that they return if others fall below them; else they are gone for good.
        targets: Names or patterns of layers, see :func:`tersor.training.prunable`; ``None`` for all but embeddings.
        ignore: What of those is left alone; the first convolution and depthwise ones are the usual choice.

    Raises:
        InvalidArgument: On an option out of range.

    Reference: Zhu, Gupta (2017), "To prune, or not to prune".
    """

    sparsity: float = 0.9
    initial_sparsity: float = 0.0
    begin: int | float = 0.2
    end: int | float = 0.8
    frequency: int = 100
    power: float = 3.0
    scope: Scope = "layer"
    pattern: tuple[int, int] | None = None
    block: tuple[int, int] | None = None
    regrow: bool = False
    targets: Sequence[str] | None = None
    ignore: Sequence[str] = ()
    _weights: dict[str, nn.Parameter] = field(default_factory=dict, init=False, repr=False)
    _masks: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _latent: dict[str, Latent] = field(default_factory=dict, init=False, repr=False)

    name = "gradual_pruning"

    def __post_init__(self) -> None:
        check_number("sparsity", self.sparsity, 0.0, 1.0)
        check_number("initial_sparsity", self.initial_sparsity, 0.0, 1.0)
        check_integer("frequency", self.frequency, 1)
        check_number("power", self.power, 0.0)
        check_choice("scope", self.scope, Scope)
        check_moments(self.begin, self.end)
        if self.initial_sparsity > self.sparsity:
            raise InvalidArgument(f"initial_sparsity {self.initial_sparsity:g} is above sparsity {self.sparsity:g}; pruning only goes up")
        check_places(self.pattern, self.block)
        if (self.pattern is not None or self.block is not None) and self.scope == "global":
            raise InvalidArgument("a pattern or blocks and the global scope exclude each other; give one")
        if self.pattern is not None:
            keep_n, of_m = self.pattern
            if abs(self.sparsity - (1 - keep_n / of_m)) > 1e-9:
                raise InvalidArgument(f"pattern {keep_n}:{of_m} has sparsity {1 - keep_n / of_m:g}, not {self.sparsity:g}; pass that")

    def attach(self, compression: Compression) -> None:
        """See :class:`Method`."""
        self._compression = compression
        self._weights = prunable(compression.model, self.targets, self.ignore)
        if compression.total_steps is not None:
            self._window()
        for name, weight in self._weights.items():
            check_shape(name, weight, self.pattern, self.block)
        if self.regrow:
            for name in self._weights:
                owner, _, leaf = name.rpartition(".")
                self._latent[name] = make_latent(compression.model.get_submodule(owner), leaf)

    def rewrites(self) -> frozenset[str]:
        """See :class:`Method`."""
        return frozenset(self._weights)

    def sparsity_at(self, step: int) -> float:
        """The fraction removed after ``step``: zero before ``begin``, then the cubic rise, then ``sparsity``."""
        begin, end = self._window()
        if step < begin:
            return 0.0
        left = 1 - min((step - begin) / max(end - begin, 1), 1.0) if step < end else 0.0
        return float(self.sparsity + (self.initial_sparsity - self.sparsity) * left**self.power)

    def _window(self) -> tuple[int, int]:
        """First and last removal in steps.

        Raises:
            InvalidArgument: If a share puts one before the other, or the training ends before the last.
        """
        begin, end = self._compression.resolve(self.begin), self._compression.resolve(self.end)
        total = self._compression.total_steps
        if end < begin:
            raise InvalidArgument(f"end {self.end} is step {end}, before begin at step {begin}; give a later one")
        if total is not None and end > total:
            raise InvalidArgument(f"end is step {end}, after the training of {total} steps; give an earlier one, or a share such as 0.8")
        return begin, end

    def after_step(self, step: int) -> None:
        """See :class:`Method`."""
        begin, end = self._window()
        if begin <= step <= end and ((step - begin) % self.frequency == 0 or step == end):
            self._update(self.sparsity_at(step))
        if not self.regrow:
            for name, mask in self._masks.items():
                self._weights[name].mul_(mask)

    def _update(self, sparsity: float) -> None:
        weights: Mapping[str, Tensor] = self._weights
        for name, weight in weights.items():
            check_trained(name, weight, self._compression.step)
        within = {} if self.regrow else self._masks
        if self.scope == "global":
            self._masks = global_masks(weights, sparsity, within)
        else:
            self._masks = {
                name: magnitude_mask(weight, sparsity, pattern=self.pattern, block=self.block, within=within.get(name))
                for name, weight in weights.items()
            }
        for name, latent in self._latent.items():
            latent.mask = self._masks[name]

    def finalize(self) -> None:
        """See :class:`Method`."""
        for name in self._latent:
            owner, _, leaf = name.rpartition(".")
            end_latent(self._compression.model.get_submodule(owner), leaf)
        self._latent.clear()
        for name, mask in self._masks.items():
            # Also takes the sign off zeros, so that what is saved holds one kind of zero.
            self._weights[name].masked_fill_(~mask, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """See :class:`Method`."""
        return dict(self._masks)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :class:`Method`."""
        self._masks = dict(state)
        for name, latent in self._latent.items():
            latent.mask = self._masks.get(name, latent.mask)

    def report(self) -> dict[str, Any]:
        """Sparsity by weight and of all, and the number of weights left."""
        kept = {name: int(self._masks[name].sum()) if name in self._masks else weight.numel() for name, weight in self._weights.items()}
        total = sum(weight.numel() for weight in self._weights.values())
        return {
            "sparsity": 1 - sum(kept.values()) / total, "nonzero": sum(kept.values()), "numel": total,
            "layers": {name: 1 - kept[name] / weight.numel() for name, weight in self._weights.items()},
        }  # fmt: skip


def check_moments(begin: int | float, end: int | float) -> None:
    """Refuse steps below zero, shares outside (0, 1), and an end before its beginning.

    Raises:
        InvalidArgument: Naming the option.
    """
    for key, value in (("begin", begin), ("end", end)):
        is_step = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if not is_step and not (isinstance(value, float) and 0 < value < 1):
            raise InvalidArgument(f"{key} must be a step of at least 0, or a share of the training between 0 and 1, got {value!r}")
    if type(begin) is type(end) and end < begin:
        raise InvalidArgument(f"end {end} is before begin {begin}; give a later one")


def equal_nonzero_width(factory: Callable[[int], nn.Module], nonzero: int, *, largest: int = 4096) -> int:
    """The smallest width at which a dense model has at least ``nonzero`` parameters: what a pruned model has to beat.

    Args:
        factory: Makes the model of a width of 1 or more; more width, more parameters.
        nonzero: Parameters of the pruned model that are not zero, biases and norms included.
        largest: Width at which the search gives up.

    Raises:
        InvalidArgument: If no width up to ``largest`` has as many.

    Example:
        >>> import torch
        >>> equal_nonzero_width(lambda width: torch.nn.Linear(width, 10), 95)
        9
    """
    check_integer("nonzero", nonzero, 1)
    for width in range(1, largest + 1):
        with torch.device("meta"):
            model = factory(width)
        if sum(parameter.numel() for parameter in model.parameters()) >= nonzero:
            return width
    raise InvalidArgument(f"no width up to {largest} has {nonzero} parameters; raise largest")
