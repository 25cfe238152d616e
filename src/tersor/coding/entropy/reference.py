"""A range coder in plain integers: an oracle for the fast coders, and the coder of short streams and of one symbol at a time."""

from __future__ import annotations

import bisect

from tersor.coding.entropy.tables import IntTable
from tersor.coding.errors import CorruptStream

# The interval is kept between 2^56 and 2^64, so that a total of 2^24 loses less than 2^-32 of it.
_WORD = 64
_BOTTOM = 1 << 56
_MASK = (1 << _WORD) - 1
# A gamma code of more bits than this is not of ours.
_LONGEST_GAMMA = 64


class RangeEncoder:
    """Codes integers into bytes, first in first out, to within a byte or two of their information.

    Prefer :func:`tersor.coding.entropy.encode_symbols` for arrays: that is a hundred times as fast, but its streams are whole words.
    """

    def __init__(self) -> None:
        self._low = 0
        self._range = _MASK
        self._out = bytearray()

    def encode(self, low: int, weight: int, total: int) -> None:
        """Code the symbol that owns ``[low, low + weight)`` of ``[0, total)``; a weight of zero cannot be coded."""
        if weight < 1:
            raise ValueError("a symbol of weight zero cannot be coded")
        share = self._range // total
        self._low += share * low
        self._range = share * weight
        if self._low > _MASK:
            self._low &= _MASK
            self._carry()
        while self._range < _BOTTOM:
            self._out.append(self._low >> (_WORD - 8))
            self._low = (self._low << 8) & _MASK
            self._range <<= 8

    def encode_symbol(self, symbol: int, table: IntTable) -> None:
        """Code ``symbol`` with the probabilities of ``table``."""
        self.encode(int(table.cumulative[symbol]), int(table.weights[symbol]), 1 << table.bits)

    def encode_uniform(self, value: int, total: int) -> None:
        """Code ``0 <= value < total``, all equally likely."""
        self.encode(value, 1, total)

    def encode_gamma(self, value: int) -> None:
        """Code ``value >= 1`` in ``2 * floor(log2(value)) + 1`` bits (Elias)."""
        width = value.bit_length()
        for bit in [0] * (width - 1) + [value >> index & 1 for index in reversed(range(width))]:
            self.encode(bit, 1, 2)

    def finish(self) -> bytes:
        """The shortest bytes that decode to what was coded; a decoder reads zeros after their end."""
        end = self._low + self._range
        for kept in range(_WORD // 8 + 1):
            gap = (1 << (_WORD - 8 * kept)) - 1
            value = (self._low + gap) & ~gap
            if value < end:
                break
        if value > _MASK:
            self._carry()
        self._out += (value & _MASK).to_bytes(_WORD // 8, "big")[:kept]
        return bytes(self._out)

    def _carry(self) -> None:
        index = len(self._out) - 1
        while self._out[index] == 0xFF:
            self._out[index] = 0
            index -= 1
        self._out[index] += 1


class RangeDecoder:
    """Reads what :class:`RangeEncoder` wrote. Reading on after the end is told by :class:`CorruptStream`, a few symbols late.

    Args:
        data: The bytes of one stream, of which the length must be known.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = _WORD // 8
        self._range = _MASK
        self._code = int.from_bytes(data[: _WORD // 8].ljust(_WORD // 8, b"\0"), "big")

    def peek(self, total: int) -> int:
        """The point of ``[0, total)`` that the next symbol owns; follow it by :meth:`advance`."""
        return min(self._code // (self._range // total), total - 1)

    def advance(self, low: int, weight: int, total: int) -> None:
        """Step over the symbol that owns ``[low, low + weight)``.

        Raises:
            CorruptStream: If the stream has ended well before.
        """
        share = self._range // total
        self._code -= share * low
        self._range = share * weight
        if self._code >= self._range:
            raise CorruptStream("the compressed stream is damaged: its code lies outside of every symbol")
        while self._range < _BOTTOM:
            byte = self._data[self._position] if self._position < len(self._data) else 0
            self._position += 1
            if self._position > len(self._data) + _WORD // 8:
                raise CorruptStream("the compressed stream ends before its last symbol")
            self._code = self._code << 8 | byte
            self._range <<= 8

    def decode_symbol(self, table: IntTable) -> int:
        """The next symbol under the probabilities of ``table``."""
        total = 1 << table.bits
        symbol = bisect.bisect_right(table.cumulative, self.peek(total)) - 1
        self.advance(int(table.cumulative[symbol]), int(table.weights[symbol]), total)
        return symbol

    def decode_uniform(self, total: int) -> int:
        """The next value of ``[0, total)``."""
        value = self.peek(total)
        self.advance(value, 1, total)
        return value

    def decode_gamma(self) -> int:
        """The next value of at least 1.

        Raises:
            CorruptStream: If it would have more than 64 bits.
        """
        width = 1
        while not self.decode_uniform(2):
            width += 1
            if width > _LONGEST_GAMMA:
                raise CorruptStream("the compressed stream is damaged: it holds a number of more than 64 bits")
        value = 1
        for _ in range(width - 1):
            value = value << 1 | self.decode_uniform(2)
        return value

    def finish(self) -> None:
        """Refuse a stream that has bytes left over after its last symbol.

        Raises:
            CorruptStream: If so; what was decoded must then be thrown away.
        """
        if self._position < len(self._data):
            raise CorruptStream("the compressed stream goes on after its last symbol")
