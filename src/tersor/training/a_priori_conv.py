"""A-priori compressed convolutions: 1-way filters chosen before the first step, and nothing to do afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_choice, check_integer, check_number
from tersor.training.layers import put_layer
from tersor.training.method import Method
from tersor.training.one_way import Conv, Form, Start, factorise_conv, largest_rank, parameters, why_not
from tersor.training.targets import layers_of, prunable

if TYPE_CHECKING:
    from tersor.training.compression import Compression

_DEFAULT_KEEP = 0.5


@dataclass(eq=False)
class APrioriConv(Method):
    """Put 1-way filters in the place of two- and three-dimensional convolutions before training, and train those.

    Use it when the size is known before training and training itself has to be small too, in memory and in products, and compare
    with a narrower network of as many parameters. :class:`TrainedRankPruning` and :class:`Maestro` find ranks while they train. What is
    left in the model are plain convolutions, which other methods can go on pruning.

    Attributes:
        form: ``"sequential"``, ``"cp"`` or ``"per_kernel"``, see :func:`factorise_conv`.
        rank: Channels between the filters, or outer products a kernel.
        keep: Instead of a rank: fraction of a convolution's weights that its factors may have at most; 0.5 unless given.
        start: ``"random"``: drawn anew, with the size of the layer's own weights; ``"weights"``: the closest to them, for trained models.
        targets: Names or patterns of layers, see :func:`tersor.training.prunable`; ``None`` for every convolution that gets smaller.
        ignore: What of those is left alone.

    Raises:
        InvalidArgument: On an option out of range.

    Reference: Boukraichi et al. (2023), "A priori compression of convolutional neural networks for wave simulators".
    """

    form: Form = "sequential"
    rank: int | None = None
    keep: float | None = None
    start: Start = "random"
    targets: Sequence[str] | None = None
    ignore: Sequence[str] = ()
    _layers: dict[str, dict[str, int]] = field(default_factory=dict, init=False, repr=False)

    name = "a_priori_conv"

    def __post_init__(self) -> None:
        check_choice("form", self.form, Form)
        check_choice("start", self.start, Start)
        if self.rank is not None and self.keep is not None:
            raise InvalidArgument("give rank or keep, not both")
        if self.rank is not None:
            check_integer("rank", self.rank, 1)
        if self.keep is not None and check_number("keep", self.keep, 0.0, 1.0) == 0:
            raise InvalidArgument("keep must be above 0; with 0 nothing would be left")

    def attach(self, compression: Compression) -> None:
        """See :class:`Method`."""
        model = compression.model
        owners = Counter(id(module.weight) for _, module in model.named_modules(remove_duplicate=False) if hasattr(module, "weight"))
        for name, layer in layers_of(model, prunable(model, self.targets, self.ignore)).items():
            reason = why_not(layer, self.form, self.start)
            if not reason and owners[id(layer.weight)] > 1:
                reason = "shares its weight with another layer"
            if not reason:
                reason = self._swap(compression, name, layer)  # type: ignore[arg-type]
            if reason and self.targets is not None:
                raise InvalidArgument(f"{name} {reason}; name it in ignore")
        if not self._layers:
            raise InvalidArgument(f"{type(model).__name__} has no convolution of two axes or more that 1-way filters make smaller")

    def _swap(self, compression: Compression, name: str, conv: Conv) -> str:
        """Put the factors in the place of ``conv``, or say why not."""
        keep = _DEFAULT_KEEP if self.keep is None else self.keep
        rank = self.rank if self.rank is not None else largest_rank(conv, self.form, keep)
        ours, dense = parameters(conv, self.form, rank), conv.weight.numel()
        if ours >= dense or (self.rank is None and ours > keep * dense):
            return f"has {dense} weights and its factors of rank {rank} would have {ours}, which is too many"
        if not name:
            raise InvalidArgument("the model is itself the layer, which leaves no place to put another; wrap it in torch.nn.Sequential")
        factors: nn.Module = factorise_conv(conv, rank, form=self.form, start=self.start, generator=compression.generator)
        put_layer(compression.model, name, factors.train(conv.training))
        self._layers[name] = {"rank": rank, "weights": ours, "dense": dense}
        return ""

    def report(self) -> dict[str, Any]:
        """Rank and weights by layer, and the weights of all beside those of the dense convolutions."""
        total = {key: sum(layer[key] for layer in self._layers.values()) for key in ("weights", "dense")}
        return {**total, "layers": {name: dict(layer) for name, layer in self._layers.items()}}
