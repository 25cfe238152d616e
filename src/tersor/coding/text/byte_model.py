"""A byte model in integers, exact on every machine: what text and programs are coded with where no language model is given."""

from __future__ import annotations

from typing import Any

import numpy as np

from tersor.coding.errors import CorruptStream

# Slots of each context's table: eight a byte, up to 4 Mi of four bytes.
_SLOT_BITS = (12, 22)
_HEAD_BITS = (10, 20)
# No bit costs less than log2(65536 / 65520), so no stream expands to more than this many times its bytes.
_EXPANSION = 2840


def compress_bytes(data: bytes) -> bytes:
    """Code bytes by mixed contexts; the size of ``data`` must be kept beside the result.

    Orders 0 to 6, words, distant bytes and long matches each predict every bit; a mixer weighs them by what they were worth so far. All
    of it is integer arithmetic, so any machine reads what any other wrote. About a quarter of a megabyte a second.

    Reference:
        Mahoney: "Adaptive weighing of context models for lossless data compression", 2005.
    """
    if not data:
        return b""
    values = np.frombuffer(data, dtype=np.uint8).copy()
    # Worst case: every bit costs log2(65536 / 16) = 12 bits.
    stream = np.empty(12 * len(data) + 16, dtype=np.uint8)
    used = _run(values, len(data), stream, len(stream), False)
    return stream[:used].tobytes()


def decompress_bytes(data: bytes, size: int) -> bytes:
    """The ``size`` bytes that :func:`compress_bytes` coded.

    Raises:
        CorruptStream: If the stream cannot hold so many bytes, ends before them or goes on after them.
    """
    if size == 0 and not data:
        return b""
    if not 0 < size <= _EXPANSION * (len(data) + 4):
        raise CorruptStream(f"a stream of {len(data)} bytes cannot hold {size} bytes")
    values = np.zeros(size, dtype=np.uint8)
    stream = np.frombuffer(data, dtype=np.uint8).copy()
    from tersor.coding.text import _mixing

    if _run(values, size, stream, len(stream), True) != len(stream) + _mixing.AHEAD:
        raise CorruptStream("the compressed stream does not end where its last byte does")
    return values.tobytes()


def _run(values: Any, size: int, stream: Any, length: int, decoding: bool) -> int:
    from tersor.coding.text import _mixing

    slots = 1 << min(max(size.bit_length() + 2, _SLOT_BITS[0]), _SLOT_BITS[1])
    heads = 1 << min(max(size.bit_length(), _HEAD_BITS[0]), _HEAD_BITS[1])
    tables = np.full((_mixing.N_CONTEXTS, slots), _mixing.EMPTY, dtype=np.uint32)
    return int(
        _mixing.run(
            values, size, stream, length, decoding, tables, np.zeros(heads, np.int32),
            _mixing.squash_table(), _mixing.stretch_table(), _mixing.rate_table(),
        )
    )  # fmt: skip
