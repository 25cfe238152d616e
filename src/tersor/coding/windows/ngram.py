"""An integer n-gram model of bytes: learned in seconds, the same on every machine."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tersor.errors import InvalidArgument

LARGEST_ORDER = 6


class NGramByteLM:
    """How often each byte followed each context of up to ``order`` bytes, mixed by Witten and Bell's rule in integers.

    Args:
        data: Text to learn from.
        order: Bytes of the longest context, 0 to 6. Order 0 is the unigram model.

    Raises:
        InvalidArgument: If there is nothing to learn from, or the order is out of range.

    Example:
        >>> model = NGramByteLM(b"abababab", order=1)
        >>> weights = model.table(b"a", bits=14)
        >>> int(weights.argmax()) == ord("b"), int(weights.sum())
        (True, 16384)
    """

    def __init__(self, data: bytes, order: int = 4) -> None:
        if not data or not 0 <= order <= LARGEST_ORDER:
            raise InvalidArgument(
                f"an n-gram model needs text and an order from 0 to {LARGEST_ORDER}, got {len(data)} bytes and order {order}"
            )
        self.order = order
        values = np.frombuffer(data, dtype=np.uint8).astype(np.int64)
        firsts, parts = [0], list[tuple[NDArray[Any], ...]]()
        for length in range(min(order, len(values) - 1) + 1):
            context = np.zeros(len(values) - length, np.int64)
            for back in range(1, length + 1):
                context |= values[length - back : len(values) - back] << (8 * (back - 1))
            pairs, occurrences = np.unique(context << 8 | values[length:], return_counts=True)
            seen, begins = np.unique(pairs >> 8, return_index=True)
            before = sum(len(part[2]) for part in parts)
            parts.append((seen, begins + before, (pairs & 255).astype(np.uint8), occurrences))
            firsts.append(firsts[-1] + len(seen))
        keys, starts, symbols, counts = (np.concatenate([part[index] for part in parts]) for index in range(4))
        total = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        ends = np.append(starts, len(symbols)).astype(np.int64)
        self.arrays: tuple[NDArray[Any], ...] = (np.array(firsts, np.int64), keys, ends, symbols, total)

    @property
    def nbytes(self) -> int:
        """Bytes of the tables in memory."""
        return sum(array.nbytes for array in self.arrays)

    def table(self, context: bytes, bits: int = 14) -> NDArray[np.int64]:
        """``[256]`` weights of the byte after ``context``, at least one each, of total ``2**bits``."""
        from tersor.coding.windows import _windows

        data, nodes = np.frombuffer(context, dtype=np.uint8).copy(), np.zeros(16, np.int64)
        count = _windows.find_nodes(self.arrays, data, 0, len(data), nodes)
        edges = np.array([_windows.cumulative(self.arrays, nodes, count, symbol, bits) for symbol in range(257)], dtype=np.int64)
        return edges[1:] - edges[:-1]

    def bounds(self, data: bytes, bits: int = 14) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """``[n]`` each: where the weight of every byte of ``data`` begins, and the weight, each given all bytes before it."""
        from tersor.coding.windows import _windows

        values = np.frombuffer(data, dtype=np.uint8).copy()
        lows, weights = np.zeros(len(values), np.int64), np.zeros(len(values), np.int64)
        _windows.bounds(self.arrays, values, bits, lows, weights)
        return lows, weights
