"""How many steps the theory of error control asks for."""

from __future__ import annotations

from typing import Literal, get_args

from tersor.errors import InvalidArgument

Class = Literal["strongly_convex", "convex", "nonconvex"]


def rate_bound(
    function: Class, epsilon: float, *, workers: int, delta: float, noise: float, smoothness: float, convexity: float = 1.0,
    start: float = 1.0,
) -> float:  # fmt: skip
    """Order of the number of steps to an accuracy ``epsilon``, all constants and logarithms set to one: for comparing, not for planning.

    The first term is that of uncompressed SGD and falls with the number of workers; compression costs ``1 / delta^2`` in a lower one.

    Args:
        function: ``"strongly_convex"`` (accuracy of the value), ``"convex"`` (likewise) or ``"nonconvex"`` (squared norm of the gradient).
        epsilon: Accuracy wanted.
        workers: Number of workers.
        delta: Contraction of the compressor, in (0, 1].
        noise: Variance of the stochastic gradients.
        smoothness: Root mean square over workers of the Lipschitz constants of the gradients.
        convexity: Modulus of strong convexity.
        start: Squared distance of the start to the solution (convex), or its excess value (nonconvex).

    Returns:
        Steps.

    Raises:
        InvalidArgument: If an argument is out of range.

    Reference:
        Gao, Islamov, Stich: "EControl: Fast Distributed Optimization with Compression and Error Control", 2024.
    """
    if function not in get_args(Class):
        raise InvalidArgument(f"function must be one of {', '.join(get_args(Class))}, got {function!r}")
    if not (epsilon > 0 and workers >= 1 and 0 < delta <= 1 and noise >= 0 and smoothness > 0 and convexity > 0 and start > 0):
        raise InvalidArgument("epsilon, smoothness, convexity, start and workers must be positive, delta in (0, 1] and noise not negative")
    if function == "strongly_convex":
        mixed = smoothness**0.5 * noise**0.5 / (convexity * delta**2 * epsilon**0.5)
        return noise / (convexity * workers * epsilon) + mixed + smoothness / (convexity * delta)
    if function == "convex":
        mixed = smoothness**0.5 * start * noise**0.5 / (delta**2 * epsilon**1.5)
        return start * noise / (workers * epsilon**2) + mixed + smoothness * start / (delta * epsilon)
    mixed = smoothness * start * noise**0.5 / (delta**2 * epsilon**1.5)
    return smoothness * start * noise / (workers * epsilon**2) + mixed + smoothness * start / (delta * epsilon)
