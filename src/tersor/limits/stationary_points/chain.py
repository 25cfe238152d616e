"""The function whose every stationary point lies at the end of a chain of coordinates that must be found one after the other."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_integer, check_number
from tersor.limits.stationary_points.constants import GAP, smoothness_constant

_SQRT_E = math.exp(0.5)
# Below this distance from 1/2 the step is under 1e-400, which float64 does not hold anyway.
_FLAT = 0.015


def step(x: Tensor) -> Tensor:
    """``exp(1 - 1 / (2 x - 1)^2)`` above 1/2 and exactly 0 below: smooth, and flat until a coordinate is found."""
    return torch.where(x > 0.5 + _FLAT, torch.exp(1 - (2 * _inside(x) - 1).pow(-2)), 0.0)


def step_slope(x: Tensor) -> Tensor:
    """Derivative of :func:`step`."""
    return step(x) * 4 * (2 * _inside(x) - 1).pow(-3)


def ramp(x: Tensor) -> Tensor:
    """``sqrt(e)`` times the integral of ``exp(-t^2 / 2)`` up to ``x``."""
    return _SQRT_E * math.sqrt(math.pi / 2) * (1 + torch.erf(x / math.sqrt(2)))


def ramp_slope(x: Tensor) -> Tensor:
    """Derivative of :func:`ramp`."""
    return _SQRT_E * torch.exp(-x.square() / 2)


def _inside(x: Tensor) -> Tensor:
    # The safe argument keeps the branch that is not taken, and its derivative, free of infinities.
    return torch.where(x > 0.5 + _FLAT, x, 2.0)


def chain_value(x: Tensor) -> Tensor:
    """``-Ψ(1) Φ(x_1) + sum_i Ψ(-x_{i-1}) Φ(-x_i) - Ψ(x_{i-1}) Φ(x_i)``, with ``Ψ`` = :func:`step` and ``Φ`` = :func:`ramp`.

    Args:
        x: ``[..., T]``, float64; in float32 rounding breaks the chain.

    Returns:
        ``[...]``; differentiable any number of times.

    Reference:
        Carmon, Duchi, Hinder, Sidford: "Lower Bounds for Finding Stationary Points I", 2017.
    """
    before, after = _before(x), x
    return (step(-before) * ramp(-after) - step(before) * ramp(after)).sum(-1)


def chain_gradient(x: Tensor) -> Tensor:
    """Gradient of :func:`chain_value` in closed form, ``[..., T]``."""
    before = _before(x)
    after = torch.cat((x[..., 1:], torch.full_like(x[..., :1], 0.0)), -1)
    own = -step(-before) * ramp_slope(-x) - step(before) * ramp_slope(x)
    following = -step_slope(-x) * ramp(-after) - step_slope(x) * ramp(after)
    # The last coordinate has no successor.
    following = torch.cat((following[..., :-1], torch.zeros_like(x[..., :1])), -1)
    return own + following


def _before(x: Tensor) -> Tensor:
    # x_0 = 1, so that the first coordinate is always on the way.
    return torch.cat((torch.ones_like(x[..., :1]), x[..., :-1]), -1)


def progress(x: Tensor, threshold: float = 0.5) -> Tensor:
    """The largest index, counted from 1, of a coordinate above ``threshold`` in magnitude; 0 if there is none. ``[..., T] -> [...]``."""
    found = x.abs() > threshold
    places = torch.arange(1, x.shape[-1] + 1, device=x.device)
    return (found * places).amax(-1)


class ChainFunction(nn.Module):
    """The chain scaled so that its derivatives, its height and its gradient are what a lower bound needs.

    ``f(x) = (L s^(p+1) / l_p) F_T(x / s)`` with ``s = (l_p eps / L)^(1/p)``: the p-th derivative is ``L``-Lipschitz, the gradient is above
    ``eps`` until the last coordinate is found, and ``f(0) - inf f <= 12 eps s T``. Use :meth:`hardest` for the longest chain that a height
    allows, and the plain constructor, whose ``f`` is ``F_T`` itself, to watch an optimiser.

    Args:
        length: ``T``, the number of coordinates to find.
        scale: ``s``, what lengths are multiplied by.
        height: What values are multiplied by.
        eps: Gradient norm at which a point counts as stationary.

    Raises:
        InvalidArgument: On a length below 1, or a scale, height or eps that is not positive.

    Reference:
        Carmon, Duchi, Hinder, Sidford: "Lower Bounds for Finding Stationary Points I", 2017.
        Zhang, Li: "Quantum Lower Bounds for Finding Stationary Points of Nonconvex Functions", 2023.
    """

    def __init__(self, length: int, scale: float = 1.0, height: float = 1.0, eps: float = 1.0) -> None:
        super().__init__()
        self.length = check_integer("length", length, 1)
        self.scale, self.height, self.eps = (
            check_number(name, value, math.ulp(0.0)) for name, value in (("scale", scale), ("height", height), ("eps", eps))
        )

    @classmethod
    def hardest(cls, *, order: int = 1, smoothness: float = 1.0, gap: float = 1.0, eps: float = 1e-3) -> ChainFunction:
        """The longest chain with a ``smoothness``-Lipschitz derivative of order ``order`` and ``f(0) - inf f <= gap``.

        Args:
            order: ``p``, the derivatives that the oracle answers with.
            smoothness: ``L_p``.
            gap: ``Δ``.
            eps: Gradient norm to reach.

        Raises:
            InvalidArgument: If not even one coordinate fits.
        """
        from tersor.limits.stationary_points.bounds import chain_scale, query_lower_bound

        length = int(query_lower_bound(order=order, smoothness=smoothness, gap=gap, eps=eps))
        if length < 1:
            raise InvalidArgument(f"a gap of {gap:g} is too low for a chain at eps {eps:g}; lower eps or raise the gap")
        scale = chain_scale(order, smoothness, eps)
        return cls(length, scale, smoothness * scale ** (order + 1) / smoothness_constant(order), eps)

    @property
    def dim(self) -> int:
        """Length of the points that :meth:`query` takes."""
        return self.length

    @property
    def gap(self) -> float:
        """An upper bound on ``f(0) - inf f``."""
        return GAP * self.length * self.height

    def forward(self, x: Tensor) -> Tensor:
        """``f(x)``, ``[..., T] -> [...]``."""
        return self.height * chain_value(x.double() / self.scale)

    def gradient(self, x: Tensor) -> Tensor:
        """The gradient at ``x``, ``[..., T]``."""
        return self.height / self.scale * chain_gradient(x.double() / self.scale)

    def hvp(self, x: Tensor, direction: Tensor) -> Tensor:
        """The hessian at ``x`` times ``direction``, both ``[T]``."""
        product: Tensor = torch.autograd.functional.hvp(self, x.double(), direction.double())[1]
        return product

    def progress(self, x: Tensor, threshold: float = 0.5) -> Tensor:
        """Coordinates found, see :func:`progress`, with ``threshold`` in units of the scale."""
        return progress(x / self.scale, threshold)

    def query(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What an oracle of first order answers: value and gradient."""
        return self(x), self.gradient(x)

    def extra_repr(self) -> str:
        return f"length={self.length}, scale={self.scale:g}, height={self.height:g}, eps={self.eps:g}"
