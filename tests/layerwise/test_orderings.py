"""The order of the methods on inputs that they did not see: correlated synthetic layers, and real ones of a small trained model."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from tersor.layerwise import METHODS, LayerStats, layer_error, magnitude, sparsegpt, wanda

# Better first.
ORDERS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "three-bits": [("gptq", {"bits": 3, "group_size": -1}), ("rtn", {"bits": 3, "group_size": -1})],
    "three-bits-scaled": [("awq", {"bits": 3, "group_size": -1}), ("rtn", {"bits": 3, "group_size": -1})],
    "two-bits-clipped": [
        ("gptq", {"bits": 2, "group_size": -1, "clip": "hessian"}), ("rtn", {"bits": 2, "group_size": -1, "clip": "hessian"}),
        ("rtn", {"bits": 2, "group_size": -1}),
    ],
    "half": [(name, {"sparsity": 0.5}) for name in ("sparsegpt", "wanda", "magnitude")],
    "two-of-four": [(name, {"keep_n": 2, "of_m": 4}) for name in ("sparsegpt", "wanda", "magnitude")],
    "low-rank": [(name, {"keep": 0.6}) for name in ("whitened_svd", "asvd", "svd")],
}  # fmt: skip


def held_out_errors(problem: Any, ranking: list[tuple[str, dict[str, Any]]]) -> list[float]:
    made = [METHODS[name].function(problem.weight, problem.stats, **options) for name, options in ranking]
    return [layer_error(problem.weight, compressed, problem.held_out) for compressed in made]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ranking", ORDERS.values(), ids=list(ORDERS))
def test_order_on_correlated_inputs(ranking: list[tuple[str, dict[str, Any]]], seed: int, make_layer: Callable[..., Any]) -> None:
    errors = held_out_errors(make_layer(seed), ranking)
    assert all(better < 0.97 * worse for better, worse in pairwise(errors))


REAL = pytest.mark.parametrize("name", ["self_attn.q_proj", "mlp.up_proj", "mlp.down_proj"])


@REAL
@pytest.mark.parametrize("ranking", [value for key, value in ORDERS.items() if key != "half"], ids=[key for key in ORDERS if key != "half"])
def test_order_on_real_layers(ranking: list[tuple[str, dict[str, Any]]], name: str, real_layers: dict[str, Any]) -> None:
    errors = held_out_errors(real_layers[name], ranking)
    assert errors == sorted(errors)
    assert errors[0] < 0.9 * errors[-1]


@REAL
def test_order_of_unstructured_pruning_on_real_layers(name: str, real_layers: dict[str, Any]) -> None:
    """Wanda is compared with magnitudes within rows, which differ from it by the inputs alone.

    Against magnitudes over the whole matrix it loses here: the inputs of this small model hardly differ in size, its rows do, and
    removing equally many of every row costs more than knowing the inputs gains.
    """
    problem = real_layers[name]
    by_row = wanda(problem.weight, LayerStats.identity(problem.weight.shape[1]))
    compressed = (sparsegpt(problem.weight, problem.stats), wanda(problem.weight, problem.stats), by_row, magnitude(problem.weight))
    best, scored, unscored, over_matrix = (layer_error(problem.weight, each, problem.held_out) for each in compressed)
    assert best < 0.9 * min(scored, over_matrix)
    assert scored < unscored
