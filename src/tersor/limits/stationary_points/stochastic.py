"""Gradients that show the next coordinate of the chain only now and then."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.limits.stationary_points.chain import ChainFunction

_KNOTS = 4096


class StochasticChain:
    """An unbiased stochastic gradient of a chain: coordinates beyond the progress made so far are zero except with probability ``q``.

    ``g_i(x, z) = d_i f(x) (1 + [i > progress] (z / q - 1))``, ``z ~ Bernoulli(q)``. Its variance is at most ``(23 h / s)^2 (1 - q) / q``
    for a chain of height ``h`` and scale ``s``. With ``smooth`` the indicator is smoothed, and the answers for one ``z`` are mean-squared
    smooth: the instance against variance reduction.

    Args:
        chain: The function.
        q: Probability with which an answer shows the next coordinate, in (0, 1].
        smooth: Use the smooth indicator.
        seed: Of the draws.

    Raises:
        InvalidArgument: On a ``q`` outside (0, 1].

    Reference:
        Arjevani, Carmon, Duchi, Foster, Srebro, Woodworth: "Lower Bounds for Non-Convex Stochastic Optimization", 2019.
    """

    def __init__(self, chain: ChainFunction, q: float, *, smooth: bool = False, seed: int = 0) -> None:
        if not 0 < q <= 1:
            raise InvalidArgument(f"q must be a probability above 0 and at most 1, got {q!r}")
        self.chain = chain
        self.q = float(q)
        self.smooth = smooth
        self._random = torch.Generator().manual_seed(seed)

    @property
    def dim(self) -> int:
        """Length of the points that :meth:`query` takes."""
        return self.chain.dim

    @property
    def eps(self) -> float:
        """Gradient norm at which a point counts as stationary."""
        return self.chain.eps

    def gradient(self, x: Tensor) -> Tensor:
        """The true gradient, ``[..., T]``."""
        return self.chain.gradient(x)

    def progress(self, x: Tensor, threshold: float = 0.25) -> Tensor:
        """Coordinates found."""
        return self.chain.progress(x, threshold)

    def draw(self, x: Tensor, shown: Tensor) -> Tensor:
        """The stochastic gradient for given draws.

        Args:
            x: ``[..., T]``.
            shown: ``z``, 0 or 1, ``[...]``.
        """
        gradient = self.chain.gradient(x)
        return gradient * (1 + self.hidden(x) * (shown.to(gradient) / self.q - 1).unsqueeze(-1))

    def hidden(self, x: Tensor) -> Tensor:
        """The factor of the noise for every coordinate, ``[..., T]``: 1 beyond the progress, 0 before it, and between if smooth."""
        scaled = x.double() / self.chain.scale
        if not self.smooth:
            beyond = torch.arange(1, scaled.shape[-1] + 1, device=x.device) > self.progress(x).unsqueeze(-1)
            return beyond.to(scaled)
        squares = switch(scaled.abs()).square()
        rest = squares.flip(-1).cumsum(-1).flip(-1)
        return switch(1 - rest.sqrt())

    def query(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The value, and a stochastic gradient for a fresh draw."""
        shown = torch.rand((), generator=self._random) < self.q
        return self.chain(x), self.draw(x, shown)


def switch(t: Tensor) -> Tensor:
    """A smooth step from 0 at 1/4 to 1 at 1/2: the normalised integral of ``exp(-1 / (100 (t - 1/4) (1/2 - t)))``."""
    integral, density = _table()
    place = ((t.double() - 0.25) * 4 * _KNOTS).clamp(0, _KNOTS)
    left = place.long().clamp(max=_KNOTS - 1)
    part, width = place - left, 0.25 / _KNOTS
    # Cubic Hermite interpolation: the density is the exact derivative.
    value = integral[left] * (1 + 2 * part) * (1 - part) ** 2 + integral[left + 1] * part**2 * (3 - 2 * part)
    return value + width * (density[left] * part * (1 - part) ** 2 - density[left + 1] * part**2 * (1 - part))


@cache
def _table() -> tuple[Tensor, Tensor]:
    """Integral and density of the switch at the knots."""
    fine = torch.linspace(0.25, 0.5, 2 * _KNOTS + 1, dtype=torch.float64)
    inner = (fine - 0.25) * (0.5 - fine)
    density = torch.where(inner > 0, torch.exp(-1 / (100 * inner.clamp(min=1e-12))), 0.0)
    simpson = (density[:-2:2] + 4 * density[1:-1:2] + density[2::2]) * (0.25 / _KNOTS / 6)
    integral = torch.cat((torch.zeros(1, dtype=torch.float64), simpson.cumsum(0)))
    total = float(integral[-1])
    return integral / total, density[::2] / total


def chain_variance(chain: ChainFunction, q: float) -> float:
    """An upper bound on ``E |g - ∇f|^2`` at any point: ``(23 h / s)^2 (1 - q) / q``."""
    from tersor.limits.stationary_points.constants import LARGEST_PARTIAL

    return math.pow(LARGEST_PARTIAL * chain.height / chain.scale, 2) * (1 - q) / q
