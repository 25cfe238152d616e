from __future__ import annotations

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.models.export.gguf_blocks import BLOCK_TYPES, BlockType, Fields


def random_fields(kind: BlockType, n: int, seed: int) -> Fields:
    """Every field anywhere in its range, the ends included."""
    random = np.random.default_rng(seed)
    groups = kind.block // kind.group
    codes = random.integers(kind.low, kind.high + 1, (n, kind.block)).astype(np.int16)
    codes[:, :2] = kind.low, kind.high
    d = (random.standard_normal(n) * 0.01).astype(np.float16)
    dmin = (random.standard_normal(n) * 0.01).astype(np.float16) if kind.has_min else None
    if kind.scale_range is None:
        return Fields(codes, d, dmin=dmin)
    low, high = kind.scale_range
    scales = random.integers(low, high + 1, (n, groups)).astype(np.int16)
    mins = random.integers(low, high + 1, (n, groups)).astype(np.int16) if kind.has_min else None
    return Fields(codes, d, scales, dmin, mins)


@pytest.mark.parametrize("kind", BLOCK_TYPES.values(), ids=lambda kind: kind.name)
def test_sizes_are_those_of_the_format(kind: BlockType) -> None:
    assert GGML_QUANT_SIZES[GGMLQuantizationType[kind.name]] == (kind.block, kind.nbytes)


@pytest.mark.parametrize("kind", BLOCK_TYPES.values(), ids=lambda kind: kind.name)
@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_packed_fields_decode_bit_for_bit(kind: BlockType, n: int, seed: int) -> None:
    fields = random_fields(kind, n, seed)
    decoded = dequantize(kind.pack(fields), GGMLQuantizationType[kind.name])
    assert np.array_equal(decoded.view(np.uint32), fields.values().view(np.uint32))
