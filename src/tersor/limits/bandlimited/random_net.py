"""A network of one hidden layer whose hidden weights are drawn once and never trained."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from tersor.layerwise.checking import check_choice, check_integer, check_number
from tersor.limits.bandlimited.features import Activation, Biases, draw_parameters, evaluate_features
from tersor.limits.checking import Array

_RANK = 1e-8


class RandomNet(RegressorMixin, BaseEstimator):
    """``c_0 + sum_j c_j activation(a_j x - b_j)`` with frozen ``a_j``, ``b_j`` in a band and the best ``c`` by ridge regression.

    Its description is a seed, the bandwidth and the read-out: far smaller than a trained network of equal width, and mostly worse. The
    bandwidth decides: too small and no width helps, too large and every width is too small; see :func:`select_bandwidth`.

    Args:
        width: Hidden units.
        bandwidth: Weights are uniform in ``[-bandwidth, bandwidth]``, of standardised inputs.
        activation: ``"tanh"``, ``"relu"``, ``"cos"`` or ``"gauss"``. With ``"relu"`` the bandwidth only rescales the coefficients.
        biases: ``"band"`` for biases drawn like the weights, ``"data"`` for ``a_j x_0`` at random points of the data.
        ridge: Penalty on the squared coefficients, for each training row.
        random_state: Of the draws.

    Attributes:
        coefficients_: ``[width]``, or ``[width, m]`` for targets ``[n, m]``.
        norm_: ``sqrt(width) |c|``, to be compared with :func:`norm_budget`.
        rank_: Singular values of the features above 1e-8 of the largest.
        loo_error_: Root mean squared error of leaving one row out, in closed form; in units of the targets' deviation.

    Raises:
        InvalidArgument: On an option out of range.

    Reference:
        Li, Sonoda, Cao, Wang, Liang: "How Powerful are Shallow Neural Networks with Bandlimited Random Weights?", 2023.
    """

    def __init__(
        self, width: int = 200, bandwidth: float = 1.0, *, activation: Activation = "tanh", biases: Biases = "band", ridge: float = 1e-10,
        random_state: Any = None,
    ) -> None:  # fmt: skip
        self.width = width
        self.bandwidth = bandwidth
        self.activation = activation
        self.biases = biases
        self.ridge = ridge
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> RandomNet:
        """Draw the hidden layer and fit the read-out to ``X`` ``[n, d]`` and ``y`` ``[n]`` or ``[n, m]``."""
        self._check_options()
        inputs, targets = validate_data(self, X, y, multi_output=True, y_numeric=True, dtype=np.float64)
        self._mean, self._scale = inputs.mean(0), np.where((scale := inputs.std(0)) > 0, scale, 1.0)
        points = (inputs - self._mean) / self._scale
        self.weights_, self.biases_ = draw_parameters(points, self.width, float(self.bandwidth), self.biases, self._generator())
        self._offset = np.asarray(targets, dtype=np.float64).mean(0)
        values = np.asarray(targets, dtype=np.float64) - self._offset
        features = evaluate_features(points, self.weights_, self.biases_, self.activation)
        self._center = features.mean(0)
        u, s, vh = np.linalg.svd(features - self._center, full_matrices=False)
        shrunk = s**2 / (s**2 + len(points) * self.ridge) if self.ridge > 0 else (s > np.finfo(float).eps * s.max() * len(s)).astype(float)
        inverse = np.divide(shrunk, s, out=np.zeros_like(s), where=s > 0)
        self.coefficients_ = (vh.T * inverse) @ (u.T @ values)
        self.norm_ = math.sqrt(self.width) * float(np.linalg.norm(self.coefficients_))
        self.rank_ = int((s > _RANK * s[0]).sum())
        self.loo_error_ = _left_out(u, shrunk, values)
        return self

    def predict(self, X: Any) -> Array:
        """Predictions ``[n]``, or ``[n, m]`` if the targets were a matrix, for ``X`` ``[n, d]``."""
        check_is_fitted(self)
        inputs = validate_data(self, X, dtype=np.float64, reset=False)
        predicted: Array = (self._features(inputs) - self._center) @ self.coefficients_ + self._offset
        return predicted

    def features(self, X: Any) -> Array:
        """The frozen hidden layer ``[n, width]`` at ``X`` ``[n, d]``."""
        check_is_fitted(self)
        return self._features(validate_data(self, X, dtype=np.float64, reset=False))

    @property
    def nbytes(self) -> int:
        """Bytes that describe the fitted network: a seed, the bandwidth, moments of the inputs and the read-out in float32."""
        check_is_fitted(self)
        return 8 + 4 + 4 * (self._mean.size + self._scale.size + self.coefficients_.size + np.size(self._offset))

    def _features(self, inputs: Array) -> Array:
        return evaluate_features((inputs - self._mean) / self._scale, self.weights_, self.biases_, self.activation)

    def _generator(self) -> np.random.Generator:
        if isinstance(self.random_state, np.random.RandomState):
            return np.random.default_rng(self.random_state.randint(2**31 - 1))
        return np.random.default_rng(self.random_state)

    def _check_options(self) -> None:
        check_integer("width", self.width, 1)
        check_number("bandwidth", self.bandwidth, math.ulp(0.0))
        check_choice("activation", self.activation, Activation)
        check_choice("biases", self.biases, Biases)
        check_number("ridge", self.ridge, 0.0)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _left_out(u: Array, shrunk: Array, values: Array) -> float:
    """Root mean squared error of predicting each row from the others, relative to the deviation of the targets."""
    # The mean of the rows is one more direction that is fitted.
    leverage = (u**2) @ shrunk + 1 / len(u)
    residual = values - (u * shrunk) @ (u.T @ values)
    free = np.maximum(1 - leverage, 1e-9)
    left = residual / (free if values.ndim == 1 else free[:, None])
    return float(np.sqrt((left**2).mean() / max(float((values**2).mean()), 1e-300)))
