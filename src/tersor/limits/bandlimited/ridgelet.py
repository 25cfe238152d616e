"""Networks that are never trained: coefficients read off the ridgelet transform, and exactly what a band leaves of a function."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_choice, check_integer, check_number
from tersor.limits.bandlimited.features import Activation, evaluate_features
from tersor.limits.checking import Array, check_array

# The analysing function is a derivative of a Gaussian; beyond this many of its deviations it is below 1e-9.
_REACH = 8.0
# Frequencies at which the products of activation and analysing function have vanished, and nodes of the quadrature up to there.
_LAST, _NODES = 14.0, 240
# Weights times spacing above this make the analysing function narrower than the grid can see.
_FINEST = 0.75


@dataclass(frozen=True)
class RidgeletNet:
    """``sum_j c_j activation(a_j x - b_j)`` with every number known in advance: nothing is fitted.

    Attributes:
        weights: ``[d, width]``, all of Euclidean norm at most the bandwidth.
        biases: ``[width]``.
        coefficients: ``[width]``.
        activation: Of the hidden layer.
    """

    weights: Array
    biases: Array
    coefficients: Array
    activation: Activation

    def __call__(self, inputs: Any) -> Array:
        """Values ``[n]`` at ``inputs`` ``[n, d]``."""
        points = check_array("inputs", inputs, 2, (None, len(self.weights)))
        values: Array = evaluate_features(points, self.weights, self.biases, self.activation) @ self.coefficients
        return values


def ridgelet_network(
    inputs: Any, values: Any, volume: float, *, bandwidth: float, width: int, activation: Activation = "tanh", seed: int = 0
) -> RidgeletNet:  # fmt: skip
    """A network whose coefficients are the ridgelet transform of a function at random parameters of a bounded band.

    Its expectation over the draws is :func:`band_part`, at every point and for every width; the distance falls with the root of the
    width, from far above the function itself for ``"relu"``, whose features do not end. Prefer :class:`RandomNet`, which fits its read-out
    and needs far fewer units, unless the construction that the theorem speaks of is what you look at.

    Args:
        inputs: ``[n, d]``, nodes of a quadrature that cover all of the function; it must vanish outside.
        values: ``[n]``.
        volume: Of the cell of a node, such as the spacing to the power ``d``.
        bandwidth: Largest norm of a weight; times the spacing it must stay below 0.75, or the grid does not see the transform.
        width: Hidden units.
        activation: Of the hidden layer.
        seed: Of the draws.

    Returns:
        The network.

    Raises:
        InvalidArgument: On other shapes, NaN or Inf, an argument out of range, or too coarse a grid.

    Reference:
        Sonoda, Murata: "Neural Network with Unbounded Activation Functions is Universal Approximator", 2017, for the transform.
        Li, Sonoda, Cao, Wang, Liang: "How Powerful are Shallow Neural Networks with Bandlimited Random Weights?", 2023.

    Example:
        >>> x = np.linspace(-6, 6, 400)[:, None]
        >>> bump = np.exp(-(x[:, 0] ** 2))
        >>> net = ridgelet_network(x, bump, 12 / 399, bandwidth=8.0, width=20000)
        >>> bool(np.abs(net(x) - bump).max() < 0.2)
        True
    """
    points = check_array("inputs", inputs, 2)
    target = check_array("values", values, 1, (len(points),))
    check_number("volume", volume, math.ulp(0.0))
    check_number("bandwidth", bandwidth, math.ulp(0.0))
    check_integer("width", width, 1)
    check_choice("activation", activation, Activation)
    dimension = points.shape[1]
    if bandwidth * volume ** (1 / dimension) > _FINEST:
        raise InvalidArgument(
            f"a bandwidth of {bandwidth:g} on cells of side {volume ** (1 / dimension):g} is more than {_FINEST:g} a cell; use a finer grid"
        )
    random = np.random.default_rng(seed)
    weights = _ball(dimension, width, bandwidth, random)
    projected = points @ weights
    low, high = projected.min(0) - _REACH, projected.max(0) + _REACH
    biases = low + (high - low) * random.random(width)
    transform = target @ _analysing(projected - biases, _order(activation, dimension)) * volume
    # The mean over the draws of what is below is the integral over the ball and over all biases that matter.
    ball = math.pi ** (dimension / 2) / math.gamma(dimension / 2 + 1) * bandwidth**dimension
    coefficients = transform * ball * (high - low) / (width * _constant(activation, dimension))
    return RidgeletNet(weights, biases, coefficients, activation)


def band_share(frequencies: Any, bandwidth: float, activation: Activation = "tanh", dimension: int = 1) -> Array:
    """How much of each frequency the ridgelet coefficients of a band carry: 1 at frequency 0, falling to 0.

    With the transform ``R f(a, b)`` and the products ``A(z)`` of the spectra of activation and analysing function, the network that is cut
    to ``|a| <= bandwidth`` is ``f`` filtered by ``M(|w| / bandwidth)``, ``M(t)`` the share of ``A(z) |z|^-d`` beyond ``t``. For ``"cos"``
    it is a sharp cut at the bandwidth.

    Args:
        frequencies: Euclidean norms of frequencies in radians per unit of length, of any shape.
        bandwidth: Largest norm of a weight.
        activation: Of the network.
        dimension: ``d``, of the inputs.

    Returns:
        Shares from 0 to 1 of the shape of ``frequencies``.

    Raises:
        InvalidArgument: On an argument out of range.
    """
    check_choice("activation", activation, Activation)
    check_number("bandwidth", bandwidth, math.ulp(0.0))
    check_integer("dimension", dimension, 1)
    scaled = np.abs(np.asarray(frequencies, dtype=np.float64)) / bandwidth
    if not np.isfinite(scaled).all():
        raise InvalidArgument("frequencies holds NaN or Inf")
    if activation == "cos":
        return (scaled <= 1).astype(np.float64)
    return _beyond(scaled.ravel(), activation, dimension).reshape(scaled.shape) / _beyond(np.zeros(1), activation, dimension)[0]


def band_part(values: Any, spacing: float, bandwidth: float, activation: Activation = "tanh") -> Array:
    """What is left of a function when its ridgelet coefficients beyond a band are dropped: the limit of :func:`ridgelet_network`.

    Args:
        values: ``[n]`` or ``[n, m]``, samples on a regular grid of one or two dimensions at whose ends the function has vanished.
        spacing: Distance of the samples.
        bandwidth: Largest norm of a weight.
        activation: Of the network.

    Returns:
        The part, of the shape of ``values``.

    Raises:
        InvalidArgument: On NaN or Inf, another number of axes, or a number out of range.
    """
    target, norms = _spectrum_grid(values, spacing)
    kept: Array = np.fft.ifftn(np.fft.fftn(target) * band_share(norms, bandwidth, activation, target.ndim)).real
    return kept


def band_error(values: Any, spacing: float, bandwidth: float, activation: Activation = "tanh") -> tuple[float, float]:
    """The relative error of :func:`band_part`, and the fraction ``E`` of the energy beyond the band: ``E <= error <= sqrt(E)``.

    Args:
        values: As for :func:`band_part`, not zero everywhere.
        spacing: Distance of the samples.
        bandwidth: Largest norm of a weight.
        activation: Of the network.

    Returns:
        The error in the mean square and ``E``.

    Raises:
        InvalidArgument: As :func:`band_part`, and on a target that is zero everywhere.
    """
    target, norms = _spectrum_grid(values, spacing)
    if not target.any():
        raise InvalidArgument("values must not be zero everywhere")
    energies = np.abs(np.fft.fftn(target)) ** 2
    lost = 1 - band_share(norms, bandwidth, activation, target.ndim)
    total = float(energies.sum())
    return math.sqrt(float((energies * lost**2).sum()) / total), float((energies * lost).sum()) / total


def _spectrum_grid(values: Any, spacing: float) -> tuple[Array, Array]:
    axes = np.ndim(values)
    if axes not in (1, 2):
        raise InvalidArgument(f"values must have one or two axes, got {axes}")
    target = check_array("values", values, axes)
    check_number("spacing", spacing, math.ulp(0.0))
    squares = [(2 * math.pi * np.fft.fftfreq(length, spacing)) ** 2 for length in target.shape]
    return target, np.sqrt(squares[0] if axes == 1 else squares[0][:, None] + squares[1])


def _ball(dimension: int, width: int, radius: float, random: np.random.Generator) -> Array:
    """Uniform points ``[d, width]`` of a ball."""
    directions = random.standard_normal((dimension, width))
    lengths = radius * random.random(width) ** (1 / dimension)
    points: Array = directions / np.linalg.norm(directions, axis=0) * lengths
    return points


def _order(activation: Activation, dimension: int) -> int:
    """The derivative of the Gaussian that has the parity of the activation and vanishes fast enough at frequency 0."""
    singular = {"gauss": 0, "cos": 0, "tanh": 1, "relu": 2}[activation]
    least = dimension + singular
    return least if least % 2 == singular % 2 else least + 1


def _analysing(points: Array, order: int) -> Array:
    """The derivative of ``exp(-t^2 / 2)`` of the given order."""
    hermite = np.polynomial.hermite_e.HermiteE.basis(order)
    derived: Array = (-1) ** order * hermite(points) * np.exp(-points * points / 2)
    return derived


def _product(z: Array, activation: Activation, order: int) -> Array:
    """Spectrum of the activation times the conjugate of that of the analysing function, at positive frequencies; even and real."""
    gauss = math.sqrt(2 * math.pi) * z**order * np.exp(-z * z / 2)
    if activation == "gauss":
        return (-1) ** (order // 2) * math.sqrt(2 * math.pi) * np.exp(-z * z / 2) * gauss
    if activation == "tanh":
        return (-1) ** ((order + 1) // 2) * math.pi / np.sinh(math.pi * z / 2) * gauss
    return -((-1) ** (order // 2)) * gauss / z**2


def _beyond(starts: Array, activation: Activation, dimension: int) -> Array:
    """``2 int_t^inf A(z) z^-d dz`` for every ``t``, by Gauss-Legendre quadrature of an analytic function."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    order, found = _order(activation, dimension), np.zeros(len(starts))
    for index in range(0, len(starts), 4096):
        low = np.minimum(starts[index : index + 4096], _LAST)[:, None]
        half = (_LAST - low) / 2
        z = low + half * (nodes + 1)
        found[index : index + 4096] = 2 * ((_product(z, activation, order) / z**dimension * half) @ weights)
    return found


def _constant(activation: Activation, dimension: int) -> float:
    """By what the transform back of the transform is larger than the function."""
    if activation == "cos":
        # Two point masses of pi at the frequencies -1 and 1.
        order = _order(activation, dimension)
        integral = 2 * math.pi * (-1) ** (order // 2) * math.sqrt(2 * math.pi) * math.exp(-0.5)
    else:
        integral = float(_beyond(np.zeros(1), activation, dimension)[0])
    return (2 * math.pi) ** (dimension - 1) * integral
