"""The block types of GGUF: which integers and scales a block holds, and the bytes they are packed into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Fields:
    """What ``n`` blocks hold, unpacked; ``value = d * scales * q - dmin * mins`` for each weight.

    Attributes:
        codes: int ``[n, block]``, each in the range of the type: signed for types without a minimum, from 0 for those with one.
        d: float16 ``[n]``.
        scales: int ``[n, block / group]``, or ``None`` for types with one scale a block.
        dmin: float16 ``[n]`` or ``None``.
        mins: int ``[n, block / group]`` or ``None``. Types with one scale a block store ``-dmin``.
    """

    codes: Array
    d: Array
    scales: Array | None = None
    dmin: Array | None = None
    mins: Array | None = None

    def values(self) -> Array:
        """The float32 values ``[n, block]``, by the same roundings as a reader's."""
        n = self.codes.shape[0]
        step = self.d.astype(np.float32)[:, None]
        offset = None if self.dmin is None else self.dmin.astype(np.float32)[:, None]
        if self.scales is not None:
            step = step * self.scales.astype(np.float32)
            offset = None if offset is None or self.mins is None else offset * self.mins.astype(np.float32)
        codes = self.codes.reshape(n, step.shape[1], -1).astype(np.float32)
        values = codes * step[:, :, None]
        return (values if offset is None else values - offset[:, :, None]).reshape(n, -1)


@dataclass(frozen=True)
class BlockType:
    """One type of the format.

    Attributes:
        name: As ``gguf.GGMLQuantizationType`` spells it.
        block: Weights in a block.
        nbytes: Bytes of a block.
        group: Weights that share a scale.
        low: Smallest integer that a code stands for.
        high: Largest.
        has_min: Whether a minimum is stored beside the scale.
        scale_range: Smallest and largest integer scale inside a block of several groups; ``None`` for one scale a block.
        packer: Makes bytes of fields.
    """

    name: str
    block: int
    nbytes: int
    group: int
    low: int
    high: int
    has_min: bool
    scale_range: tuple[int, int] | None
    packer: Callable[[Fields], Array]

    @property
    def bits_per_weight(self) -> float:
        """Bits a weight, scales included."""
        return 8 * self.nbytes / self.block

    def pack(self, fields: Fields) -> Array:
        """uint8 ``[n, nbytes]``."""
        packed = self.packer(fields)
        assert packed.shape == (fields.codes.shape[0], self.nbytes)
        return packed


def _half(values: Array | None) -> Array:
    return np.ascontiguousarray(_given(values), dtype=np.float16).view(np.uint8).reshape(-1, 2)


def _given(values: Array | None) -> Array:
    assert values is not None
    return values


def _merge(parts: Array, bits: int) -> Array:
    """Pieces ``[n, a, k, b]`` of ``bits`` bits put side by side into bytes ``[n, a * b]``, piece 0 lowest."""
    merged = np.zeros((parts.shape[0], parts.shape[1], parts.shape[3]), np.uint8)
    for i in range(parts.shape[2]):
        merged |= parts[:, :, i].astype(np.uint8) << np.uint8(i * bits)
    return merged.reshape(parts.shape[0], -1)


def _nibbles(codes: Array) -> Array:
    return _merge((codes & 15).reshape(len(codes), 1, 2, 16), 4)


def _fifth_bits(codes: Array) -> Array:
    return np.packbits((codes >> 4).astype(np.uint8), axis=-1, bitorder="little")


def _pack_q4_0(fields: Fields) -> Array:
    return np.hstack([_half(fields.d), _nibbles(fields.codes + 8)])


def _pack_q4_1(fields: Fields) -> Array:
    return np.hstack([_half(fields.d), _negated(fields), _nibbles(fields.codes)])


def _pack_q5_0(fields: Fields) -> Array:
    codes = fields.codes + 16
    return np.hstack([_half(fields.d), _fifth_bits(codes), _nibbles(codes)])


def _pack_q5_1(fields: Fields) -> Array:
    return np.hstack([_half(fields.d), _negated(fields), _fifth_bits(fields.codes), _nibbles(fields.codes)])


def _pack_q8_0(fields: Fields) -> Array:
    return np.hstack([_half(fields.d), fields.codes.astype(np.int8).view(np.uint8)])


def _negated(fields: Fields) -> Array:
    return _half(-_given(fields.dmin))


def _six_bit_pairs(fields: Fields) -> Array:
    """Eight 6-bit scales and eight 6-bit minima in 12 bytes: the upper four of each lend their high bits to the lower four's bytes."""
    scales, mins = _given(fields.scales).astype(np.uint8), _given(fields.mins).astype(np.uint8)
    first = scales[:, :4] | (scales[:, 4:] >> 4) << 6
    second = mins[:, :4] | (mins[:, 4:] >> 4) << 6
    return np.hstack([first, second, (scales[:, 4:] & 15) | (mins[:, 4:] & 15) << 4])


def _pack_q4_k(fields: Fields) -> Array:
    quants = _merge(fields.codes.reshape(-1, 4, 2, 32), 4)
    return np.hstack([_half(fields.d), _half(fields.dmin), _six_bit_pairs(fields), quants])


def _pack_q5_k(fields: Fields) -> Array:
    high = _merge((fields.codes >> 4).reshape(-1, 1, 8, 32), 1)
    quants = _merge((fields.codes & 15).reshape(-1, 4, 2, 32), 4)
    return np.hstack([_half(fields.d), _half(fields.dmin), _six_bit_pairs(fields), high, quants])


def _pack_q6_k(fields: Fields) -> Array:
    codes = fields.codes + 32
    low = _merge((codes & 15).reshape(-1, 2, 2, 64), 4)
    high = _merge((codes >> 4).reshape(-1, 2, 4, 32), 2)
    return np.hstack([low, high, _given(fields.scales).astype(np.int8).view(np.uint8), _half(fields.d)])


def _pack_q3_k(fields: Fields) -> Array:
    codes, scales = fields.codes + 4, (_given(fields.scales) + 32).astype(np.uint8)
    high = _merge((codes >> 2).reshape(-1, 1, 8, 32), 1)
    quants = _merge((codes & 3).reshape(-1, 2, 4, 32), 2)
    packed = np.hstack([_merge((scales & 15).reshape(-1, 1, 2, 8), 4), _merge((scales >> 4).reshape(-1, 1, 4, 4), 2)])
    return np.hstack([high, quants, packed, _half(fields.d)])


def _pack_q2_k(fields: Fields) -> Array:
    scales = (_given(fields.scales) | _given(fields.mins) << 4).astype(np.uint8)
    return np.hstack([scales, _merge(fields.codes.reshape(-1, 2, 4, 32), 2), _half(fields.d), _half(fields.dmin)])


BLOCK_TYPES = {
    kind.name: kind
    for kind in (
        BlockType("Q2_K", 256, 84, 16, 0, 3, True, (0, 15), _pack_q2_k),
        BlockType("Q3_K", 256, 110, 16, -4, 3, False, (-32, 31), _pack_q3_k),
        BlockType("Q4_K", 256, 144, 32, 0, 15, True, (0, 63), _pack_q4_k),
        BlockType("Q4_0", 32, 18, 32, -8, 7, False, None, _pack_q4_0),
        BlockType("Q4_1", 32, 20, 32, 0, 15, True, None, _pack_q4_1),
        BlockType("Q5_K", 256, 176, 32, 0, 31, True, (0, 63), _pack_q5_k),
        BlockType("Q5_0", 32, 22, 32, -16, 15, False, None, _pack_q5_0),
        BlockType("Q5_1", 32, 24, 32, 0, 31, True, None, _pack_q5_1),
        BlockType("Q6_K", 256, 210, 16, -32, 31, False, (-128, 127), _pack_q6_k),
        BlockType("Q8_0", 32, 34, 32, -128, 127, False, None, _pack_q8_0),
    )
}
