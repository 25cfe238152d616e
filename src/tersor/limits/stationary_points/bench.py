"""Counting the oracle calls that an optimiser really needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_integer

OptimizerFactory = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
Minimiser = Callable[["Oracle", Tensor], None]


class Instance(Protocol):
    """What an optimiser is run on: :class:`ChainFunction`, :class:`StochasticChain`, :class:`ResistingOracle`, or yours."""

    @property
    def dim(self) -> int:
        """Length of a point."""

    @property
    def eps(self) -> float:
        """Gradient norm at which a point counts as stationary."""

    def query(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient at ``x`` ``[dim]``, as the optimiser sees them."""

    def gradient(self, x: Tensor) -> Tensor:
        """The true gradient at a point that was queried."""

    def progress(self, x: Tensor) -> Tensor:
        """Coordinates found at ``x``."""


@dataclass(frozen=True)
class Run:
    """What an optimiser needed.

    Attributes:
        calls: Oracle calls up to the first stationary point, that point's included, or all that were made.
        reached: Whether a stationary point was queried.
        smallest: Smallest norm of the true gradient at a queried point.
        progress: Most coordinates found at a queried point.
    """

    calls: int
    reached: bool
    smallest: float
    progress: int


class _Stop(Exception):
    pass


class Oracle:
    """Counts the queries of an instance and stops the optimiser at a stationary point or when the budget is spent."""

    def __init__(self, instance: Instance, budget: int) -> None:
        self._instance = instance
        self._budget = budget
        self.run = Run(0, False, float("inf"), 0)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient at ``x`` ``[dim]``; one call, whatever it is for."""
        if self.run.calls >= self._budget:
            raise _Stop
        value, gradient = self._instance.query(x)
        norm = float(self._instance.gradient(x).norm())
        found = max(self.run.progress, int(self._instance.progress(x)))
        self.run = Run(self.run.calls + 1, norm <= self._instance.eps, min(self.run.smallest, norm), found)
        if self.run.reached:
            raise _Stop
        return value, gradient


def count_calls(minimiser: Minimiser, instance: Instance, *, budget: int = 100_000) -> Run:
    """Start ``minimiser`` at 0 and count its calls until it queries a point with a gradient of norm at most ``instance.eps``.

    Args:
        minimiser: A function of an oracle and a start; it calls the oracle as often as it likes, line searches included.
        instance: The function.
        budget: Calls after which to give up.

    Returns:
        What it needed; ``reached`` is false if it gave up or returned on its own.

    Raises:
        InvalidArgument: On a budget below 1.

    Example:
        >>> count_calls(gradient_descent(0.05), ChainFunction(10)).calls
        85
    """
    oracle = Oracle(instance, check_integer("budget", budget, 1))
    with suppress(_Stop):
        minimiser(oracle, torch.zeros(instance.dim, dtype=torch.float64))
    return oracle.run


def bench_optimizer(factory: OptimizerFactory, instance: Instance, *, budget: int = 100_000) -> Run:
    """:func:`count_calls` for a ``torch.optim`` optimizer; closures that it calls again, as L-BFGS does, count.

    Args:
        factory: Makes the optimizer from its parameters, such as ``lambda p: torch.optim.Adam(p, lr=0.05)``.
        instance: The function.
        budget: Calls after which to give up.
    """

    def minimise(oracle: Oracle, start: Tensor) -> None:
        point = start.clone().requires_grad_()
        optimizer = factory([point])

        def closure() -> float:
            value, point.grad = oracle(point.detach())
            return float(value)

        while True:
            before = oracle.run.calls
            optimizer.step(closure)
            if oracle.run.calls == before:
                return

    return count_calls(minimise, instance, budget=budget)


def gradient_descent(rate: float, momentum: float = 0.0) -> Minimiser:
    """Gradient descent with a constant rate, and heavy-ball momentum if there is any."""

    def minimise(oracle: Oracle, start: Tensor) -> None:
        point, velocity = start, torch.zeros_like(start)
        while True:
            velocity = momentum * velocity + oracle(point)[1]
            point = point - rate * velocity

    return minimise


def scipy_minimiser(method: str) -> Minimiser:
    """A gradient method of ``scipy.optimize.minimize``: ``"CG"``, ``"BFGS"``, ``"L-BFGS-B"`` and so on.

    Raises:
        InvalidArgument: If SciPy has no gradient method of that name.
    """
    allowed = ("CG", "BFGS", "L-BFGS-B", "TNC", "SLSQP")
    if method not in allowed:
        raise InvalidArgument(f"method must be one of {', '.join(allowed)}, got {method!r}")

    def minimise(oracle: Oracle, start: Tensor) -> None:
        from scipy.optimize import minimize

        def asked(x: object) -> tuple[float, object]:
            value, gradient = oracle(torch.as_tensor(x, dtype=torch.float64).clone())
            return float(value), gradient.numpy()

        minimize(asked, start.numpy(), jac=True, method=method, tol=1e-12, options={"maxfun" if method == "TNC" else "maxiter": 10**7})

    return minimise
