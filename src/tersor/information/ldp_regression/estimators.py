"""Sparse linear regression from private messages, as scikit-learn estimators."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from tersor.errors import InvalidArgument, TersorError
from tersor.information.checking import Array, check_rows
from tersor.information.ldp_regression.moments import MomentMechanism, MomentSums, soft_threshold
from tersor.information.ldp_regression.privacy import BallRandomiser, Mechanism, check_epsilon, clip_rows
from tersor.layerwise.checking import check_choice, check_integer, check_number

Indefinite = Literal["refuse", "floor"]
# Chance that the noise of some coefficient exceeds the threshold of the theory.
_UNCOVERED = 0.01


class _PrivateRegression(RegressorMixin, BaseEstimator):
    """What both estimators share: predictions, the seed, and what they tell scikit-learn."""

    coef_: Array
    random_state: int | None

    def predict(self, X: Any) -> Array:
        """Predictions ``[n]`` for ``X`` ``[n, d]``."""
        check_is_fitted(self)
        predicted: Array = validate_data(self, X, dtype=np.float64, reset=False) @ self.coef_
        return predicted

    def _random(self) -> np.random.Generator:
        return np.random.default_rng(self.random_state)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # Privacy has its price in samples; those of a unit test do not pay it.
        tags.regressor_tags.poor_score = True
        return tags


class NLDPRegression(_PrivateRegression):
    """Sparse linear regression where every user sends one ``(epsilon, delta)``-private message and hears nothing.

    The server adds up noisy second and cross moments, solves the normal equations and soft-thresholds the solution. With ``public_inputs``
    the second moment comes from inputs that need no privacy, and the error falls by the square root of the dimension. There is no
    intercept: the model is ``y = <x, coef> + noise`` with centred data.

    Args:
        epsilon: Of differential privacy.
        delta: Likewise.
        scale: Standard deviation of the features, known without looking at them; bounds follow from it and the number of users.
        target_scale: That of the targets.
        threshold: Of the solution; ``"theory"`` covers the noise of every coefficient in about 99 % of runs, from public numbers alone.
            Pass your own number only if no private data went into choosing it.
        coef_bound: Length that the true coefficients do not exceed, for ``"theory"``.
        mechanism: See :class:`MomentMechanism`.
        indefinite: What to do when noise leaves the second moment without an inverse, as below about ``d^4 / epsilon^2`` users:
            ``"refuse"``, or ``"floor"`` its eigenvalues with a warning, which gives an answer that is mostly noise.
        floor: Smallest eigenvalue allowed, relative to ``scale ** 2``.
        random_state: Seed of the noise, ``None`` for one from the operating system, as real use needs.

    Attributes:
        coef_: ``[d]``.
        threshold_: In use.
        smallest_eigenvalue_: Of the second moment before flooring: what says whether there were enough users.
        mechanism_: The :class:`MomentMechanism` in use.
        n_features_in_: Features.

    Reference:
        Zhu, Ding, Aggarwal, Xu, Wang: "Improved Analysis of Sparse Linear Regression in Local Differential Privacy Model", 2024.
    """

    def __init__(
        self, epsilon: float = 1.0, delta: float = 1e-5, *, scale: float = 1.0, target_scale: float = 1.0,
        threshold: float | Literal["theory"] = "theory", coef_bound: float = 1.0, mechanism: Mechanism = "analytic",
        indefinite: Indefinite = "refuse", floor: float = 0.1, random_state: int | None = None,
    ) -> None:  # fmt: skip
        self.epsilon = epsilon
        self.delta = delta
        self.scale = scale
        self.target_scale = target_scale
        self.threshold = threshold
        self.coef_bound = coef_bound
        self.mechanism = mechanism
        self.indefinite = indefinite
        self.floor = floor
        self.random_state = random_state

    def fit(self, X: Any, y: Any, public_inputs: Any = None) -> NLDPRegression:
        """Privatise every row of ``X`` ``[n, d]`` and ``y`` ``[n]`` on its own, and estimate from the messages.

        Args:
            X: Private inputs.
            y: Private targets.
            public_inputs: ``[m, d]`` from the same distribution that need no privacy, or ``None``.
        """
        inputs, targets = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        mechanism = self.mechanism_for(inputs.shape[1], len(inputs), public_inputs is not None)
        return self.fit_messages(mechanism.collect(inputs, targets, self._random()), mechanism, public_inputs)

    def mechanism_for(self, dimension: int, users: int, public: bool = False) -> MomentMechanism:
        """What every user runs before sending anything; made of public numbers.

        Args:
            dimension: Features.
            users: How many.
            public: Whether inputs are.
        """
        return MomentMechanism.for_gaussian_inputs(
            dimension, users, self.epsilon, self.delta, scale=self.scale, target_scale=self.target_scale,
            mechanism=self.mechanism, public=public,
        )  # fmt: skip

    def fit_messages(self, sums: MomentSums, mechanism: MomentMechanism, public_inputs: Any = None) -> NLDPRegression:
        """Estimate from messages that were added up elsewhere, in any number of places.

        Args:
            sums: Of the messages.
            mechanism: That they were made with.
            public_inputs: See :meth:`fit`.
        """
        check_choice("indefinite", self.indefinite, Indefinite)
        check_number("floor", self.floor, 0.0)
        moment = self._moment(sums, public_inputs)
        values, vectors = np.linalg.eigh(moment)
        self.smallest_eigenvalue_ = float(values[0])
        values = self._floored(values)
        solution = vectors @ ((vectors.T @ sums.cross) / sums.count / values)
        self.threshold_ = self._threshold(mechanism, sums.count, float(values[0]))
        self.coef_ = soft_threshold(solution, self.threshold_)
        self.mechanism_, self.n_features_in_ = mechanism, mechanism.dimension
        return self

    def _moment(self, sums: MomentSums, public_inputs: Any) -> Array:
        if public_inputs is None:
            if sums.gram is None:
                raise InvalidArgument("these messages hold no second moment; pass the public inputs that it is to come from")
            gram: Array = sums.gram / sums.count
            return gram
        inputs = check_rows("public_inputs", public_inputs)
        if inputs.shape[1] != len(sums.cross):
            raise InvalidArgument(f"public_inputs must have {len(sums.cross)} columns, got shape {inputs.shape}")
        moment: Array = inputs.T @ inputs / len(inputs)
        return moment

    def _floored(self, values: Array) -> Array:
        lowest = self.floor * self.scale**2
        if values[0] >= lowest:
            return values
        told = f"the noisy second moment has the eigenvalue {values[0]:.3g}, below {lowest:.3g}: too few users for this epsilon"
        if self.indefinite == "refuse":
            raise TersorError(f"{told}; pass public inputs, find more users, or set indefinite='floor' for an answer that is mostly noise")
        warnings.warn(f"{told}; the coefficients are mostly noise", RuntimeWarning, stacklevel=4)
        return np.maximum(values, lowest)

    def _threshold(self, mechanism: MomentMechanism, users: int, smallest: float) -> float:
        if self.threshold != "theory":
            return check_number("threshold", self.threshold, 0.0)
        bound = check_number("coef_bound", self.coef_bound, 0.0)
        # Entry j of cross - moment @ truth has this noise; a union bound over entries, then the most that the inverse makes of it.
        noise = math.hypot(mechanism.cross_noise, mechanism.gram_noise * bound)
        return math.sqrt(2 * math.log(2 * mechanism.dimension / _UNCOVERED)) * noise / (math.sqrt(users) * smallest)


class PrivateIHT(_PrivateRegression):
    """Sparse linear regression where users answer one after the other, in groups, each once and with ``epsilon`` and no ``delta``.

    Every group privatises the gradient of its squared error at the current coefficients, the server takes a step, keeps the largest
    coefficients and stays in the unit ball: iterative hard thresholding. Needs far fewer users than :class:`NLDPRegression`, and as many
    rounds of conversation as groups.

    Args:
        epsilon: Of differential privacy.
        n_nonzero: Coefficients kept, more than are expected to matter.
        rounds: Groups; ``None`` for ``log2`` of the users, at most 20.
        step: Length of a step; 1 is Newton's for white inputs of scale 1.
        scale: Standard deviation of the features, known without looking at them.
        coef_bound: Length that coefficients may have.
        gradient_bound: Length that gradients are cut to, in units of ``scale ** 2 * coef_bound * sqrt(d)``; larger ones bring noise,
            smaller ones bias.
        random_state: Seed of the noise, ``None`` for one from the operating system, as real use needs.

    Attributes:
        coef_: ``[d]``.
        path_: Coefficients after every round, ``[rounds, d]``.
        randomiser_: The :class:`BallRandomiser` that all users ran.
        n_features_in_: Features.

    Reference:
        Zhu, Ding, Aggarwal, Xu, Wang: "Improved Analysis of Sparse Linear Regression in Local Differential Privacy Model", 2024.
    """

    def __init__(
        self, epsilon: float = 1.0, n_nonzero: int = 8, *, rounds: int | None = None, step: float = 0.5, scale: float = 1.0,
        coef_bound: float = 1.0, gradient_bound: float = 2.0, random_state: int | None = None,
    ) -> None:  # fmt: skip
        self.epsilon = epsilon
        self.n_nonzero = n_nonzero
        self.rounds = rounds
        self.step = step
        self.scale = scale
        self.coef_bound = coef_bound
        self.gradient_bound = gradient_bound
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> PrivateIHT:
        """Privatise every row of ``X`` ``[n, d]`` and ``y`` ``[n]`` when the turn of its group comes, and estimate from the messages.

        Groups are consecutive rows: who answers when must not depend on what they hold.
        """
        inputs, targets = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        n, d = inputs.shape
        self._check_options()
        rounds = min(self.rounds or min(max(round(math.log2(n)), 1), 20), n)
        self.randomiser_ = BallRandomiser(self.epsilon, self.gradient_bound * self.scale**2 * self.coef_bound * math.sqrt(d), d)
        random = self._random()
        current, path = np.zeros(d), []
        for group in np.array_split(np.arange(n), rounds):
            messages = self.randomiser_.randomise(self.gradients(inputs[group], targets[group], current), random)
            current = self._projected(current - self.step / self.scale**2 * messages.mean(0))
            path.append(current)
        self.coef_, self.path_ = current, np.array(path)
        return self

    def gradients(self, x: Any, y: Any, coef: Any) -> Array:
        """What users compute before privatising, ``x (<x, coef> - y)``, cut to the radius of the randomiser.

        Args:
            x: ``[n, d]``.
            y: ``[n]``.
            coef: ``[d]``, as announced by the server.

        Returns:
            ``[n, d]``.
        """
        inputs = np.asarray(x, dtype=np.float64)
        return clip_rows(inputs * (inputs @ np.asarray(coef) - np.asarray(y))[:, None], self.randomiser_.radius)

    def _projected(self, coef: Array) -> Array:
        kept = np.argsort(-np.abs(coef))[: self.n_nonzero]
        sparse = np.zeros_like(coef)
        sparse[kept] = coef[kept]
        length = float(np.linalg.norm(sparse))
        return sparse * min(1.0, self.coef_bound / length) if length > 0 else sparse

    def _check_options(self) -> None:
        check_epsilon(self.epsilon)
        check_integer("n_nonzero", self.n_nonzero, 1)
        if self.rounds is not None:
            check_integer("rounds", self.rounds, 1)
        for name in ("step", "scale", "coef_bound", "gradient_bound"):
            if check_number(name, getattr(self, name), 0.0) <= 0:
                raise InvalidArgument(f"{name} must be positive, got {getattr(self, name)!r}")
