"""Noise that makes one person's message private, and the exact account of how private."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tersor.errors import InvalidArgument
from tersor.information.checking import Array, check_rows, check_vector
from tersor.layerwise.checking import check_choice, check_integer, check_number

Mechanism = Literal["analytic", "classic"]

_HALVINGS = 200


def check_epsilon(epsilon: object) -> float:
    """``epsilon`` of differential privacy, positive and at most 50.

    Raises:
        InvalidArgument: If it is out of range.
    """
    value = check_number("epsilon", epsilon, 0.0)
    if not 0 < value <= 50:
        raise InvalidArgument(f"epsilon must be positive and at most 50, got {epsilon!r}; beyond it nothing is private")
    return value


def check_delta(delta: object) -> float:
    """``delta`` of differential privacy, strictly between 0 and 1.

    Raises:
        InvalidArgument: If it is out of range.
    """
    value = check_number("delta", delta, 0.0, 1.0)
    if value <= 0:
        raise InvalidArgument("delta must be positive for Gaussian noise; use PrivateIHT where delta must be 0")
    return value


def gaussian_delta(epsilon: float, shift: float) -> float:
    """The least ``delta`` for which Gaussian noise is ``(epsilon, delta)``-private: exact, not a bound.

    Args:
        epsilon: At least 0.
        shift: The most that the noiseless message can move when its sender is exchanged, over the standard deviation of the noise.

    Returns:
        ``Phi(m/2 - e/m) - exp(e) Phi(-m/2 - e/m)``.

    Reference:
        Balle, Wang: "Improving the Gaussian Mechanism for Differential Privacy", 2018.
    """
    if shift <= 0:
        return 0.0
    upper, lower = shift / 2 - epsilon / shift, -shift / 2 - epsilon / shift
    tail = 0.0 if lower < -37 else math.exp(epsilon + math.log(_normal_cdf(lower)))
    return max(_normal_cdf(upper) - tail, 0.0)


def gaussian_shift(epsilon: float, delta: float, mechanism: Mechanism = "analytic") -> float:
    """The largest ``shift`` (see :func:`gaussian_delta`) that is ``(epsilon, delta)``-private; noise is the sensitivity over it.

    Args:
        epsilon: Positive.
        delta: Between 0 and 1.
        mechanism: ``"analytic"`` for the exact value, ``"classic"`` for ``epsilon / sqrt(2 log(1.25 / delta))``, valid up to
            ``epsilon = 1``.

    Raises:
        InvalidArgument: If a number is out of range, or ``epsilon`` above 1 with ``"classic"``.

    Reference:
        Dwork, Roth: "The Algorithmic Foundations of Differential Privacy", 2014. Balle, Wang, 2018.

    Example:
        >>> round(gaussian_shift(1.0, 1e-5), 3), round(gaussian_shift(1.0, 1e-5, "classic"), 3)
        (0.268, 0.206)
    """
    check_choice("mechanism", mechanism, Mechanism)
    epsilon, delta = check_epsilon(epsilon), check_delta(delta)
    if mechanism == "classic":
        if epsilon > 1:
            raise InvalidArgument(f"the classic formula is proven up to epsilon = 1 a message, got {epsilon:g}; use mechanism='analytic'")
        return epsilon / math.sqrt(2 * math.log(1.25 / delta))
    low, high = 0.0, 1.0
    while gaussian_delta(epsilon, high) < delta:
        high *= 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(epsilon, middle) <= delta else (low, middle)
    return low


@dataclass(frozen=True)
class BallRandomiser:
    """Vectors of bounded length made ``epsilon``-private with ``delta = 0``, without bias.

    A vector is first replaced by a point of its direction or the opposite one, at random so that the mean is kept; then a direction is
    drawn from the half sphere on the side of that point with probability ``exp(epsilon) / (1 + exp(epsilon))``, from the other half else.

    Attributes:
        epsilon: Of differential privacy.
        radius: The largest length; longer vectors are cut to it, which is where a bias can come from.
        dimension: Of the vectors.

    Reference:
        Duchi, Jordan, Wainwright: "Minimax Optimal Procedures for Locally Private Estimation", 2018.
    """

    epsilon: float
    radius: float
    dimension: int

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        if check_number("radius", self.radius, 0.0) <= 0:
            raise InvalidArgument(f"radius must be positive, got {self.radius!r}")
        check_integer("dimension", self.dimension, 1)

    @property
    def length(self) -> float:
        """Of every message: what makes its mean the vector."""
        d = self.dimension
        sphere = math.sqrt(math.pi) * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))
        return self.radius * sphere / math.tanh(self.epsilon / 2)

    def randomise(self, vectors: Any, random: np.random.Generator) -> Array:
        """One message a vector.

        Args:
            vectors: ``[n, dimension]``.
            random: Source of the noise; for real use seed it from the operating system and never twice alike.

        Returns:
            ``[n, dimension]``, each of length :attr:`length`.

        Raises:
            InvalidArgument: If the vectors have another dimension or hold NaN or Inf.
        """
        directions, lengths = self._polar(vectors)
        n = len(directions)
        keep = random.random(n) < 0.5 + lengths / (2 * self.radius)
        near = random.random(n) < 1 / (1 + math.exp(-self.epsilon))
        drawn = random.normal(size=directions.shape)
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
        same_side = (drawn * directions).sum(1) > 0
        # The side wanted is that of the chosen pole if `near`, the other side if not.
        drawn[same_side != (keep == near)] *= -1
        messages: Array = self.length * drawn
        return messages

    def density(self, messages: Any, vector: Any) -> Array:
        """Density of messages given the vector, relative to uniform directions: what an adversary compares.

        For any two vectors it differs by a factor of ``exp(epsilon)`` at most; that is the whole of the guarantee.

        Args:
            messages: ``[n, dimension]``, of any length.
            vector: ``[dimension]``.

        Returns:
            ``[n]``.
        """
        directions, lengths = self._polar(check_vector("vector", vector, self.dimension)[None])
        same_side = check_rows("messages", messages) @ directions[0] > 0
        toward = 0.5 + float(lengths[0]) / (2 * self.radius)
        near = 1 / (1 + math.exp(-self.epsilon))
        chance = toward * near + (1 - toward) * (1 - near)
        return 2 * np.where(same_side, chance, 1 - chance)

    def _polar(self, vectors: Any) -> tuple[Array, Array]:
        """Directions and lengths, the lengths cut to the radius; the zero vector gets a direction, which is then of no consequence."""
        matrix = check_rows("vectors", vectors)
        if matrix.shape[1] != self.dimension:
            raise InvalidArgument(f"vectors must have {self.dimension} columns, got shape {matrix.shape}")
        lengths = np.linalg.norm(matrix, axis=1)
        first = np.zeros(self.dimension)
        first[0] = 1.0
        safe = np.where(lengths > 0, lengths, 1.0)[:, None]
        directions = np.where(lengths[:, None] > 0, matrix / safe, first)
        return directions, np.minimum(lengths, self.radius)


def clip_rows(matrix: Array, radius: float) -> Array:
    """Rows of ``matrix`` ``[n, d]``, those longer than ``radius`` cut to it."""
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    clipped: Array = matrix * (radius / np.maximum(lengths, radius))
    return clipped


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))
