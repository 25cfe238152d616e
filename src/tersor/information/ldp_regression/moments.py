"""What a user sends once and what the server adds up: noisy second and cross moments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tersor.errors import InvalidArgument
from tersor.information.checking import Array, check_rows, check_vector
from tersor.information.ldp_regression.privacy import Mechanism, clip_rows, gaussian_shift
from tersor.layerwise.checking import check_integer, check_number


@dataclass(frozen=True)
class MomentSums:
    """Sums of messages. Those of disjoint users add; everything computed from them is as private as they are.

    Attributes:
        gram: Sum of noisy ``x x^T``, ``[d, d]``, or ``None`` if the users sent none.
        cross: Sum of noisy ``x y``, ``[d]``.
        count: Users.
    """

    gram: Array | None
    cross: Array
    count: int

    def __add__(self, other: MomentSums) -> MomentSums:
        if self.cross.shape != other.cross.shape or (self.gram is None) != (other.gram is None):
            raise InvalidArgument("sums of messages of different kinds cannot be added; collect them with the same mechanism")
        gram = None if self.gram is None or other.gram is None else self.gram + other.gram
        return MomentSums(gram, self.cross + other.cross, self.count + other.count)


@dataclass(frozen=True)
class MomentMechanism:
    """How one user's ``(x, y)`` becomes a message that is ``(epsilon, delta)``-private whatever the others and the server do.

    Inputs and targets are cut to public bounds before anything else, then Gaussian noise covers all that one user can change. Nothing here
    may depend on the data: bounds that are chosen by looking at it are not private.

    Attributes:
        dimension: Features.
        epsilon: Of differential privacy, of the whole message.
        delta: Likewise.
        radius: Largest Euclidean length of ``x`` in ``x x^T``.
        feature_bound: Largest absolute feature in ``x y``.
        target_bound: Largest absolute target in ``x y``.
        mechanism: ``"analytic"`` accounts for both parts of the message exactly and together, ``"classic"`` is the published noise, half
            the budget a part, for ``epsilon`` up to 2.
        public: Whether inputs are public: then only ``x y`` is sent, with the whole budget.
    """

    dimension: int
    epsilon: float
    delta: float
    radius: float
    feature_bound: float
    target_bound: float
    mechanism: Mechanism = "analytic"
    public: bool = False

    def __post_init__(self) -> None:
        check_integer("dimension", self.dimension, 1)
        for name in ("radius", "feature_bound", "target_bound"):
            if check_number(name, getattr(self, name), 0.0) <= 0:
                raise InvalidArgument(f"{name} must be positive, got {getattr(self, name)!r}")
        self._shift()

    @classmethod
    def for_gaussian_inputs(
        cls, dimension: int, users: int, epsilon: float, delta: float, *, scale: float = 1.0, target_scale: float = 1.0,
        mechanism: Mechanism = "analytic", public: bool = False,
    ) -> MomentMechanism:  # fmt: skip
        """Bounds that next to no user exceeds if features and targets are Gaussian, or lighter, with known standard deviations.

        Args:
            dimension: Features.
            users: Number of users, public.
            epsilon: Of differential privacy.
            delta: Likewise.
            scale: Standard deviation of the features, known without looking.
            target_scale: That of the targets.
            mechanism: See :class:`MomentMechanism`.
            public: Likewise.
        """
        check_integer("users", users, 1)
        check_integer("dimension", dimension, 1)
        length = math.sqrt(2 * math.log(max(users, 2)))
        return cls(
            dimension, epsilon, delta, scale * (math.sqrt(dimension) + length), scale * math.sqrt(length**2 + 2 * math.log(dimension)),
            target_scale * length, mechanism, public,
        )  # fmt: skip

    @property
    def gram_sensitivity(self) -> float:
        """The most that ``x x^T`` can change, in Frobenius norm: ``sqrt(2) r^2``, at orthogonal inputs; published as ``2 r^2``."""
        return (2 if self.mechanism == "classic" else math.sqrt(2)) * self.radius**2

    @property
    def cross_sensitivity(self) -> float:
        """The most that ``x y`` can change."""
        return 2 * math.sqrt(self.dimension) * self.feature_bound * self.target_bound

    @property
    def gram_noise(self) -> float:
        """Standard deviation of the noise on every entry of ``x x^T``; 0 if it is not sent."""
        return 0.0 if self.public else self.gram_sensitivity / self._shift()

    @property
    def cross_noise(self) -> float:
        """Standard deviation of the noise on every entry of ``x y``."""
        return self.cross_sensitivity / self._shift()

    def privatise(self, x: Any, y: Any, random: np.random.Generator) -> tuple[Array | None, Array]:
        """The messages of some users, each noised on its own.

        Args:
            x: ``[n, d]``.
            y: ``[n]``.
            random: Source of the noise; for real use seed it from the operating system and never twice alike.

        Returns:
            ``[n, d, d]`` symmetric, or ``None`` where inputs are public, and ``[n, d]``.

        Raises:
            InvalidArgument: On NaN or Inf, or other shapes.
        """
        inputs, targets = self._checked(x, y)
        cross = self._clipped_cross(inputs, targets) + self.cross_noise * random.normal(size=inputs.shape)
        if self.public:
            return None, cross
        short = clip_rows(inputs, self.radius)
        upper = np.triu(random.normal(size=(len(inputs), self.dimension, self.dimension)))
        noise = upper + np.triu(upper, 1).swapaxes(1, 2)
        return short[:, :, None] * short[:, None, :] + self.gram_noise * noise, cross

    def collect(self, x: Any, y: Any, random: np.random.Generator, *, chunk: int = 4096) -> MomentSums:
        """Messages of all users added up, in chunks; the same as adding up :meth:`privatise`.

        Args:
            x: ``[n, d]``.
            y: ``[n]``.
            random: Source of the noise.
            chunk: Users whose messages are in memory at once.
        """
        inputs, targets = self._checked(x, y)
        sums = MomentSums(None if self.public else np.zeros((self.dimension,) * 2), np.zeros(self.dimension), 0)
        for start in range(0, len(inputs), chunk):
            part = slice(start, start + chunk)
            gram, cross = self.privatise(inputs[part], targets[part], random)
            sums = sums + MomentSums(None if gram is None else gram.sum(0), cross.sum(0), len(cross))
        return sums

    def add_noise(self, sums: MomentSums, random: np.random.Generator) -> MomentSums:
        """Noise-free sums with what the noise of ``sums.count`` users adds up to, in one draw of the same law.

        For simulations with more users than fit in memory. The server must never hold noise-free sums of real users.

        Args:
            sums: Without noise.
            random: Source of the noise.
        """
        spread = math.sqrt(sums.count)
        cross = sums.cross + spread * self.cross_noise * random.normal(size=self.dimension)
        if sums.gram is None:
            return MomentSums(None, cross, sums.count)
        upper = np.triu(random.normal(size=(self.dimension,) * 2))
        return MomentSums(sums.gram + spread * self.gram_noise * (upper + np.triu(upper, 1).T), cross, sums.count)

    def _shift(self) -> float:
        """Over the standard deviation of its noise, the most that one part of the message can move."""
        if self.public:
            return gaussian_shift(self.epsilon, self.delta, self.mechanism)
        if self.mechanism == "classic":
            return gaussian_shift(self.epsilon / 2, self.delta / 2, self.mechanism)
        # Two Gaussian parts are one Gaussian message, whose shifts add in squares.
        return gaussian_shift(self.epsilon, self.delta) / math.sqrt(2)

    def _clipped_cross(self, inputs: Array, targets: Array) -> Array:
        features = np.clip(inputs, -self.feature_bound, self.feature_bound)
        return features * np.clip(targets, -self.target_bound, self.target_bound)[:, None]

    def _checked(self, x: Any, y: Any) -> tuple[Array, Array]:
        inputs = check_rows("x", x)
        if inputs.shape[1] != self.dimension:
            raise InvalidArgument(f"x must have {self.dimension} columns, got shape {inputs.shape}")
        return inputs, check_vector("y", y, len(inputs))


def soft_threshold(values: Any, threshold: float) -> Array:
    """``sign(v) max(|v| - threshold, 0)``.

    If every ``|v_j - w_j| <= threshold`` for a sparse ``w``, the result is zero wherever ``w`` is, and off by ``2 threshold`` at most in
    any entry: ``2 sqrt(k) threshold`` in length for ``k`` entries.

    Args:
        values: Of any shape.
        threshold: At least 0.
    """
    check_number("threshold", threshold, 0.0)
    array = np.asarray(values, dtype=np.float64)
    shrunk: Array = np.sign(array) * np.maximum(np.abs(array) - threshold, 0.0)
    return shrunk
