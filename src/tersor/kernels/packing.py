"""Codes of 1 to 8 bits as one dense bit stream a row, with no bit wasted but the padding of the last byte."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.errors import InvalidArgument

_MAX_BITS = 8


def packed_size(n: int, bits: int) -> int:
    """Bytes that a row of ``n`` codes of ``bits`` bits takes."""
    return (n * bits + 7) // 8


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Pack each row of ``codes`` into a little-endian bit stream: code ``i`` occupies bits ``i * bits`` up to ``(i + 1) * bits - 1``.

    Where ``n * bits`` is a multiple of 32 the bytes are those of int32 words filled from the lowest bit.

    Args:
        codes: uint8 ``[rows, n]``, every code below ``2 ** bits``.
        bits: 1 to 8.

    Returns:
        uint8 ``[rows, ceil(n * bits / 8)]``; the unused high bits of the last byte are zero.

    Raises:
        InvalidArgument: If ``bits`` is out of range, ``codes`` is not a uint8 matrix, or a code does not fit.
    """
    _check(codes, bits, "codes")
    if bits < _MAX_BITS and codes.device.type != "meta" and codes.numel() and int(codes.max()) >> bits:
        raise InvalidArgument(f"codes reach {int(codes.max())}, which does not fit into {bits} bits")
    if bits == _MAX_BITS:
        return codes.clone(memory_format=torch.contiguous_format)
    rows, n = codes.shape
    # Eight codes fill exactly `bits` bytes, so the pattern of shifts repeats with that period.
    n_octets = (n + 7) // 8
    octets = F.pad(codes, (0, -n % 8)).reshape(rows, n_octets, 8)
    packed = octets.new_zeros(rows, n_octets, bits)
    for i in range(8):
        byte, shift = divmod(i * bits, 8)
        packed[..., byte] |= octets[..., i] << shift
        if shift + bits > 8:
            packed[..., byte + 1] |= octets[..., i] >> (8 - shift)
    return packed.reshape(rows, n_octets * bits)[:, : packed_size(n, bits)].contiguous()


def unpack_bits(packed: Tensor, bits: int, n: int) -> Tensor:
    """The inverse of :func:`pack_bits`.

    Args:
        packed: uint8 ``[rows, ceil(n * bits / 8)]``.
        bits: 1 to 8.
        n: Codes in a row.

    Returns:
        uint8 ``[rows, n]``.

    Raises:
        InvalidArgument: If ``bits`` is out of range or ``packed`` is not a uint8 matrix of that width.
    """
    _check(packed, bits, "packed codes")
    rows, width = packed.shape
    if n < 0 or width != packed_size(n, bits):
        raise InvalidArgument(f"{n} codes of {bits} bits take {packed_size(n, bits)} bytes a row, got {width}")
    if bits == _MAX_BITS:
        return packed.clone(memory_format=torch.contiguous_format)
    n_octets = (n + 7) // 8
    stream = F.pad(packed, (0, n_octets * bits - width)).reshape(rows, n_octets, bits)
    codes = stream.new_empty(rows, n_octets, 8)
    mask = (1 << bits) - 1
    for i in range(8):
        byte, shift = divmod(i * bits, 8)
        code = stream[..., byte] >> shift
        if shift + bits > 8:
            code |= stream[..., byte + 1] << (8 - shift)
        torch.bitwise_and(code, mask, out=codes[..., i])
    return codes.reshape(rows, n_octets * 8)[:, :n].contiguous()


def gather_bits(stream: Tensor, bits: int, index: Tensor) -> Tensor:
    """The codes ``index`` of one packed stream, without unpacking the rest.

    Args:
        stream: uint8 ``[bytes]``, a row of :func:`pack_bits`.
        bits: 1 to 8.
        index: int64 ``[n]``, numbers of codes in the stream.

    Returns:
        uint8 ``[n]``.
    """
    first = index * bits
    byte, shift = first >> 3, (first & 7).to(torch.uint8)
    low = stream[byte] >> shift
    # A code that ends within its byte must not read past the end of the stream; then `high` is masked away below.
    high = stream[(byte + 1).clamp(max=max(stream.numel() - 1, 0))].to(torch.int16) << (8 - shift).to(torch.int16)
    return (low.to(torch.int16) | high).bitwise_and((1 << bits) - 1).to(torch.uint8)


def _check(matrix: Tensor, bits: int, name: str) -> None:
    if not 1 <= bits <= _MAX_BITS:
        raise InvalidArgument(f"bits must be from 1 to {_MAX_BITS}, got {bits}")
    if matrix.dtype != torch.uint8 or matrix.ndim != 2:
        raise InvalidArgument(f"{name} must be a uint8 matrix, got {matrix.dtype} of shape {tuple(matrix.shape)}")
