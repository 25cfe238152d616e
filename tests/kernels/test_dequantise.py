"""The compiled reader of packed rows against its plain torch twin."""

from __future__ import annotations

import pytest
import torch

from tersor.errors import InvalidArgument
from tersor.kernels import quantized, reference
from tersor.kernels.packing import pack_bits


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(("rows", "columns", "group_size"), [(3, 20, 20), (5, 37, -1), (192, 128, 64), (1, 64, 8)])
def test_dense_rows_are_those_of_the_twin(rows: int, columns: int, group_size: int, bits: int) -> None:
    random = torch.Generator().manual_seed(bits)
    codes = pack_bits(torch.randint(2**bits, (rows, columns), dtype=torch.uint8, generator=random), bits)
    groups = 1 if group_size == -1 else columns // group_size
    scale, minimum = (torch.randn(rows, groups, generator=random).half() for _ in range(2))
    options = {"bits": bits, "scheme": "float_min", "in_features": columns}
    made = quantized.dequantise(codes, scale, minimum, group_size=group_size, **options)
    torch.testing.assert_close(made, reference.dequantise(codes, scale, minimum, **options))


def test_buffers_that_do_not_belong_together_are_refused() -> None:
    codes, scale = torch.zeros(2, 8, dtype=torch.uint8), torch.ones(2, 3)
    with pytest.raises(InvalidArgument, match="do not fit a scale"):
        quantized.dequantise(codes, scale, scale, bits=4, scheme="float_min", group_size=4, in_features=16)
    with pytest.raises(InvalidArgument, match="the zero of float_min must be"):
        quantized.dequantise(codes, torch.ones(2, 4), None, bits=4, scheme="float_min", group_size=4, in_features=16)
