"""The codecs of the standard library behind one pair of functions, with decoders that a hostile file cannot make run away."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any, Literal, get_args

from tersor.coding.errors import CorruptStream
from tersor.errors import InvalidArgument

Method = Literal["raw", "deflate", "bz2", "xz"]
METHODS: tuple[Method, ...] = get_args(Method)
# Fixed for decoders, so that nothing in a file says how much memory they take; encoders need ten times what they can use.
_SMALLEST, _LARGEST = 1 << 12, 1 << 26
_STEP = 1 << 20


def compress(data: bytes, method: Method) -> bytes:
    """``data`` by a method of the standard library at its strongest, without the headers and checksums that the container has anyway.

    Raises:
        InvalidArgument: If there is no such method.
    """
    if method not in METHODS:
        raise InvalidArgument(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    if method == "raw":
        return data
    if method == "deflate":
        encoder = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
        return encoder.compress(data) + encoder.flush()
    return bz2.compress(data) if method == "bz2" else lzma.compress(data, lzma.FORMAT_RAW, filters=_filters(len(data)))


def decompress(data: bytes, method: Method, size: int) -> bytes:
    """The ``size`` bytes that :func:`compress` was given. Memory grows with what is decoded, never with ``size``.

    Raises:
        CorruptStream: If the stream is damaged or holds another number of bytes.
    """
    if method == "raw":
        result = data
    elif method == "deflate":
        result = _inflate(data, size)
    else:
        decoder: Any = bz2.BZ2Decompressor() if method == "bz2" else lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(_LARGEST))
        result = _drain(decoder, decoder.decompress, data, size)
    if len(result) != size:
        raise CorruptStream(f"the compressed stream holds {'more' if len(result) > size else 'fewer'} than the {size} bytes that it should")
    return result


def _filters(size: int) -> list[dict[str, Any]]:
    reach = min(max(1 << size.bit_length(), _SMALLEST), _LARGEST)
    return [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": reach}]


def _drain(decoder: Any, decompress: Callable[[bytes, int], bytes], data: bytes, size: int) -> bytes:
    parts, done, fed = [], 0, data
    try:
        while done <= size and not decoder.eof:
            part = decompress(fed, min(_STEP, size + 1 - done))
            if not part and decoder.needs_input:
                break
            fed = b""
            parts.append(part)
            done += len(part)
    except (OSError, ValueError, lzma.LZMAError, EOFError):
        raise CorruptStream("the compressed stream is damaged") from None
    if not decoder.eof or decoder.unused_data:
        raise CorruptStream("the compressed stream is cut short or goes on after its end")
    return b"".join(parts)


def _inflate(data: bytes, size: int) -> bytes:
    decoder = zlib.decompressobj(-15)
    parts, done, fed = [], 0, data
    try:
        while done <= size and not decoder.eof:
            part = decoder.decompress(fed, min(_STEP, size + 1 - done))
            fed = decoder.unconsumed_tail
            if not part and not fed:
                break
            parts.append(part)
            done += len(part)
    except zlib.error:
        raise CorruptStream("the compressed stream is damaged") from None
    if not decoder.eof or decoder.unused_data or decoder.unconsumed_tail:
        raise CorruptStream("the compressed stream is cut short or goes on after its end")
    return b"".join(parts)
