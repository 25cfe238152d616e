"""One layer as two thinner ones in a row, by a singular value decomposition of one of three ways to see a kernel as a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_choice, check_integer
from tersor.training.swapping import Layer, swap_layer, swappable

Scheme = Literal["channel", "spatial", "decouple"]


def matricised(weight: Tensor, scheme: Scheme) -> Tensor:
    """``weight`` as a matrix ``[rows, columns]`` whose rank is that of the layer, or a stack ``[out, in, kernel]`` of one a filter.

    Args:
        weight: ``[out, in]`` of a linear layer, which is left as it is, or ``[out, in, height, width]`` of a convolution.
        scheme: ``"channel"``: ``[out, in * height * width]``; ``"spatial"``: ``[in * height, out * width]``;
            ``"decouple"``: filter by filter.
    """
    if weight.ndim == 2:
        return weight
    if scheme == "channel":
        return weight.flatten(1)
    return weight.permute(1, 2, 0, 3).flatten(2).flatten(0, 1) if scheme == "spatial" else weight.flatten(2)


def as_weight(matrix: Tensor, shape: torch.Size, scheme: Scheme) -> Tensor:
    """The inverse of :func:`matricised`, for a weight of ``shape``."""
    if len(shape) == 4 and scheme == "spatial":
        out, inputs, height, width = shape
        return matrix.reshape(inputs, height, out, width).permute(2, 0, 1, 3)
    return matrix.reshape(shape)


def full_rank(weight: Tensor, scheme: Scheme) -> int:
    """The rank that no weight of this shape exceeds."""
    return min(matricised(weight, scheme).shape[-2:])


def factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """``U sqrt(S)`` and ``sqrt(S) V^T`` of the best approximation of ``rank``, of a matrix or of each of a stack."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    root = s[..., :rank].sqrt()
    return u[..., :rank] * root.unsqueeze(-2), root.unsqueeze(-1) * vh[..., :rank, :]


def factor_layer(layer: Layer, rank: int, scheme: Scheme = "channel") -> nn.Sequential:
    """The layer of ``rank`` that is closest to ``layer`` in its weights, as two plain layers.

    A convolution becomes, by ``scheme``,

    - ``"channel"``: one of the same kernel to ``rank`` channels, then 1 x 1;
    - ``"spatial"``: a column ``height x 1`` to ``rank`` channels, then a row ``1 x width``;
    - ``"decouple"``: 1 x 1 to ``rank`` channels for each output, then the kernel on each output's own channels alone.

    Stride, padding and dilation stay what they are; a linear layer is the same in all three.

    Args:
        layer: A plain linear layer or a convolution without groups.
        rank: At least 1, at most :func:`full_rank` of the weight, where the layer is reproduced.
        scheme: As above.

    Returns:
        New layers, with the type and device of ``layer`` and a copy of its bias on the second.

    Raises:
        InvalidArgument: If the rank is out of range, or the layer is of another type, grouped, or pads with something else than zeros.

    Example:
        >>> import torch
        >>> pair = factor_layer(torch.nn.Conv2d(16, 32, 3, padding=1, stride=2), rank=6, scheme="spatial")
        >>> pair[0].kernel_size, pair[1].kernel_size
        ((3, 1), (1, 3))
    """
    check_choice("scheme", scheme, Scheme)
    if type(layer) not in (nn.Linear, nn.Conv2d):
        raise InvalidArgument(f"only a plain linear layer or a two-dimensional convolution becomes two, not a {type(layer).__name__}")
    weight = layer.weight.detach()
    check_integer("rank", rank, 1, full_rank(weight, scheme))
    left, right = factors(matricised(weight, scheme), rank)
    # Without values of their own, whose drawing would move the global generator.
    options = {"device": "meta", "dtype": weight.dtype}
    has_bias = layer.bias is not None
    first: Layer
    second: Layer
    if isinstance(layer, nn.Linear):
        first = nn.Linear(layer.in_features, rank, bias=False, **options)
        second = nn.Linear(rank, layer.out_features, bias=has_bias, **options)
    else:
        first, second = _convolutions(layer, rank, scheme, options)
        if scheme == "decouple":
            # Filter o has its own [in, rank] and [rank, kernel].
            left, right = right, left.mT.flatten(0, 1)
        elif scheme == "spatial":
            # Here the rows of the matrix are the inputs.
            inputs, out = layer.in_channels, layer.out_channels
            left, right = right.reshape(rank, out, -1).transpose(0, 1), left.T.reshape(rank, inputs, -1)
    for factor, values in ((first, right), (second, left)):
        factor.weight = nn.Parameter(values.to(weight.dtype).reshape(factor.weight.shape).contiguous())
    if layer.bias is not None:
        second.bias = nn.Parameter(layer.bias.detach().clone())
    return nn.Sequential(first, second).train(layer.training)


def factor_model(
    model: nn.Module, ranks: Mapping[str, int], scheme: Scheme = "channel", *, only_smaller: bool = True,
) -> dict[str, int]:  # fmt: skip
    """Put :func:`factor_layer` in the place of layers of ``model``.

    Args:
        model: Changed in place; build a new optimizer afterwards.
        ranks: By dotted name of the layer.
        scheme: Of the convolutions.
        only_smaller: Leave a layer as it is whose factors would not save both weights and products.

    Returns:
        The ranks of the layers that were replaced.

    Raises:
        InvalidArgument: If a layer does not exist, or cannot be factored.
    """
    if not ranks:
        return {}
    layers = swappable(model, list(ranks), (), grouped=False)
    done = {name: rank for name, rank in ranks.items() if not only_smaller or saves(layers[name], rank, scheme)}
    for name, rank in done.items():
        swap_layer(model, layers[name], factor_layer(layers[name], rank, scheme))
    return done


def saves(layer: Layer, rank: int, scheme: Scheme) -> bool:
    """Whether two factors of ``rank`` have both fewer weights and fewer products than ``layer``."""
    rows, columns = matricised(layer.weight, scheme).shape[-2:]
    if isinstance(layer, nn.Linear) or scheme == "channel":
        weights = products = rank * (rows + columns)
    else:
        # The first factor is computed at positions that the second one's stride skips, along one axis or both.
        down, across = layer.stride
        inner, outer = rank * rows, rank * columns
        if scheme == "decouple":
            inner, outer = inner * layer.out_channels, outer * layer.out_channels
        skipped = across if scheme == "spatial" else down * across
        weights, products = inner + outer, inner * skipped + outer
    return max(weights, products) < layer.weight.numel()


def _convolutions(layer: nn.Conv2d, rank: int, scheme: Scheme, options: dict[str, object]) -> tuple[nn.Conv2d, nn.Conv2d]:
    if layer.groups != 1:
        raise InvalidArgument(f"a convolution in {layer.groups} groups is not one matrix; leave it out")
    if layer.padding_mode != "zeros":
        raise InvalidArgument(f"a convolution with padding_mode {layer.padding_mode!r} cannot be factored; only 'zeros' can")
    inputs, out, bias = layer.in_channels, layer.out_channels, layer.bias is not None
    (height, width), (down, across), (tall, wide) = layer.kernel_size, layer.stride, layer.dilation
    above, beside = (layer.padding, layer.padding) if isinstance(layer.padding, str) else layer.padding
    if scheme == "channel":
        kept = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        return _conv(inputs, rank, (height, width), options, bias=False, **kept), _conv(rank, out, (1, 1), options, bias=bias)
    if scheme == "spatial":
        column = {"stride": (down, 1), "padding": above if isinstance(above, str) else (above, 0), "dilation": (tall, 1)}
        row = {"stride": (1, across), "padding": beside if isinstance(beside, str) else (0, beside), "dilation": (1, wide)}
        return (
            _conv(inputs, rank, (height, 1), options, bias=False, **column), _conv(rank, out, (1, width), options, bias=bias, **row)
        )  # fmt: skip
    kept = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    return (
        _conv(inputs, rank * out, (1, 1), options, bias=False),
        _conv(rank * out, out, (height, width), options, bias=bias, groups=out, **kept),
    )


def _conv(inputs: int, out: int, kernel: tuple[int, int], options: dict[str, object], **more: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, out, kernel, **options, **more)  # type: ignore[arg-type]
