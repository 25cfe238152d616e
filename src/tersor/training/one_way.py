"""Convolutions as successions of 1-way filters: built from a dense one, and merged back into one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_choice, check_integer
from tersor.layerwise.low_rank import leading_directions

Form = Literal["sequential", "cp", "per_kernel"]
Start = Literal["random", "weights"]
Conv = nn.Conv2d | nn.Conv3d


class PerKernelConv(nn.Module):
    """A convolution of which every kernel is a sum of outer products of vectors; the kernels are put together in each forward pass.

    Few numbers are stored and trained, and as many products computed as by a dense convolution.

    Args:
        in_channels: Of the input.
        out_channels: Of the output.
        kernel_size: Two sizes, or three.
        rank: Outer products a kernel.
        stride: By axis.
        padding: By axis, with zeros, or ``"same"`` or ``"valid"``.
        dilation: By axis.
        bias: Whether there is one.
        device: Of the parameters, which are not initialised.
        dtype: Of the parameters.

    Reference: Boukraichi et al. (2023), "A priori compression of convolutional neural networks for wave simulators".
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Sequence[int], rank: int, stride: Sequence[int],
        padding: Sequence[int] | str, dilation: Sequence[int], bias: bool = True, device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.in_channels, self.out_channels, self.rank = in_channels, out_channels, rank
        self.kernel_size, self.stride, self.dilation = tuple(kernel_size), tuple(stride), tuple(dilation)
        self.padding = padding if isinstance(padding, str) else tuple(padding)
        shape = (out_channels, in_channels, rank)
        self.factors = nn.ParameterList(torch.empty(*shape, size, device=device, dtype=dtype) for size in self.kernel_size)
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None

    def kernel(self) -> Tensor:
        """The dense kernel ``[out, in, *kernel_size]``."""
        letters = "abc"[: len(self.kernel_size)]
        return torch.einsum(",".join(f"oir{letter}" for letter in letters) + f"->oi{letters}", *self.factors)

    def forward(self, inputs: Tensor) -> Tensor:
        """The convolution of ``inputs`` ``[n, in_channels, ...]``."""
        convolve: Any = F.conv2d if len(self.kernel_size) == 2 else F.conv3d
        outputs: Tensor = convolve(inputs, self.kernel(), self.bias, self.stride, self.padding, self.dilation)
        return outputs


def factorise_conv(
    conv: Conv, rank: int | None = None, *, form: Form = "sequential", start: Start = "random", generator: torch.Generator | None = None,
) -> nn.Sequential | PerKernelConv:  # fmt: skip
    """1-way filters in place of ``conv``, with nothing between them.

    Args:
        conv: A plain two- or three-dimensional convolution in one group, of two axes or more that are wider than one.
        rank: Channels between the filters, or outer products a kernel; no more are used than can be of use. ``None`` for all of those.
        form: ``"sequential"``: one convolution an axis, all channels mixed by each. ``"cp"``: a 1 x 1 convolution, one filter a channel
            and axis, and a 1 x 1 convolution; fewest parameters, slow on CPUs. ``"per_kernel"``: every kernel of its own as a sum of outer
            products, as many products computed as densely.
        start: ``"random"``: drawn, with the mean square of the kernel of ``conv``, so that signals keep their size. ``"weights"``: the
            closest to ``conv`` that successive singular value decompositions find, exact at full rank.
        generator: What ``"random"`` draws from.

    Returns:
        Plain convolutions in a sequence, or a :class:`PerKernelConv`; with the stride, padding, dilation and bias of ``conv``.

    Raises:
        InvalidArgument: If ``conv`` has no such form, or an option is out of range.

    Reference: Boukraichi et al. (2023), "A priori compression of convolutional neural networks for wave simulators".
    """
    check_choice("form", form, Form)
    check_choice("start", start, Start)
    if rank is not None:
        check_integer("rank", rank, 1)
    if reason := why_not(conv, form, start):
        raise InvalidArgument(f"the convolution {reason}")
    if start == "random" and generator is None:
        raise InvalidArgument("a random start needs generator=torch.Generator().manual_seed(...)")
    layer = _skeleton(conv, form, rank)
    with torch.no_grad():
        if generator is not None and start == "random":
            _draw(layer, conv, generator)
        else:
            for weight, value in zip(_weights(layer), _decomposed(conv, form, rank), strict=True):
                weight.copy_(value.reshape(weight.shape))
        bias: Any = layer.bias if isinstance(layer, PerKernelConv) else getattr(layer[-1], "bias")  # noqa: B009 - a union of modules
        if conv.bias is not None:
            bias.copy_(conv.bias)
    return layer


def why_not(conv: nn.Module, form: Form, start: Start) -> str:
    """What keeps ``conv`` from the ``form``, as the end of a sentence; empty if nothing does."""
    if type(conv) not in (nn.Conv2d, nn.Conv3d):
        return f"is a {type(conv).__name__}; only plain two- and three-dimensional convolutions become 1-way filters"
    assert isinstance(conv, (nn.Conv2d, nn.Conv3d))
    if conv.groups > 1:
        return f"is in {conv.groups} groups; only one in a single group becomes 1-way filters"
    if len(_axes(conv)) < 2:
        return f"has a kernel of {' x '.join(map(str, conv.kernel_size))}, which is a 1-way filter already"
    if form == "per_kernel" and conv.padding_mode != "zeros":
        return f"pads with {conv.padding_mode!r}, which the per_kernel form does not; use the sequential form"
    if start == "weights" and (form == "cp" or (form == "per_kernel" and conv.weight.ndim > 4)):
        return f"has no {form} form from its weights; use start='random', or the sequential form"
    if not bool(torch.isfinite(conv.weight).all()):
        return "holds NaN or Inf"
    return ""


def parameters(conv: Conv, form: Form, rank: int | None) -> int:
    """Weights of the factors of ``conv``, its bias not counted."""
    sizes, width = [conv.kernel_size[axis] for axis in _axes(conv)], _useful(conv, form, rank)
    if form == "cp":
        return width * (conv.in_channels + sum(sizes) + conv.out_channels)
    if form == "per_kernel":
        return conv.in_channels * conv.out_channels * width * sum(conv.kernel_size)
    ranks = [conv.in_channels, *_ranks(conv, rank), conv.out_channels]
    return sum(ranks[index] * size * ranks[index + 1] for index, size in enumerate(sizes))


def largest_rank(conv: Conv, form: Form, keep: float) -> int:
    """The largest rank whose factors have at most ``keep`` of the weights of ``conv``, at least 1."""
    rank, most = 1, _useful(conv, form, None)
    while rank < most and parameters(conv, form, rank + 1) <= keep * conv.weight.numel():
        rank += 1
    return rank


@torch.no_grad()
def merge_conv(layer: nn.Sequential | PerKernelConv) -> Conv:
    """The one dense convolution that computes what the factors do; the inverse of :func:`factorise_conv`.

    Raises:
        InvalidArgument: If ``layer`` is not made of convolutions without anything between them.
    """
    if isinstance(layer, PerKernelConv):
        options = {key: getattr(layer, key) for key in ("stride", "padding", "dilation")}
        return _dense(layer.kernel(), layer.bias, options)
    factors: list[Any] = list(layer) if isinstance(layer, nn.Sequential) else []
    if not factors or any(type(factor) not in (nn.Conv2d, nn.Conv3d) for factor in factors):
        raise InvalidArgument("only the factors of a convolution merge: a torch.nn.Sequential of convolutions, or a PerKernelConv")
    kernel = factors[0].weight
    for factor in factors[1:]:
        if factor.groups > 1:
            kernel = kernel * factor.weight
        else:
            # [out, b..., in] times [in, first, a...]: of each pair of sizes a and b one is 1.
            n_axes = factor.weight.ndim - 2
            product = torch.tensordot(factor.weight.movedim(1, -1), kernel, dims=1)
            pairs = [axis for index in range(n_axes) for axis in (1 + index, 2 + n_axes + index)]
            kernel = product.permute(0, 1 + n_axes, *pairs)
            kernel = kernel.reshape(*kernel.shape[:2], *(kernel.shape[2 + 2 * i] * kernel.shape[3 + 2 * i] for i in range(n_axes)))
    by_axis = {key: list(zip(*(getattr(factor, key) for factor in factors), strict=True)) for key in ("stride", "dilation")}
    options = {key: tuple(math.prod(values) for values in axes) for key, axes in by_axis.items()}
    padding = factors[0].padding
    if not isinstance(padding, str):
        padding = tuple(sum(values) for values in zip(*(factor.padding for factor in factors), strict=True))
    return _dense(kernel, factors[-1].bias, options | {"padding": padding, "padding_mode": factors[0].padding_mode})


def _dense(kernel: Tensor, bias: Tensor | None, options: dict[str, Any]) -> Conv:
    kind = nn.Conv2d if kernel.ndim == 4 else nn.Conv3d
    size = tuple(kernel.shape[2:])
    layer: Any = nn.utils.skip_init(
        kind, kernel.shape[1], kernel.shape[0], size, bias=bias is not None, device=kernel.device, dtype=kernel.dtype, **options
    )
    layer.weight.copy_(kernel)
    if bias is not None:
        layer.bias.copy_(bias)
    merged: Conv = layer
    return merged


def _axes(conv: Conv) -> list[int]:
    """The axes that get a filter of their own."""
    return [axis for axis, size in enumerate(conv.kernel_size) if size > 1]


def _useful(conv: Conv, form: Form, rank: int | None) -> int:
    """``rank``, but no more than can be of use."""
    sizes = [conv.kernel_size[axis] for axis in _axes(conv)]
    if form == "sequential":
        return max(_ranks(conv, rank))
    rest = math.prod(sizes) // max(sizes)
    most = rest if form == "per_kernel" else rest * min(conv.in_channels, conv.out_channels)
    return most if rank is None else min(rank, most)


def _ranks(conv: Conv, rank: int | None) -> list[int]:
    """Channels after each filter but the last."""
    sizes = [conv.kernel_size[axis] for axis in _axes(conv)]
    ranks, before = [], conv.in_channels
    for index, size in enumerate(sizes[:-1]):
        full = min(before * size, math.prod(sizes[index + 1 :]) * conv.out_channels)
        before = full if rank is None else min(rank, full)
        ranks.append(before)
    return ranks


def _skeleton(conv: Conv, form: Form, rank: int | None) -> nn.Sequential | PerKernelConv:
    """The layers with values that mean nothing yet."""
    with_bias = conv.bias is not None
    width = _useful(conv, form, rank)
    if form == "per_kernel":
        own = (conv.in_channels, conv.out_channels, conv.kernel_size, width, conv.stride, conv.padding, conv.dilation)
        return PerKernelConv(*own, with_bias, conv.weight.device, conv.weight.dtype)
    axes = _axes(conv)
    # What an axis of size 1 has of a stride or padding goes with the first filter.
    shares = [{axes[0], *(set(range(len(conv.kernel_size))) - set(axes))}, *({axis} for axis in axes[1:])]
    if form == "cp":
        plan = [(conv.in_channels, width, set(), 1), *((width, width, own, width) for own in shares), (width, conv.out_channels, set(), 1)]
    else:
        ranks = [conv.in_channels, *_ranks(conv, rank), conv.out_channels]
        plan = [(ranks[index], ranks[index + 1], own, 1) for index, own in enumerate(shares)]
    last = len(plan) - 1
    return nn.Sequential(*(_factor(conv, *entry, with_bias and index == last) for index, entry in enumerate(plan)))


def _factor(conv: Conv, inputs: int, outputs: int, axes: set[int], groups: int, bias: bool) -> nn.Module:
    def own(values: Sequence[int], rest: int) -> tuple[int, ...]:
        return tuple(value if axis in axes else rest for axis, value in enumerate(values))

    padding = conv.padding if isinstance(conv.padding, str) else own(conv.padding, 0)
    return nn.utils.skip_init(
        type(conv), inputs, outputs, own(conv.kernel_size, 1), own(conv.stride, 1), padding, own(conv.dilation, 1), groups, bias,
        conv.padding_mode, device=conv.weight.device, dtype=conv.weight.dtype,
    )  # fmt: skip


def _weights(layer: nn.Sequential | PerKernelConv) -> list[Any]:
    return list(layer.factors) if isinstance(layer, PerKernelConv) else [factor.weight for factor in layer]


def _draw(layer: nn.Sequential | PerKernelConv, conv: Conv, generator: torch.Generator) -> None:
    """Gaussian factors that keep the size of signals, the last one such that the kernel has the mean square of that of ``conv``."""
    weights = _weights(layer)
    for weight in weights:
        fan_in = weight.shape[-1] if isinstance(layer, PerKernelConv) else weight[0].numel()
        draw = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        weight.copy_(draw / math.sqrt(fan_in))
    drawn = float(merge_conv(layer).weight.double().square().mean())
    weights[-1].mul_(math.sqrt(float(conv.weight.double().square().mean()) / drawn))


def _decomposed(conv: Conv, form: Form, rank: int | None) -> Iterator[Tensor]:
    """The factors' weights, in their order but of other shapes."""
    kernel = conv.weight.double()
    if form == "per_kernel":
        basis, _ = leading_directions(kernel, _useful(conv, form, rank))
        rest = basis.mT @ kernel
        balance = _balance(rest, -1).unsqueeze(-1)
        yield (basis.mT * balance).contiguous()
        yield rest / balance
        return
    axes = _axes(conv)
    sizes = [conv.kernel_size[axis] for axis in axes]
    # [in, sizes..., out], cut once after each axis.
    rest = kernel.movedim(0, -1).reshape(conv.in_channels, *sizes, conv.out_channels)
    before, cores = conv.in_channels, []
    for size, width in zip(sizes[:-1], _ranks(conv, rank), strict=True):
        matrix = rest.reshape(before * size, -1)
        basis, _ = leading_directions(matrix, width)
        cores.append(basis.reshape(before, size, width))
        rest, before = basis.mT @ matrix, width
    cores.append(rest.reshape(before, sizes[-1], conv.out_channels))
    for index in range(len(cores) - 1):
        # Both sides of a cut get the same norms, channel by channel.
        balance = _balance(cores[index + 1].flatten(1), 1)
        cores[index], cores[index + 1] = cores[index] * balance, cores[index + 1] / balance[:, None, None]
    for core in cores:
        yield core.permute(2, 0, 1)


def _balance(values: Tensor, dim: int) -> Tensor:
    return values.norm(dim=dim).clamp(min=1e-30).sqrt()
