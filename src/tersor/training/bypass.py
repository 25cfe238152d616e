"""A convolution of which few filters are left, beside a cheap path that still makes every channel."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Bypass(nn.Module):
    """A depthwise convolution, a grouped one of 1 x 1 whose channels are then mixed, and a norm: a far cheaper stand-in for a convolution.

    Args:
        conv: The convolution that it stands beside.
        generator: Of the initial weights; ``None`` leaves them to be loaded.
    """

    def __init__(self, conv: nn.Conv2d, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.groups = math.gcd(conv.in_channels, conv.out_channels, 4)
        self.spatial = nn.Conv2d(
            conv.in_channels, conv.in_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.in_channels, bias=False  # type: ignore[arg-type]
        )  # fmt: skip
        self.channels = nn.Conv2d(conv.in_channels, conv.out_channels, 1, groups=self.groups, bias=False)
        self.norm = nn.BatchNorm2d(conv.out_channels)
        if generator is not None:
            for weight in (self.spatial.weight, self.channels.weight):
                values = torch.randn(weight.shape, generator=generator) * math.sqrt(2 / weight[0].numel())
                weight.data.copy_(values)

    def forward(self, x: Tensor) -> Tensor:
        y = self.channels(self.spatial(x))
        if self.groups > 1:
            y = y.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        out: Tensor = self.norm(y)
        return out


class BypassConv2d(nn.Module):
    """``bypass(x)`` plus ``norm(conv(x))`` on the channels ``kept``: what :class:`tersor.training.LAPP` leaves.

    Args:
        in_channels: Of the input.
        out_channels: Of the output, whatever is left of the convolution.
        filters: Filters of the convolution that are left; there is no convolution if it is 0.
        kernel_size: As of ``nn.Conv2d``, as are the three that follow.
        stride: See there.
        padding: See there.
        dilation: See there.
        biased: Whether the convolution has a bias.
        normed: Whether a batch norm follows the convolution.
        eps: Of that norm.
        momentum: Of that norm.
    """

    def __init__(
        self, in_channels: int, out_channels: int, filters: int, kernel_size: tuple[int, int], stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] | str = (0, 0), dilation: tuple[int, int] = (1, 1), biased: bool = False, normed: bool = True,
        eps: float = 1e-5, momentum: float | None = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.in_channels, self.out_channels, self.filters = in_channels, out_channels, filters
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.biased, self.normed, self.eps, self.momentum = biased, normed, eps, momentum
        self.kept: Tensor
        self.register_buffer("kept", torch.arange(filters))
        with torch.device("meta"):
            shape = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation)
        self.bypass = Bypass(shape)
        self.conv = nn.Conv2d(in_channels, filters, kernel_size, stride, padding, dilation, bias=biased) if filters else None
        self.norm = nn.BatchNorm2d(filters, eps, momentum) if filters and normed else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bypass(x)
        if self.conv is None:
            return y
        own = self.conv(x)
        if self.norm is not None:
            own = self.norm(own)
        return y.index_add(1, self.kept, own.to(y.dtype))


class GatedConv2d(nn.Module):
    """A convolution and its norm while thresholds decide which filters stay: filters with a score below the threshold put out zero.

    The gradient of a mask with respect to the threshold is taken as that of a ramp of width ``2 * window`` around it.

    Args:
        conv: All filters.
        norm: What follows it, or ``None``.
        bypass: What is added, or ``None``.
        window: Half the width of the ramp, in scores.

    Attributes:
        scores: Rank of each filter within the layer, in (0, 1), so that the threshold reads as the share that is removed.
        movement: Running mean of first-order importances, where those are used.
        threshold: Learned.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None, bypass: Bypass | None, window: float) -> None:
        super().__init__()
        self.conv, self.norm, self.bypass, self.window = conv, norm, bypass, window
        device = conv.weight.device
        self.threshold = nn.Parameter(torch.zeros((), device=device))
        self.scores: Tensor
        self.movement: Tensor
        self.register_buffer("scores", torch.zeros(conv.out_channels, device=device))
        self.register_buffer("movement", torch.zeros(conv.out_channels, device=device))
        self.rank(conv.weight.detach().abs().flatten(1).sum(1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.norm is not None:
            y = self.norm(y)
        y = y * self.mask().to(y.dtype)[:, None, None]
        return y if self.bypass is None else y + self.bypass(x)

    def mask(self) -> Tensor:
        """Zeros and ones ``[out_channels]`` with a gradient to the threshold."""
        hard = (self.scores >= self.threshold).to(self.scores.dtype)
        ramp = ((self.scores - self.threshold) / (2 * self.window) + 0.5).clamp(0, 1)
        return hard + ramp - ramp.detach()

    def rank(self, importance: Tensor) -> None:
        """Take ``importance`` ``[out_channels]`` as the new order of the filters."""
        order = importance.argsort(stable=True)
        ranks = torch.arange(len(order), device=order.device, dtype=self.scores.dtype)
        self.scores[order] = (ranks + 0.5) / len(order)

    def finished(self, kept: Tensor) -> BypassConv2d:
        """The layer with the filters ``kept`` alone; the bypass is the same object, the rest is new."""
        assert self.bypass is not None
        conv, norm = self.conv, self.norm
        with torch.random.fork_rng(devices=[]):  # what torch draws for new layers is replaced below
            layer = BypassConv2d(
                conv.in_channels, conv.out_channels, len(kept), conv.kernel_size, conv.stride, conv.padding, conv.dilation,  # type: ignore[arg-type]
                conv.bias is not None, norm is not None, 1e-5 if norm is None else norm.eps, 0.1 if norm is None else norm.momentum,
            ).to(conv.weight.device, conv.weight.dtype)  # fmt: skip
        layer.bypass = self.bypass
        layer.kept.copy_(kept)
        for new, old in ((layer.conv, conv), (layer.norm, norm)):
            if new is not None and old is not None:
                new.load_state_dict({key: value[kept] if value.ndim else value for key, value in old.state_dict().items()})
                new.train(old.training)
        layer.training = self.training
        return layer
