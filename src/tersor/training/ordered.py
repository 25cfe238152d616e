"""Layers of two factors whose inner coordinates may be ordered by importance, so that any prefix of them is a layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_integer
from tersor.training.swapping import Layer, swap_layer

_SMALLEST = 1e-12


class OrderedLayer(nn.Module):
    """A linear layer or convolution as ``outer(inner(x))``, of which the first :attr:`used` inner coordinates are computed.

    A convolution becomes one of the same kernel to ``rank`` channels and a 1 x 1 convolution behind it. The factors start as
    ``U sqrt(S)`` and ``sqrt(S) V^T`` of the layer's singular value decomposition, so that nothing changes at full rank.

    Args:
        layer: Its weight is read as a matrix ``[out, in * kernel]``; the bias parameter is taken over as it is.

    Attributes:
        inner: From the inputs to the inner coordinates; no bias.
        outer: From those to the outputs.
        rank: Working rank: coordinates beyond it are never used again.
        sampled: How many coordinates a forward pass uses while it is trained; evaluation uses all of the working rank.
    """

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        weight = layer.weight.detach()
        full = min(weight.flatten(1).shape)
        self.inner, self.outer = _pair(layer, full)
        u, s, vh = torch.linalg.svd(weight.flatten(1).double(), full_matrices=False)
        self.inner.weight = nn.Parameter((s.sqrt().unsqueeze(1) * vh).to(weight.dtype).reshape(self.inner.weight.shape))
        self.outer.weight = nn.Parameter((u * s.sqrt()).to(weight.dtype).reshape(self.outer.weight.shape))
        self.outer.bias = layer.bias
        self.rank = self.sampled = full

    @property
    def used(self) -> int:
        """Inner coordinates that a forward pass computes now."""
        return min(self.sampled, self.rank) if self.training else self.rank

    def forward(self, x: Tensor) -> Tensor:
        """The layer at rank :attr:`used`."""
        return self.forward_rank(x, self.used)

    def forward_rank(self, x: Tensor, rank: int) -> Tensor:
        """The layer at any ``rank`` from 0 to full; a prefix of the factors is a view, so fewer coordinates cost less."""
        # No convolution of torch has zero outputs: rank 0 computes one coordinate and multiplies it by zero.
        count = max(rank, 1)
        inner, outer = self.inner.weight[:count], self.outer.weight[:, :count]
        outer = outer if rank else torch.zeros_like(outer)
        if isinstance(self.inner, nn.Linear):
            return F.linear(F.linear(x, inner), outer, self.outer.bias)
        return F.conv2d(self.inner._conv_forward(x, inner, None), outer, self.outer.bias)

    def matrix(self, rank: int) -> Tensor:
        """The dense matrix ``[out, in * kernel]`` at ``rank``."""
        return self.outer.weight[:, :rank].flatten(1) @ self.inner.weight[:rank].flatten(1)

    def tails(self) -> tuple[Tensor, Tensor]:
        """For each coordinate ``b`` of the working rank, the norms of all from ``b`` on, in both factors: ``[rank]`` each."""
        norms = self.column_norms()
        first, second = (torch.flip(torch.cumsum(torch.flip(part.square(), (0,)), 0), (0,)) for part in norms)
        # The floor under the root keeps the gradient of coordinates at zero zero.
        return (first + _SMALLEST).sqrt(), (second + _SMALLEST).sqrt()

    def column_norms(self) -> tuple[Tensor, Tensor]:
        """Norms of each coordinate of the working rank in ``outer`` and in ``inner``, ``[rank]`` each."""
        outer, inner = self.outer.weight[:, : self.rank].flatten(1), self.inner.weight[: self.rank].flatten(1)
        return (outer.square().sum(0) + _SMALLEST).sqrt(), (inner.square().sum(1) + _SMALLEST).sqrt()

    def importance(self) -> Tensor:
        """``[rank]``: the product of the two tails, which never rises; near zero from where the rest may be cut."""
        first, second = self.tails()
        return (first * second).detach()

    def parameters_at(self, rank: int) -> int:
        """Weights of the smaller of the factors and the dense layer at ``rank``."""
        rows, columns = self.shape
        return min(max(rank, 1) * (rows + columns), rows * columns)

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in * kernel)`` of the dense matrix."""
        return self.outer.weight.shape[0], self.inner.weight[0].numel()

    def plain(self, rank: int | None = None, *, merge: bool = True) -> nn.Module:
        """The layer at ``rank`` as modules of torch: a sequence of two layers.

        Args:
            rank: ``None`` for the working rank.
            merge: Make it one dense layer where two would hold more weights.
        """
        rank = self.rank if rank is None else rank
        rows, columns = self.shape
        count = max(rank, 1)
        if merge and count * (rows + columns) >= rows * columns:
            return self._merged(rank)
        inner, outer = _pair(self._dense_like(), count)
        inner.weight = nn.Parameter(self.inner.weight.detach()[:count].clone())
        kept = self.outer.weight.detach()[:, :count].clone()
        outer.weight = nn.Parameter(kept if rank else torch.zeros_like(kept))
        outer.bias = self.outer.bias
        return nn.Sequential(inner, outer).train(self.training)

    def _merged(self, rank: int) -> nn.Module:
        layer = self._dense_like()
        layer.weight = nn.Parameter(self.matrix(rank).detach().reshape(layer.weight.shape).clone())
        layer.bias = self.outer.bias
        return layer.train(self.training)

    def _dense_like(self) -> Layer:
        """A layer of the dense shape, without storage."""
        if isinstance(self.inner, nn.Linear):
            return nn.Linear(self.inner.in_features, self.outer.weight.shape[0], bias=False, device="meta")
        conv = self.inner
        size, options = cast("tuple[int, int]", conv.kernel_size), _options(conv)
        return nn.Conv2d(conv.in_channels, self.outer.weight.shape[0], size, bias=False, device="meta", **options)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        return f"{self.shape[0]} x {self.shape[1]}, rank {self.rank} of {self.inner.weight.shape[0]}"


def ordered_layers(model: nn.Module) -> dict[str, OrderedLayer]:
    """The ordered layers of ``model`` by dotted name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, OrderedLayer)}


def cut_ranks(model: nn.Module, ranks: Mapping[str, int] | float = 1.0, *, merge: bool = True) -> nn.Module:
    """Replace every :class:`OrderedLayer` of ``model`` by plain ones of lower rank: one training, many sizes.

    Copy the model first to cut it at several sizes, and estimate the statistics of batch norms anew after a cut.

    Args:
        model: Changed in place.
        ranks: By layer, those not named keep theirs; or the fraction of each working rank to keep, above 0 and at most 1, rounded up.
        merge: Make a layer dense where its factors would hold more weights.

    Returns:
        The model.

    Raises:
        InvalidArgument: If there is no such layer, or a rank is out of range.
    """
    layers = ordered_layers(model)
    if not layers:
        raise InvalidArgument(f"{type(model).__name__} has no ordered layer; Maestro puts them there, and its finalize() takes them away")
    if isinstance(ranks, Mapping):
        if unknown := sorted(ranks.keys() - layers.keys()):
            raise InvalidArgument(f"{unknown[0]!r} is no ordered layer; there are {', '.join(layers)}")
        chosen = {name: check_integer(f"rank of {name}", ranks.get(name, layer.rank), 0, layer.rank) for name, layer in layers.items()}
    else:
        if isinstance(ranks, bool) or not isinstance(ranks, (int, float)) or not 0 < ranks <= 1:
            raise InvalidArgument(f"ranks must be a fraction above 0 and at most 1, or ranks by layer, got {ranks!r}")
        # Nine digits: 0.28 * 25 is 7.000000000000001, which must not become 8.
        chosen = {name: -int(-round(ranks * layer.rank, 9) // 1) for name, layer in layers.items()}
    for name, layer in layers.items():
        swap_layer(model, layer, layer.plain(chosen[name], merge=merge))
    return model


def ranks_within(model: nn.Module, weights: int) -> dict[str, int]:
    """Ranks of the ordered layers of ``model`` with which they hold at most ``weights`` weights together.

    Coordinates are dropped from the ends, always the one whose tail is the smallest part of its layer's importance for each weight saved.

    Args:
        model: With :class:`OrderedLayer` in it; not changed.
        weights: Of all these layers together, biases not counted.

    Raises:
        InvalidArgument: If a rank of one everywhere holds more.
    """
    layers = ordered_layers(model)
    ranks = {name: layer.rank for name, layer in layers.items()}
    least = sum(layer.parameters_at(1) for layer in layers.values())
    if weights < least:
        raise InvalidArgument(f"rank 1 everywhere holds {least} weights, more than {weights}; allow more")
    shares = {name: (layer.importance() / layer.importance()[0]).tolist() for name, layer in layers.items() if layer.rank}
    total = sum(layer.parameters_at(ranks[name]) for name, layer in layers.items())
    while total > weights:
        # Where factors hold more than the dense layer one coordinate saves nothing; its layer then loses more of them.
        name = min((name for name in shares if ranks[name] > 1), key=lambda name: shares[name][ranks[name] - 1] / sum(layers[name].shape))
        before = layers[name].parameters_at(ranks[name])
        ranks[name] -= 1
        total -= before - layers[name].parameters_at(ranks[name])
    return ranks


def _pair(layer: Layer, rank: int) -> tuple[Layer, Layer]:
    """Two layers without storage that have the shape of ``layer`` in ``rank`` coordinates; their weights are set by the caller."""
    rows, device = layer.weight.shape[0], "meta"
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, rank, bias=False, device=device), nn.Linear(rank, rows, bias=False, device=device)
    size = cast("tuple[int, int]", layer.kernel_size)
    inner = nn.Conv2d(layer.in_channels, rank, size, bias=False, device=device, **_options(layer))  # type: ignore[arg-type]
    return inner, nn.Conv2d(rank, rows, 1, bias=False, device=device)


def _options(layer: nn.Conv2d) -> dict[str, object]:
    return {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
