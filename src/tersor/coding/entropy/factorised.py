"""A learned prior for the channels of a latent that are independent of one another: the factorised entropy bottleneck."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tersor.coding.entropy.coders import Coder
from tersor.coding.entropy.escapes import EscapeTables, code_values, read_values
from tersor.errors import InvalidArgument

# Smallest probability that training sees: below it the gradient of the logarithm explodes.
_FLOOR = 1e-9
# Quantiles are looked for between minus and plus this.
_RADIUS = 1e5
_HALVINGS = 60


class _LowerBound(torch.autograd.Function):
    """``max(x, bound)`` whose gradient also passes below the bound if it would push the value up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp(min=bound)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        (gradient,) = gradients
        return gradient * ((x >= ctx.bound) | (gradient < 0)), None


def lower_bound(x: Tensor, bound: float) -> Tensor:
    """``max(x, bound)``, with a gradient that lets a value below the bound climb back above it."""
    return cast(Tensor, _LowerBound.apply(x, bound))


def rounded_with_noise(values: Tensor, generator: torch.Generator | None) -> Tensor:
    """What training uses for rounding: uniform noise of one step's width, drawn from ``generator``."""
    return values + torch.rand(values.shape, generator=generator, dtype=values.dtype, device=values.device) - 0.5


class EntropyBottleneck(nn.Module):
    """One learned distribution a channel; use :class:`GaussianConditional` instead where a second latent tells the spread of each value.

    Train with :meth:`forward`, whose likelihoods go into the rate term; then :meth:`update` turns the densities into integer tables,
    which are part of the ``state_dict``, and :meth:`compress` and :meth:`decompress` use nothing else.

    Args:
        channels: Size of axis 1 of the latents.
        filters: Widths of the layers of the cumulative distribution.
        init_scale: Width of the initial distributions, in steps.
        tail_mass: Probability left to values outside of the tables, which are coded by an escape.
        seed: Of the initial offsets.

    Example:
        >>> import torch
        >>> prior = EntropyBottleneck(2)
        >>> prior.update()
        >>> latent = torch.tensor([[[0.2, 3.7], [-1.4, 900.0]]])
        >>> prior.decompress(prior.compress(latent), latent.shape)[0, 1, 1].item()
        900.0

    Reference:
        Ballé, Minnen, Singh, Hwang, Johnston: "Variational image compression with a scale hyperprior", 2018.
    """

    def __init__(
        self, channels: int, filters: tuple[int, ...] = (3, 3, 3, 3), init_scale: float = 10.0, tail_mass: float = 1e-9, seed: int = 0
    ) -> None:
        super().__init__()
        if channels < 1 or not 0 < tail_mass < 0.5 or init_scale <= 0:
            raise InvalidArgument("an entropy bottleneck needs a channel or more, a positive init_scale and a tail_mass below one half")
        self.channels = channels
        self.tail_mass = tail_mass
        random = torch.Generator().manual_seed(seed)
        widths = (1, *filters, 1)
        scale = init_scale ** (1 / (len(widths) - 1))
        self.matrices, self.biases, self.factors = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for before, after in pairwise(widths):
            self.matrices.append(torch.full((channels, after, before), math.log(math.expm1(1 / scale / after))))
            self.biases.append(torch.rand(channels, after, 1, generator=random) - 0.5)
            self.factors.append(torch.zeros(channels, after, 1))
        self.tables = EscapeTables()
        self.register_buffer("medians", torch.zeros(channels))

    @torch.no_grad()
    def start_from(self, spreads: Tensor) -> None:
        """Begin as logistic distributions around zero instead of as wide ones: of latents whose deviations are known.

        Args:
            spreads: ``[channels]``, standard deviations in steps, all positive.
        """
        # A logistic distribution of scale s has a deviation of s * pi / sqrt(3); each of the layers divides by a root of s.
        scale = (spreads * math.sqrt(3) / math.pi) ** (1 / len(self.matrices))
        for matrix, bias, factor in zip(self.matrices, self.biases, self.factors, strict=True):
            matrix.copy_(torch.log(torch.expm1(1 / scale / matrix.shape[1]))[:, None, None].expand_as(matrix))
            bias.zero_()
            factor.zero_()

    def logits(self, values: Tensor) -> Tensor:
        """Logits of the cumulative distributions at ``values`` ``[channels, n]``."""
        x = values.unsqueeze(1)
        last = len(self.matrices) - 1
        for index, (matrix, bias, factor) in enumerate(zip(self.matrices, self.biases, self.factors, strict=True)):
            x = functional.softplus(matrix.to(x.dtype)) @ x + bias.to(x.dtype)
            if index < last:
                x = x + torch.tanh(factor.to(x.dtype)) * torch.tanh(x)
        return x.squeeze(1)

    def likelihood(self, values: Tensor) -> Tensor:
        """Probability of the step around each of ``values`` ``[channels, n]``."""
        below, above = self.logits(values - 0.5), self.logits(values + 0.5)
        # In the tail where both sigmoids are near 0 and not near 1 the difference keeps its digits.
        # At the very middle either sign does, but not zero.
        sign = torch.where(below + above > 0, -1.0, 1.0).to(below.dtype)
        return (torch.sigmoid(sign * above) - torch.sigmoid(sign * below)).abs()

    def forward(self, latent: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Quantise a latent and say how likely it is.

        Args:
            latent: ``[batch, channels, ...]``.
            generator: Of the noise that stands in for rounding while training.

        Returns:
            The latent with noise (training) or rounded (evaluation), and the likelihoods, both of its shape. The rate is
            ``-log2(likelihood).sum()`` bits.
        """
        rows = self._rows(latent)
        if self.training:
            quantised = rounded_with_noise(rows, generator)
        else:
            medians = self.medians.to(rows.dtype).unsqueeze(1)
            quantised = torch.round(rows - medians) + medians
        likelihood = lower_bound(self.likelihood(quantised), _FLOOR)
        return self._back(quantised, latent.shape), self._back(likelihood, latent.shape)

    @torch.no_grad()
    def quantiles(self, probability: float) -> Tensor:
        """``[channels]`` in float64: where the cumulative distributions reach ``probability``, by bisection."""
        target = math.log(probability / (1 - probability))
        low = torch.full((self.channels, 1), -_RADIUS, dtype=torch.float64)
        high = -low
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            under = self.logits(middle) < target
            low, high = torch.where(under, middle, low), torch.where(under, high, middle)
        return ((low + high) / 2).squeeze(1)

    @torch.no_grad()
    def update(self) -> None:
        """Make the integer tables from the densities; needed once after training, as saved tables are loaded."""
        medians = self.quantiles(0.5).float()
        self.medians = medians
        low, high = self.quantiles(self.tail_mass / 2), self.quantiles(1 - self.tail_mass / 2)
        before, after = torch.ceil(medians - low).clamp(min=0), torch.ceil(high - medians).clamp(min=0)
        pmfs = []
        for channel in range(self.channels):
            steps = torch.arange(-int(before[channel]), int(after[channel]) + 1, dtype=torch.float64)
            pmfs.append(self.likelihood((steps + medians[channel]).expand(self.channels, -1))[channel].numpy())
        self.tables.set(pmfs, (-before).long().numpy(), self.tail_mass)

    def compress(self, latent: Tensor, coder: Coder = "range") -> bytes:
        """Code the rounded ``latent`` ``[batch, channels, ...]``; its shape is not part of the bytes.

        Args:
            latent: What to code.
            coder: As in :func:`encode_symbols`; ``"reference"`` saves the four bytes or so that matter in a stream of fifty.

        Raises:
            InvalidArgument: Before :meth:`update`, or if the latent holds NaN, Inf or another number of channels.
        """
        rows = self._rows(latent.detach()).float()
        symbols = torch.round(rows - self.medians.unsqueeze(1))
        return code_values(symbols.double().numpy(), self.tables, self._indexes(rows.shape[1]), coder)

    def decompress(self, data: bytes, shape: tuple[int, ...] | torch.Size, coder: Coder = "range") -> Tensor:
        """The rounded latent of ``shape`` that :meth:`compress` coded by the same ``coder``, float32.

        Raises:
            CorruptStream: If the bytes are damaged in a way that shows; keep a checksum for the others.
        """
        if len(shape) < 2 or shape[1] != self.channels:
            raise InvalidArgument(f"a latent of this bottleneck has shape [batch, {self.channels}, ...], got {tuple(shape)}")
        symbols = read_values(data, self.tables, self._indexes(math.prod(shape) // self.channels), coder)
        return self._back(torch.from_numpy(symbols).float() + self.medians.unsqueeze(1), torch.Size(shape))

    def _indexes(self, count: int) -> np.ndarray:
        return np.repeat(np.arange(self.channels), count).reshape(self.channels, count)

    def _rows(self, latent: Tensor) -> Tensor:
        if latent.ndim < 2 or latent.shape[1] != self.channels:
            raise InvalidArgument(f"a latent of this bottleneck has shape [batch, {self.channels}, ...], got {tuple(latent.shape)}")
        return latent.transpose(0, 1).reshape(self.channels, -1)

    def _back(self, rows: Tensor, shape: torch.Size) -> Tensor:
        return rows.reshape(shape[1], shape[0], *shape[2:]).transpose(0, 1)
