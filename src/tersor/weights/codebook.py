"""A weight whose groups of neighbouring inputs are sums of vectors from learned codebooks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.kernels.codebook import codebook_linear, lookup
from tersor.kernels.packing import pack_bits, packed_size, unpack_bits
from tersor.weights.affine import round_scale
from tersor.weights.base import CompressedWeight
from tersor.weights.checking import dtype_name, read_dtype, read_group_size, read_int, read_shape

MOST_CODEBOOKS = 8


class CodebookWeight(CompressedWeight):
    """``W[i, group j] = scale[i] * sum_m codebooks[m, codes[i, j, m]]``: vector quantisation, additive for more than one codebook.

    At and under 2 bits it keeps more than a :class:`QuantizedWeight` of the same bytes, as the levels go where the weights are; with more
    bits there is less to gain over the uniform grid. A codebook costs ``16 * 2 ** bits * group_size`` bits: it pays on large matrices.

    Args:
        codes: uint8 ``[out_features, in_features / group_size, n_codebooks]``, below ``2 ** bits``.
        codebooks: ``[n_codebooks, 2 ** bits, group_size]``; stored in float16.
        scale: ``[out_features]``; stored as :func:`round_scale` returns it.
        bits: Of a code, 1 to 8. A codebook of more entries is larger than the layers of a small model.

    Raises:
        InvalidArgument: If a shape or a range does not fit.

    Example:
        >>> import torch
        >>> codebooks = torch.tensor([[[0.0, 0.0], [1.0, -1.0]]])
        >>> codes = torch.tensor([[[1], [0]]], dtype=torch.uint8)
        >>> weight = CodebookWeight(codes, codebooks, torch.tensor([2.0]), bits=1)
        >>> weight.dense(), weight.nbytes
        (tensor([[ 2., -2.,  0.,  0.]]), 11)
    """

    kind = "codebook"

    codes: Tensor
    codebooks: Tensor
    scale: Tensor

    def __init__(self, codes: Tensor, codebooks: Tensor, scale: Tensor, *, bits: int) -> None:
        _check(codes, codebooks, scale, bits)
        out_features, groups, self.n_codebooks = codes.shape
        self.bits, self.group_size = bits, codebooks.shape[2]
        super().__init__((out_features, groups * self.group_size))
        half = codebooks.detach().half()
        if not torch.isfinite(half).all():
            raise InvalidArgument(f"codebooks of shape {tuple(codebooks.shape)} hold values that float16 cannot; scale them into the rows")
        self.register_buffer("codes", pack_bits(codes.reshape(out_features, -1), bits))
        self.register_buffer("codebooks", half.contiguous())
        self.register_buffer("scale", round_scale(scale.detach()).contiguous())

    @property
    def indices(self) -> Tensor:
        """The codes, unpacked: uint8 ``[out_features, in_features / group_size, n_codebooks]``."""
        return self._unpacked(self.codes)

    def _unpacked(self, packed: Tensor) -> Tensor:
        groups = self.shape[1] // self.group_size
        return unpack_bits(packed, self.bits, groups * self.n_codebooks).view(-1, groups, self.n_codebooks)

    def dense(self) -> Tensor:
        return lookup(self.indices, self.codebooks.float(), self.scale.float())

    def rows(self, index: Tensor) -> Tensor:
        flat = index.reshape(-1)
        found = lookup(self._unpacked(self.codes[flat]), self.codebooks.float(), self.scale[flat].float())
        return found.view(*index.shape, self.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        return codebook_linear(x, self.codes, self.codebooks, self.scale, bits=self.bits)

    @property
    def config(self) -> dict[str, Any]:
        return {
            "kind": self.kind, "shape": list(self.shape), "bits": self.bits, "group_size": self.group_size,
            "n_codebooks": self.n_codebooks, "scale_dtype": dtype_name(self.scale.dtype),
        }  # fmt: skip

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> CodebookWeight:
        out_features, in_features = read_shape(config)
        group_size = read_group_size(config, in_features)
        bits, count = read_int(config, "bits", 1, 8), read_int(config, "n_codebooks", 1, MOST_CODEBOOKS)
        weight = cls.__new__(cls)
        CompressedWeight.__init__(weight, (out_features, in_features))
        weight.n_codebooks, weight.bits, weight.group_size = count, bits, group_size
        packed = packed_size(in_features // group_size * count, bits)
        weight.register_buffer("codes", torch.empty(out_features, packed, dtype=torch.uint8))
        weight.register_buffer("codebooks", torch.empty(count, 2**bits, group_size, dtype=torch.float16))
        weight.register_buffer("scale", torch.empty(out_features, dtype=read_dtype(config, "scale_dtype")))
        return weight

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.n_codebooks} codebooks of {self.bits} bits, groups of {self.group_size}"


def _check(codes: Tensor, codebooks: Tensor, scale: Tensor, bits: int) -> None:
    if not isinstance(bits, int) or not 1 <= bits <= 8:
        raise InvalidArgument(f"bits must be an integer from 1 to 8, got {bits!r}")
    if codes.ndim != 3 or codes.dtype != torch.uint8 or not 1 <= codes.shape[2] <= MOST_CODEBOOKS:
        wanted = f"uint8 [out_features, groups, n_codebooks] with 1 to {MOST_CODEBOOKS} codebooks"
        raise InvalidArgument(f"codes must be {wanted}, got {codes.dtype} of shape {tuple(codes.shape)}")
    if codebooks.ndim != 3 or codebooks.shape[:2] != (codes.shape[2], 2**bits) or codebooks.shape[2] < 1:
        wanted = f"[{codes.shape[2]}, {2**bits}, group_size]"
        raise InvalidArgument(f"{codes.shape[2]} codebooks of {bits} bits must be {wanted}, got {tuple(codebooks.shape)}")
    if scale.shape != codes.shape[:1]:
        raise InvalidArgument(f"{codes.shape[0]} rows need as many scales, got a scale of shape {tuple(scale.shape)}")
    if not torch.isfinite(codebooks).all():
        raise InvalidArgument(f"codebooks of shape {tuple(codebooks.shape)} hold NaN or Inf values")
