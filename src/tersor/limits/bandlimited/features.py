"""Random features of a bounded band, and what they are on average."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from tersor.layerwise.checking import check_choice, check_integer, check_number
from tersor.limits.checking import Array, check_array

Activation = Literal["tanh", "relu", "cos", "gauss"]
Biases = Literal["band", "data"]

_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": np.tanh, "relu": lambda z: np.maximum(z, 0.0), "cos": np.cos, "gauss": lambda z: np.exp(-z * z / 2),
}  # fmt: skip


def draw_parameters(inputs: Array, width: int, bandwidth: float, biases: Biases, random: np.random.Generator) -> tuple[Array, Array]:
    """Frozen weights ``[d, width]``, uniform in ``[-bandwidth, bandwidth]``, and biases ``[width]``.

    Args:
        inputs: ``[n, d]``, where biases may come from.
        width: Number of features.
        bandwidth: Largest magnitude of a weight.
        biases: ``"band"`` for biases drawn like the weights; ``"data"`` for kinks at points of the data.
        random: Of the draws.
    """
    weights = random.uniform(-bandwidth, bandwidth, (inputs.shape[1], width))
    if biases == "band":
        return weights, random.uniform(-bandwidth, bandwidth, width)
    return weights, np.einsum("nd,dn->n", inputs[random.integers(len(inputs), size=width)], weights)


def evaluate_features(inputs: Array, weights: Array, biases: Array, activation: Activation) -> Array:
    """``activation(inputs @ weights - biases)``, ``[n, width]``."""
    return _FUNCTIONS[activation](inputs @ weights - biases)


def mean_gram(
    inputs: Any, *, bandwidth: float, activation: Activation = "tanh", samples: int = 20000, seed: int = 0
) -> Array:  # fmt: skip
    """Expectation over frozen weights and biases of the products of a feature at two points: the gram matrix of infinite width.

    For ``"cos"`` the biases are taken over a whole period, and it is ``prod_k sinc(bandwidth d_k) / 2`` in closed form; for the others it
    is the mean of ``samples`` draws.

    Args:
        inputs: ``[n, d]``.
        bandwidth: Largest magnitude of a weight, and of a bias.
        activation: Of the features.
        samples: Draws.
        seed: Of the draws.

    Returns:
        ``[n, n]``.

    Raises:
        InvalidArgument: On an argument out of range.
    """
    points = check_array("inputs", inputs, 2)
    check_number("bandwidth", bandwidth, math.ulp(0.0))
    check_choice("activation", activation, Activation)
    check_integer("samples", samples, 1)
    if activation == "cos":
        differences = points[:, None] - points[None]
        return np.sinc(bandwidth * differences / math.pi).prod(-1) / 2
    random = np.random.default_rng(seed)
    gram, done = np.zeros((len(points), len(points))), 0
    while done < samples:
        part = min(4096, samples - done)
        features = evaluate_features(points, *draw_parameters(points, part, bandwidth, "band", random), activation)
        gram += features @ features.T
        done += part
    return gram / samples
