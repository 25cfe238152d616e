"""What every registered method must do. A new method is covered by registering it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise import METHODS, LayerStats, Method, find_method, layer_error
from tersor.weights import CompressedWeight, weight_from_config

# For each option that sets a size, values from small to large.
SIZES: dict[str, list[Any]] = {"bits": [2, 3, 4, 8], "keep": [0.3, 0.6, 0.9], "sparsity": [0.75, 0.5, 0.25, 0.0]}
EVERY = pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))


def run(method: Method, weight: Tensor, stats: LayerStats | None, **options: Any) -> CompressedWeight:
    if "group_size" in method.options:
        options = {"group_size": 16} | options
    return method.function(weight, stats, **options)


def dial(method: Method) -> str | None:
    """The option that sets the size."""
    order = ("bits",) if composite(method) else ("sparsity", "bits", "keep")
    return next((name for name in order if name in method.options), None)


def composite(method: Method) -> bool:
    """Whether it passes options on to a base method, which is gptq here."""
    return "base" in method.options


@EVERY
def test_shape_kind_and_report(method: Method, layer: Any) -> None:
    compressed = run(method, layer.weight, layer.stats)
    assert compressed.kind == method.makes
    assert compressed.shape == tuple(compressed.dense().shape) == tuple(layer.weight.shape)
    assert 0 <= layer_error(layer.weight, compressed, layer.held_out) <= 1.0001
    json.dumps(compressed.report, allow_nan=False)


@EVERY
def test_stored_bytes_are_the_saved_tensors_and_fewer_than_float32(method: Method, layer: Any) -> None:
    compressed = run(method, layer.weight, layer.stats)
    state = compressed.state_dict()
    assert compressed.nbytes == sum(tensor.numel() * tensor.element_size() for tensor in state.values()) < 4 * layer.weight.numel()
    copy = weight_from_config(json.loads(json.dumps(compressed.config)))
    copy.load_state_dict(state)
    assert torch.equal(copy.dense(), compressed.dense())


@EVERY
def test_deterministic(method: Method, make_layer: Callable[..., Any]) -> None:
    first, second = (run(method, problem.weight, problem.stats).state_dict() for problem in (make_layer(3), make_layer(3)))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@EVERY
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed-view"])
def test_inputs_are_not_mutated(method: Method, transposed: bool, layer: Any) -> None:
    weight = layer.weight.T.contiguous().T if transposed else layer.weight.clone()
    hessian, mean_abs = layer.stats.hessian.clone(), layer.stats.mean_abs.clone()
    compressed = run(method, weight, layer.stats)
    dense = compressed.dense().clone()
    assert torch.equal(weight, layer.weight)
    assert torch.equal(layer.stats.hessian, hessian)
    assert torch.equal(layer.stats.mean_abs, mean_abs)
    weight.zero_()
    assert torch.equal(compressed.dense(), dense)


@EVERY
def test_trainable_weight_leaves_no_graph(method: Method, layer: Any) -> None:
    compressed = run(method, layer.weight.clone().requires_grad_(), layer.stats)
    assert not compressed.dense().requires_grad


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_any_floating_type(method: Method, dtype: torch.dtype, layer: Any) -> None:
    weight = layer.weight.to(dtype)
    assert torch.equal(run(method, weight, layer.stats).dense(), run(method, weight.float(), layer.stats).dense())


@EVERY
def test_error_falls_as_the_budget_grows(method: Method, make_layer: Callable[..., Any]) -> None:
    name = dial(method)
    if name is None:
        pytest.skip("one size only")
    for seed in range(3):
        problem = make_layer(seed)
        made = [run(method, problem.weight, problem.stats, **{name: value}) for value in SIZES[name]]
        errors = [layer_error(problem.weight, compressed, problem.held_out) for compressed in made]
        assert errors == sorted(errors, reverse=True)
        assert [compressed.nbytes for compressed in made] == sorted(compressed.nbytes for compressed in made)


@EVERY
@pytest.mark.parametrize("shape", [(40, 32), (32, 96), (1, 64), (33, 48)], ids=str)
def test_odd_shapes(method: Method, shape: tuple[int, int], make_layer: Callable[..., Any]) -> None:
    problem = make_layer(1, *shape)
    if dial(method) == "keep" and min(shape) == 1:
        with pytest.raises(InvalidArgument, match="saves nothing"):
            run(method, problem.weight, problem.stats)
        return
    compressed = run(method, problem.weight, problem.stats)
    assert compressed.shape == shape
    assert torch.isfinite(compressed.dense()).all()


@EVERY
@pytest.mark.parametrize("case", ["zero-weight", "zero-rows", "dead-inputs", "one-token", "zero-inputs", "huge", "tiny"])
def test_degenerate_layers_stay_finite(method: Method, case: str, layer: Any) -> None:
    weight, stats = degenerate(case, layer)
    dense = run(method, weight, stats).dense()
    assert torch.isfinite(dense).all()
    if case == "zero-weight":
        assert not dense.any()
    # The rows of a tensor train share their cores, so zeros among them are approximated like any other values.
    if case == "zero-rows" and method.makes != "tensor_train":
        assert not dense[:3].any()


def degenerate(case: str, layer: Any) -> tuple[Tensor, LayerStats]:
    weight, n = layer.weight.clone(), layer.weight.shape[1]
    inputs = torch.randn(512, n, generator=torch.Generator().manual_seed(5))
    if case == "zero-weight":
        weight.zero_()
    elif case == "zero-rows":
        weight[:3] = 0
    elif case == "dead-inputs":
        inputs[:, ::5] = 0
    elif case == "one-token":
        inputs = inputs[:1]
    elif case == "zero-inputs":
        inputs.zero_()
    elif case in ("huge", "tiny"):
        weight *= 1e5 if case == "huge" else 1e-7
    return weight, LayerStats.from_inputs(inputs)


@EVERY
def test_refuses_a_weight_that_is_not_a_finite_matrix(method: Method, layer: Any) -> None:
    broken = layer.weight.clone()
    broken[1, 2] = float("nan")
    with pytest.raises(InvalidArgument, match="1 NaN or Inf"):
        run(method, broken, layer.stats)
    with pytest.raises(InvalidArgument, match="matrix"):
        run(method, layer.weight[0], layer.stats)
    with pytest.raises(InvalidArgument, match="floating"):
        run(method, torch.ones(48, 64, dtype=torch.int32), layer.stats)


@EVERY
def test_refuses_missing_foreign_and_broken_statistics(method: Method, layer: Any) -> None:
    if method.needs == "nothing":
        assert run(method, layer.weight, None).shape == tuple(layer.weight.shape)
        return
    with pytest.raises(InvalidArgument, match="needs the statistics"):
        run(method, layer.weight, None)
    with pytest.raises(InvalidArgument, match=r"32 input features.*64"):
        run(method, layer.weight, LayerStats.identity(32))
    broken = LayerStats.identity(64)
    broken.hessian[0, 0] = float("nan")
    with pytest.raises(InvalidArgument, match="statistics hold NaN"):
        run(method, layer.weight, broken)


WRONG = [
    ("bits", 0, "bits must be an integer from 1 to 8, got 0"), ("bits", 9, "from 1 to 8"), ("bits", 2.5, "integer"),
    ("bits", True, "integer"), ("group_size", 48, r"group_size 48 does not divide the 64 input features; 8, 16, 32 or -1"),
    ("group_size", 0, "at least 1"), ("scheme", "ternary", "'symmetric', 'asymmetric', 'float_min'"), ("clip", "max", "clip must be"),
    ("damping", -1.0, "at least 0"), ("block_size", 0, "at least 1"), ("sparsity", 1.0, "at least 0 and below 1"),
    ("sparsity", -0.1, "at least 0"), ("sparsity", "half", "number"), ("sparsity", float("nan"), "number"),
    ("keep", 1.0, "below 1"), ("keep", -0.5, "at least 0"), ("rank", 0, "at least 1"), ("rank", 1.5, "integer"),
    ("value_dtype", "int8", "value_dtype must be"), ("factor_dtype", "int8", "factor_dtype must be"), ("alpha", -1.0, "at least 0"),
    ("grid_points", 0, "at least 1"),
]  # fmt: skip


@EVERY
def test_refuses_wrong_options_in_one_sentence(method: Method, layer: Any) -> None:
    for name, value, message in WRONG:
        if composite(method) and name not in find_method("gptq").options:
            continue
        if name in method.options and type(method.options[name]) is not bool:
            # Options of the grid are looked at where there is one.
            options = {"bits": 4} if name in ("group_size", "scheme") else {}
            with pytest.raises(InvalidArgument, match=message) as refusal:
                run(method, layer.weight, layer.stats, **options, **{name: value})
            assert "\n" not in str(refusal.value)
    with pytest.raises(InvalidArgument, match=f"method '{method.name}' takes no option 'colour'"):
        method.check_options({"colour": 1})


def test_unknown_method_is_refused_by_naming_the_known_ones() -> None:
    with pytest.raises(InvalidArgument, match=r"unknown method 'gtpq'; known methods are .*gptq"):
        find_method("gtpq")


@EVERY
def test_named_after_its_function_with_options_by_keyword_only(method: Method) -> None:
    assert method.function.__name__ == method.name
    assert method.function.__doc__
    assert "colour" not in method.options
