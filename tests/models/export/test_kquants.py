from __future__ import annotations

import ctypes
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.models.export.gguf_blocks import BLOCK_TYPES
from tersor.models.export.kquants import quantize

SHAPES = ("gauss", "heavy", "skewed")


def matrix_of(shape: str, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(48, 512, generator=random)
    return {"gauss": 0.02 * x, "heavy": 0.02 * x * x.abs(), "skewed": x.abs() - 0.2}[shape]


@pytest.mark.parametrize("name", BLOCK_TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_what_a_reader_decodes(name: str, shape: str) -> None:
    packed, values = quantize(matrix_of(shape), name)
    decoded = dequantize(packed, GGMLQuantizationType[name])
    assert np.array_equal(decoded.view(np.uint32), values.numpy().view(np.uint32))


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_zeros_stay_zero(name: str) -> None:
    packed, values = quantize(torch.zeros(3, 256), name)
    assert not values.any()
    assert not dequantize(packed, GGMLQuantizationType[name]).any()


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_constant_rows_do_not_break(name: str) -> None:
    x = torch.tensor([[0.5], [-0.25]]).expand(2, 256).contiguous()
    _, values = quantize(x, name)
    assert torch.allclose(values, x, rtol=0.02)


def test_more_bits_lose_less() -> None:
    x = matrix_of("gauss")
    errors = [float((quantize(x, name)[1] - x).square().sum()) for name in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("name", ["Q2_K", "Q4_K", "Q6_K", "Q4_0", "Q4_1"])
def test_importance_moves_the_error_to_unimportant_columns(name: str) -> None:
    x = matrix_of("gauss")
    importance = torch.ones(512)
    importance[::2] = 100

    def important_error(values: Tensor) -> float:
        return float((values - x)[:, ::2].square().sum())

    assert important_error(quantize(x, name, importance)[1]) < 0.95 * important_error(quantize(x, name)[1])


def test_rows_must_consist_of_whole_blocks() -> None:
    with pytest.raises(InvalidArgument, match="Q4_K stores rows in blocks of 256, a row of 64 weights does not fit"):
        quantize(torch.zeros(2, 64), "Q4_K")


def test_scales_beyond_half_precision_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="beyond float16"):
        quantize(torch.full((1, 32), 1e9), "Q4_0")


def test_importance_of_another_width_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="importance must be 64 finite numbers"):
        quantize(torch.zeros(2, 64), "Q4_0", torch.ones(32))


@pytest.mark.parametrize("name", BLOCK_TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_error_is_not_worse_than_that_of_llama_cpp(name: str, shape: str) -> None:
    spec = find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        pytest.skip("llama_cpp is not installed")
    library = ctypes.CDLL(str(Path(spec.origin).parent / "lib" / "libggml-base.so"))
    x = np.ascontiguousarray(matrix_of(shape).numpy())
    kind = BLOCK_TYPES[name]
    packed = np.zeros((x.shape[0], x.shape[1] // kind.block * kind.nbytes), np.uint8)
    pointers = ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(packed.ctypes.data)
    sizes = (ctypes.c_int64(0), ctypes.c_int64(x.shape[0]), ctypes.c_int64(x.shape[1]))
    library.ggml_quantize_chunk(int(GGMLQuantizationType[name]), *pointers, *sizes, None)
    theirs = ((dequantize(packed, GGMLQuantizationType[name]) - x) ** 2).sum() ** 0.5
    ours = ((quantize(torch.from_numpy(x), name)[1].numpy() - x) ** 2).sum() ** 0.5
    assert ours <= 1.05 * theirs
