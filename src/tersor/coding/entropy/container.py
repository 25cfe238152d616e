"""The file format: a header, streams of bytes, checksums; nothing in it is believed before it is checked.

``magic (4) | version (1) | codec | header length | header, JSON with sorted keys | number of streams | (length, stream) ... | CRC-32``

Numbers are little-endian base-128 varints, the checksum covers everything before it. A file may be a sequence of such containers.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from tersor.coding.errors import CorruptStream

MAGIC = b"\x93trs"
VERSION = 1
_CHECKSUM = 4
# Ten groups of seven bits hold any length that a file can have.
_LONGEST_VARINT = 9
_READ = 1 << 20


def write_varint(value: int) -> bytes:
    """A number of at least 0 in groups of seven bits, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes | memoryview, position: int) -> tuple[int, int]:
    """The number at ``position`` and where it ends.

    Raises:
        CorruptStream: If it does not end within the data or nine bytes, or is longer than it need be.
    """
    value = 0
    for index in range(_LONGEST_VARINT):
        if position + index >= len(data):
            break
        byte = data[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if index and not byte:
                break
            return value, position + index + 1
    raise CorruptStream("a length in the compressed file is damaged or cut short")


@dataclass(frozen=True)
class Container:
    """One compressed thing.

    Attributes:
        codec: Number of the codec that wrote it.
        header: JSON values: sizes, checksums of the original, fingerprint of the model, numerics.
        streams: The payload.
    """

    codec: int
    header: dict[str, Any] = field(default_factory=dict)
    streams: tuple[bytes, ...] = ()

    @property
    def payload_bits(self) -> int:
        """Bits of the streams alone; what a file costs is 8 times its size."""
        return 8 * sum(map(len, self.streams))

    def to_bytes(self) -> bytes:
        """The container as it is stored."""
        header = json.dumps(self.header, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
        parts = [MAGIC, bytes([VERSION]), write_varint(self.codec), write_varint(len(header)), header, write_varint(len(self.streams))]
        for stream in self.streams:
            parts += [write_varint(len(stream)), stream]
        body = b"".join(parts)
        return body + zlib.crc32(body).to_bytes(_CHECKSUM, "little")

    @classmethod
    def from_bytes(cls, data: bytes) -> Container:
        """The one container that ``data`` holds.

        Raises:
            CorruptStream: If it is not one, damaged, cut short or followed by something else.
        """
        container, end = read_container(data, 0)
        if end != len(data):
            raise CorruptStream(f"{len(data) - end} bytes follow the end of the compressed data")
        return container


def read_container(data: bytes | memoryview, begin: int) -> tuple[Container, int]:
    """The container that starts at ``begin``, and where it ends. No more is copied than ``data`` holds.

    Raises:
        CorruptStream: If there is none, or it is damaged or cut short.
    """
    if bytes(data[begin : begin + len(MAGIC)]) != MAGIC:
        raise CorruptStream("this is not a .tersor file: its first bytes are others")
    position = begin + len(MAGIC) + 1
    if position > len(data):
        raise CorruptStream("the compressed file is cut short")
    if data[position - 1] != VERSION:
        raise CorruptStream(f"the compressed file is of version {data[position - 1]}, this tersor reads version {VERSION}; update tersor")
    codec, position = read_varint(data, position)
    raw, position = _take(data, position)
    count, position = read_varint(data, position)
    streams = []
    if count > len(data) - position:
        raise CorruptStream("the compressed file is cut short: it names more streams than it has bytes")
    for _ in range(count):
        stream, position = _take(data, position)
        streams.append(stream)
    stored = bytes(data[position : position + _CHECKSUM])
    if len(stored) < _CHECKSUM or int.from_bytes(stored, "little") != zlib.crc32(data[begin:position]):
        raise CorruptStream("the checksum of the compressed file does not match: it is damaged or cut short")
    return Container(codec, _parse(raw), tuple(streams)), position + _CHECKSUM


def read_all(source: BinaryIO) -> bytes:
    """Everything in ``source``."""
    return b"".join(iter(lambda: source.read(_READ), b""))


def _take(data: bytes | memoryview, position: int) -> tuple[bytes, int]:
    size, position = read_varint(data, position)
    if size > len(data) - position:
        raise CorruptStream("the compressed file is cut short: a part is longer than what is left")
    return bytes(data[position : position + size]), position + size


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise CorruptStream("the header of the compressed file is damaged") from None
    if not isinstance(header, dict):
        raise CorruptStream("the header of the compressed file is damaged: it is no object")
    return header


def _refuse(constant: str) -> None:
    raise ValueError(constant)
