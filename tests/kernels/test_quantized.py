from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.kernels import _openmp, quantized, reference
from tersor.kernels.packing import pack_bits
from tersor.kernels.quantized import quantized_linear

SCHEMES = ("symmetric", "asymmetric", "float_min")
# (in_features, group_size): whole chunks, a tail, one group of odd length, groups that share a lane, and groups of a single lane.
SHAPES = [(256, 64), (576, 64), (576, 32), (172, 172), (172, 43), (172, 86), (130, 130), (7, 7), (520, 8), (128, 4), (96, 24), (576, 192)]


def weight_of(rows: int, in_features: int, group_size: int, bits: int, scheme: str, seed: int = 0) -> dict[str, Any]:
    """Random arguments of ``quantized_linear`` but x."""
    generator = torch.Generator().manual_seed(seed)
    groups = in_features // group_size

    def codes(columns: int) -> Tensor:
        return pack_bits(torch.randint(0, 2**bits, (rows, columns), generator=generator, dtype=torch.uint8), bits)

    scale = (torch.rand(rows, groups, generator=generator) + 0.1).half()
    low = (-(2 ** (bits - 1)) * torch.rand(rows, groups, generator=generator)).half()
    zero = {"symmetric": None, "asymmetric": codes(groups), "float_min": low}[scheme]
    shape = {"bits": bits, "scheme": scheme, "group_size": group_size, "in_features": in_features}
    return {"codes": codes(in_features), "scale": scale, "zero": zero, **shape}


def dense_of(weight: dict[str, Any]) -> Tensor:
    return reference.dequantise(**{key: value for key, value in weight.items() if key != "group_size"})


def activations(rows: int, in_features: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(rows, in_features, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error_of(y: Tensor, x: Tensor, weight: dict[str, Any]) -> float:
    """The largest error of ``y``, in units of the sum of the absolute products; a step of the grid counts as at least a product."""
    dense = dense_of(weight).double()
    step = weight["scale"].double().repeat_interleave(weight["group_size"], 1)
    return float(((y.double() - x.double() @ dense.T).abs() / (x.double().abs() @ (dense.abs() + step).T)).max())


@contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def always_parallel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "_GRAIN", 0)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}in-group{shape[1]}")
@pytest.mark.parametrize("bits", range(1, 9), ids=lambda bits: f"{bits}bit")
def test_product_agrees_with_the_twin(bits: int, shape: tuple[int, int]) -> None:
    for scheme in SCHEMES:
        for rows in (1, 5, 33):
            weight = weight_of(rows, *shape, bits, scheme)
            for m in (1, 3, 17):
                x = activations(m, shape[0])
                assert error_of(quantized_linear(x, **weight), x, weight) < 2e-6, (scheme, rows, m)


@pytest.mark.parametrize("m", [1, 4, 9], ids=lambda m: f"{m}rows")
@pytest.mark.parametrize("bits", [2, 4, 8], ids=lambda bits: f"{bits}bit")
def test_float32_agrees_to_a_hundred_thousandth_of_the_norm(bits: int, m: int) -> None:
    weight, x = weight_of(96, 576, 64, bits, "asymmetric"), activations(m, 576)
    exact = x.double() @ dense_of(weight).double().T
    assert float((quantized_linear(x, **weight) - exact).norm() / exact.norm()) < 1e-5


@pytest.mark.parametrize("bits", range(1, 9), ids=lambda bits: f"{bits}bit")
def test_a_massive_activation_does_not_drown_its_neighbours(bits: int) -> None:
    weight, x = weight_of(64, 576, 64, bits, "symmetric"), activations(1, 576)
    without = quantized_linear(x.index_fill(1, torch.tensor(100), 0.0), **weight)
    x[0, 100] = 1000.0
    rest = quantized_linear(x, **weight) - 1000 * dense_of(weight)[:, 100]
    assert float((rest - without).norm() / without.norm()) < 1e-4


@pytest.mark.parametrize("m", [1, 4, 40], ids=lambda m: f"{m}rows")
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)], ids=["bfloat16", "float16"])
def test_half_activations_are_summed_in_float32(dtype: torch.dtype, bound: float, m: int) -> None:
    for shape in ((576, 64), (172, 43)):
        weight, x = weight_of(33, *shape, 4, "asymmetric"), activations(m, shape[0], dtype)
        y = quantized_linear(x, **weight)
        assert y.dtype == dtype
        assert error_of(y, x, weight) < bound


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("bits", "dtype"), [*((bits, torch.float32) for bits in range(1, 9)), (3, torch.bfloat16), (4, torch.bfloat16)], ids=str
)
def test_tiles_are_the_dense_rows_to_the_bit(bits: int, scheme: str, dtype: torch.dtype) -> None:
    for shape in ((192, 64), (172, 43), (96, 24)):
        weight = weight_of(21, *shape, bits, scheme)
        dense = dense_of(weight).to(dtype)
        for first, tile in quantized._tiles(quantized._Packed(**weight), dtype):
            # The kernel rounds `scale * code + minimum` once, torch twice.
            expected = dense[first : first + len(tile)]
            assert torch.allclose(tile.float(), expected.float(), rtol=2e-7 if dtype == torch.float32 else 8e-3, atol=1e-5)
            assert scheme == "float_min" or torch.equal(tile, expected)


@pytest.mark.parametrize("m", [1, 5, 16], ids=lambda m: f"{m}rows")
def test_same_bits_on_every_number_of_threads(m: int, always_parallel: None) -> None:
    weight, x = weight_of(51, 576, 64, 3, "asymmetric"), activations(m, 576)
    made = []
    for n in (1, 2, 3, 2):
        with threads(n):
            made += [quantized_linear(x, **weight) for _ in range(5)]
    assert all(torch.equal(made[0], y) for y in made)


@pytest.mark.parametrize("shape", [(576, 64), (172, 43)], ids=["aligned", "unaligned"])
def test_same_tiles_on_every_number_of_threads(shape: tuple[int, int], always_parallel: None) -> None:
    packed, made = quantized._Packed(**weight_of(51, *shape, 3, "asymmetric")), []
    for n in (1, 2, 3):
        with threads(n):
            made += [tile.clone() for _, tile in quantized._tiles(packed, torch.float32)]
    assert all(torch.equal(made[0], tile) for tile in made)


def test_a_row_does_not_depend_on_its_company() -> None:
    weight, x = weight_of(9, 256, 64, 4, "symmetric"), activations(1, 256)
    whole = quantized_linear(x, **weight)
    for row in range(9):
        alone = {**weight, "codes": weight["codes"][row : row + 1], "scale": weight["scale"][row : row + 1]}
        assert torch.equal(quantized_linear(x, **alone)[0, 0], whole[0, row])


def test_python_threads_may_call_at_once(always_parallel: None) -> None:
    weight, x = weight_of(64, 576, 64, 4, "asymmetric"), activations(1, 576)
    expected = quantized_linear(x, **weight)
    with threads(2), ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: quantized_linear(x, **weight), range(64)))
    assert all(torch.equal(expected, y) for y in made)


def _answer(queue: Any, x: Tensor, weight: dict[str, Any]) -> None:
    queue.put(quantized_linear(x, **weight).tolist())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_computes_alone(always_parallel: None) -> None:
    weight, x = weight_of(64, 576, 64, 4, "symmetric"), activations(1, 576)
    with threads(2):
        expected = quantized_linear(x, **weight).tolist()
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        child = context.Process(target=_answer, args=(queue, x, weight))
        child.start()
        child.join(60)
        child.kill()
    assert child.exitcode == 0
    assert queue.get() == expected


def test_thread_settings_are_left_alone() -> None:
    with threads(2):
        quantized_linear(activations(2, 576), **weight_of(256, 576, 64, 4, "symmetric"))
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize("m", [1, 20], ids=lambda m: f"{m}rows")
def test_gradient_of_x(m: int) -> None:
    weight = weight_of(33, 172, 43, 4, "asymmetric")
    x = activations(m, 172).requires_grad_()
    y = quantized_linear(x, **weight)
    direction = activations(m, 33, seed=5)
    (gradient,) = torch.autograd.grad(y, x, direction)
    assert torch.allclose(gradient, direction @ dense_of(weight), rtol=1e-4, atol=1e-4)


def test_tiles_of_inference_mode_serve_training() -> None:
    weight, x = weight_of(33, 192, 64, 4, "asymmetric"), activations(40, 192)
    with ThreadPoolExecutor(1) as fresh_thread, torch.inference_mode():
        inferred = fresh_thread.submit(torch.inference_mode()(lambda: quantized_linear(x, **weight))).result()
        trained = fresh_thread.submit(lambda: quantized_linear(x.clone().requires_grad_(), **weight))
    trained.result().sum().backward()
    assert torch.equal(inferred, trained.result())


def test_gradient_of_the_scale_goes_through_the_twin() -> None:
    weight = weight_of(5, 64, 32, 4, "asymmetric")
    scale = weight["scale"].float().requires_grad_()
    quantized_linear(activations(2, 64), **{**weight, "scale": scale}).sum().backward()
    assert scale.grad is not None
    assert float(scale.grad.abs().sum()) > 0


def test_float32_scales() -> None:
    weight, x = weight_of(9, 192, 32, 4, "float_min"), activations(2, 192)
    weight = {**weight, "scale": weight["scale"].float() / 3, "zero": weight["zero"].float() / 7}
    assert error_of(quantized_linear(x, **weight), x, weight) < 2e-6


def test_shapes_of_x() -> None:
    weight = weight_of(5, 64, 32, 4, "symmetric")
    assert quantized_linear(activations(1, 64)[0], **weight).shape == (5,)
    assert quantized_linear(torch.zeros(0, 64), **weight).shape == (0, 5)
    assert quantized_linear(torch.zeros(2, 3, 64), **weight).shape == (2, 3, 5)
    strided = activations(64, 6).t()
    assert torch.equal(quantized_linear(strided, **weight), quantized_linear(strided.contiguous(), **weight))
    assert torch.equal(quantized_linear(activations(1, 64), **{**weight, "group_size": 32}), quantized_linear(activations(1, 64), **weight))


def test_per_channel_is_minus_one() -> None:
    weight, x = weight_of(5, 172, 172, 4, "symmetric"), activations(2, 172)
    assert torch.equal(quantized_linear(x, **{**weight, "group_size": -1}), quantized_linear(x, **weight))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(value: float) -> None:
    x = activations(1, 576)
    x[0, 100] = value
    assert not torch.isfinite(quantized_linear(x, **weight_of(5, 576, 64, 4, "symmetric"))).any()


def test_autocast_keeps_the_type_of_x() -> None:
    weight = weight_of(5, 64, 32, 4, "symmetric")
    with torch.autocast("cpu", torch.bfloat16):
        assert all(quantized_linear(activations(m, 64), **weight).dtype == torch.float32 for m in (1, 40))


@pytest.mark.parametrize("bits", [1, 2, 4, 8], ids=lambda bits: f"{bits}bit")
def test_processors_without_byte_products_get_the_same(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = quantized._compiled()
    weight, x = weight_of(33, 576, 64, bits, "asymmetric"), activations(1, 576)
    monkeypatch.setattr(compiled, "has_byte_products", lambda: False)
    assert error_of(quantized_linear(x, **weight), x, weight) < 2e-6


def test_without_numba_the_twin_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = weight_of(9, 192, 32, 4, "asymmetric"), activations(2, 192)
    monkeypatch.setattr(quantized, "kernels_run", lambda: False)
    assert torch.equal(quantized_linear(x, **weight), x @ dense_of(weight).T)


def test_other_devices_use_the_twin() -> None:
    weight = weight_of(9, 192, 32, 4, "asymmetric")
    weight |= {key: value.to("meta") for key, value in weight.items() if isinstance(value, Tensor)}
    assert quantized_linear(torch.empty(2, 192, device="meta"), **weight).shape == (2, 9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_features": 128}, "128 features"),
        ({"bits": 9}, "1 to 8 bits"),
        ({"bits": 3}, "do not fit codes"),
        ({"scheme": "log"}, "is one of symmetric"),
        ({"group_size": 16}, "do not fit a scale"),
        ({"zero": None}, "zero of asymmetric"),
        ({"zero": torch.zeros(9, 6)}, "zero of asymmetric"),
    ],
    ids=["features", "bits", "codes", "scheme", "groups", "no-zero", "zero"],
)
def test_what_does_not_belong_together_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        quantized_linear(activations(1, 192), **{**weight_of(9, 192, 32, 4, "asymmetric"), **change})


def test_the_openmp_entries_are_those_of_torch() -> None:
    launcher, thread, team, n = _openmp.team_for(10, 0)
    assert n == (torch.get_num_threads() if launcher else 1)
    assert bool(launcher) == bool(thread) == bool(team)


def test_importing_does_not_import_numba() -> None:
    code = "import sys, tersor.kernels.quantized, tersor.kernels.sparse; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
