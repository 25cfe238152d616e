"""Arrays of symbols to bytes and back under integer tables, by constriction's coders, bit for bit the same everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tersor.coding.entropy.reference import RangeDecoder, RangeEncoder
from tersor.coding.entropy.tables import MAX_BITS, IntTable
from tersor.coding.errors import CorruptStream
from tersor.errors import InvalidArgument

# range: first in, first out. ans: last in, first out, faster to write. reference: plain integers, whole bytes instead of whole words.
Coder = Literal["range", "ans", "reference"]
Symbols = NDArray[np.int32]
_WORD = 4
# The places of a table's symbols in a row of all, their number, the table.
_Group = tuple[slice | NDArray[np.integer], int, IntTable]


def encode_symbols(symbols: NDArray[np.integer], table: IntTable, *, coder: Coder = "range") -> bytes:
    """Code an array under one table.

    Args:
        symbols: Integers of any shape, below ``len(table)``.
        table: Their probabilities.
        coder: ``"range"`` or ``"ans"`` (whole 4-byte words), or ``"reference"``, which is slow and shortest.

    Returns:
        The stream: at most 64 bits and a thousandth more than ``table.ideal_bits(symbols)``. Keep the number of symbols beside it.

    Raises:
        InvalidArgument: If a symbol is outside the table.
    """
    return encode_indexed(symbols, [table], np.zeros(np.shape(symbols), np.int64), coder=coder)


def decode_symbols(data: bytes, table: IntTable, count: int, *, coder: Coder = "range") -> Symbols:
    """``count`` symbols that :func:`encode_symbols` wrote.

    Raises:
        CorruptStream: If the stream is cut short or longer than they take. Not every damage shows: keep a checksum, as the container does.
    """
    return decode_indexed(data, [table], np.zeros(count, np.int64), coder=coder)


def encode_indexed(
    symbols: NDArray[np.integer], tables: Sequence[IntTable], indexes: NDArray[np.integer], *, coder: Coder = "range"
) -> bytes:
    """Code an array under several tables: one call of the coder for each table, not one for each symbol.

    Args:
        symbols: Integers of any shape.
        tables: The tables.
        indexes: Of the shape of ``symbols``: which table each is coded with. The decoder must know it.
        coder: As in :func:`encode_symbols`.

    Raises:
        InvalidArgument: If a symbol is outside its table, or an index names no table.
    """
    values, groups = _grouped(tables, indexes, coder, np.asarray(symbols))
    parts = [(values[places], table) for places, _, table in groups]
    for part, table in parts:
        least, most = int(part.min()), int(part.max())
        if least < 0 or most >= len(table):
            raise InvalidArgument(f"a symbol lies outside of its table of {len(table)} symbols: {least} to {most}")
    parts = [(part, table) for part, table in parts if len(table) > 1]
    if coder == "reference":
        slow = RangeEncoder()
        for part, table in parts:
            for symbol in part.tolist():
                slow.encode_symbol(symbol, table)
        return slow.finish()
    return _encode_words(parts, coder)


def decode_indexed(data: bytes, tables: Sequence[IntTable], indexes: NDArray[np.integer], *, coder: Coder = "range") -> Symbols:
    """What :func:`encode_indexed` coded, in the shape of ``indexes``.

    Raises:
        CorruptStream: If the stream is cut short or longer than the symbols take.
    """
    _, groups = _grouped(tables, indexes, coder)
    values = np.zeros(np.size(indexes), np.int32)
    coded = [group for group in groups if len(group[-1]) > 1]
    if coder == "reference":
        slow = RangeDecoder(data)
        for places, count, table in coded:
            values[places] = [slow.decode_symbol(table) for _ in range(count)]
        slow.finish()
    else:
        _decode_words(data, coded, values, coder)
    return values.reshape(np.shape(indexes))


def _encode_words(parts: list[tuple[Symbols, IntTable]], coder: Coder) -> bytes:
    if not parts:
        return b""
    from constriction import stream

    if coder == "range":
        queue = stream.queue.RangeEncoder()
        for part, table in parts:
            queue.encode(part, _model(table))
        words = queue.get_compressed()
    else:
        stack = stream.stack.AnsCoder()
        for part, table in reversed(parts):
            stack.encode_reverse(part, _model(table))
        words = stack.get_compressed()
    compressed: bytes = words.astype("<u4").tobytes()
    return compressed


def _decode_words(data: bytes, coded: list[_Group], values: Symbols, coder: Coder) -> None:
    from constriction import stream

    if len(data) % _WORD or (coder == "ans" and data and not any(data[-_WORD:])):
        raise CorruptStream("the compressed stream is cut short: it is not a whole number of words")
    words = np.frombuffer(data, dtype="<u4").astype(np.uint32)
    decoder = stream.queue.RangeDecoder(words) if coder == "range" else stream.stack.AnsCoder(words)
    try:
        for places, count, table in coded:
            values[places] = decoder.decode(_model(table), count)
    except AssertionError:
        raise CorruptStream("the compressed stream is damaged: its code lies outside of every symbol") from None
    # The decoders read on beyond the end without a word. Encoding is several times as fast as decoding, and tells.
    if _encode_words([(values[places], table) for places, _, table in coded], coder) != data:
        raise CorruptStream("the compressed stream is not the one that its symbols make: it is damaged or cut short")


def _grouped(
    tables: Sequence[IntTable], indexes: NDArray[np.integer], coder: Coder, symbols: NDArray[np.integer] | None = None
) -> tuple[Symbols, list[_Group]]:
    """The symbols in a row, and for each table in use the places of its symbols in that row."""
    if coder not in get_args(Coder):
        raise InvalidArgument(f"coder must be one of {', '.join(map(repr, get_args(Coder)))}, got {coder!r}")
    places = np.asarray(indexes).reshape(-1)
    if symbols is not None and symbols.shape != np.shape(indexes):
        raise InvalidArgument(f"symbols of shape {symbols.shape} need indexes of that shape, got {np.shape(indexes)}")
    if symbols is not None and symbols.size and symbols.dtype.kind not in "iu":
        raise InvalidArgument(f"symbols are integers, got {symbols.dtype}")
    if places.size and (places.min() < 0 or places.max() >= len(tables)):
        raise InvalidArgument(f"indexes name tables 0 to {len(tables) - 1}, got {int(places.min())} to {int(places.max())}")
    return _row(symbols), _groups(places, tables)


def _row(symbols: NDArray[np.integer] | None) -> Symbols:
    """As int32; what does not fit becomes the nearest that does, which no table holds either."""
    if symbols is None:
        return np.zeros(0, np.int32)
    flat = symbols.reshape(-1)
    # Steps between the elements, and other byte orders, are not for the coder.
    return np.ascontiguousarray(flat if flat.dtype == np.int32 else flat.clip(-(2**31), 2**31 - 1).astype(np.int32))


def _groups(places: NDArray[np.integer], tables: Sequence[IntTable]) -> list[_Group]:
    if len(tables) == 1:
        # Nothing to sort, and views in place of copies: millions of symbols come this way.
        return [(slice(None), places.size, tables[0])] if places.size else []
    order = np.argsort(places, kind="stable")
    edges = np.searchsorted(places[order], np.arange(len(tables) + 1)).tolist()
    parts = zip(tables, edges[:-1], edges[1:], strict=True)
    return [(order[begin:end], end - begin, table) for table, begin, end in parts if end > begin]


def _model(table: IntTable) -> Any:
    """The table in constriction. Its quantiser gives symbol i ``floor(p * scale) + 1`` with scale 1 here, so the weights come out exact."""
    from constriction import stream

    return stream.model.Categorical(((table.weights << (MAX_BITS - table.bits)) - 1).astype(np.float64), perfect=False)
