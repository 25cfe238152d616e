"""Files of any length in bounded memory: a sequence of containers, each a block, chained so that none can be lost or swapped."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO

from tersor.coding.codecs import AUTO, decode_container, encode, takes_whole_files
from tersor.coding.entropy.container import Container, read_all, read_container
from tersor.coding.errors import CorruptStream
from tersor.errors import InvalidArgument

if TYPE_CHECKING:
    from tersor.coding.training import TrainedCodec
    from tersor.models import Model

BLOCK = 1 << 24
_READ = 1 << 20


def encode_stream(
    source: BinaryIO, sink: BinaryIO, *, codec: str = AUTO, model: Model | TrainedCodec | None = None, verify: bool = True,
    block: int = BLOCK, progress: Callable[[int], object] | None = None,
) -> int:  # fmt: skip
    """Compress everything that ``source`` has, ``block`` bytes at a time.

    Every block but the last says that another follows, and the last of several holds the checksum of all of them.

    Args:
        source: Read to its end.
        sink: Written to.
        codec: As in :func:`tersor.coding.encode`, chosen anew for every block.
        model: Likewise.
        verify: Likewise.
        block: Bytes in memory at once; larger blocks compress better. Trained codecs take the file whole.
        progress: Called with the bytes read so far.

    Returns:
        Bytes written.

    Raises:
        InvalidArgument: If ``block`` is not positive, and as :func:`tersor.coding.encode` does.
    """
    if block < 1:
        raise InvalidArgument(f"block must be at least 1 byte, got {block}")
    if takes_whole_files(codec, model):
        packed = encode(read_all(source), codec=codec, model=model, verify=verify)
        sink.write(packed)
        return len(packed)
    written = part = checksum = total = 0
    ahead = source.read(block)
    while True:
        data, ahead = ahead, source.read(block)
        checksum, total = zlib.crc32(data, checksum), total + len(data)
        packed = encode(data, codec=codec, model=model, verify=verify)
        if ahead or part:
            container = Container.from_bytes(packed)
            chain = {"part": part, "more": True} if ahead else {"part": part, "all": [total, checksum]}
            packed = replace(container, header={**container.header, **chain}).to_bytes()
        sink.write(packed)
        written += len(packed)
        part += 1
        if progress is not None:
            progress(total)
        if not ahead:
            return written


def decode_stream(
    source: BinaryIO, sink: BinaryIO, *, model: Model | TrainedCodec | None = None, force: bool = False,
    progress: Callable[[int], object] | None = None,
) -> int:  # fmt: skip
    """Decode everything that ``source`` has; memory is that of one block.

    A damaged block is noticed before any of it is written, but earlier blocks are in ``sink`` by then: write to a temporary file.

    Args:
        source: Read to its end.
        sink: Written to.
        model: The language model or trained codec, if one wrote it.
        force: As in :func:`tersor.coding.decode`.
        progress: Called with the bytes written so far.

    Returns:
        Bytes written.

    Raises:
        CorruptStream: If a block is damaged, missing or out of place; and as :func:`tersor.coding.decode` does.
    """
    buffer, part, total, checksum = b"", 0, 0, 0
    while True:
        container, buffer = _next(source, buffer)
        header = container.header
        if (header.get("part", 0) if part == 0 else header.get("part")) != part or (
            part > 0 and "more" not in header and "all" not in header
        ):
            raise CorruptStream(f"block {part} of the compressed file is missing or out of place")
        data = decode_container(container, model=model, force=force)
        sink.write(data)
        total, checksum, part = total + len(data), zlib.crc32(data, checksum), part + 1
        if progress is not None:
            progress(total)
        if header.get("more") is not True:
            break
    if header.get("all", [total, checksum]) != [total, checksum]:
        raise CorruptStream("the blocks of the compressed file do not belong together: their common checksum does not match")
    if buffer or source.read(1):
        raise CorruptStream("something follows the end of the compressed data")
    return total


def containers(source: BinaryIO) -> Iterator[Container]:
    """The blocks of a compressed file, which may not belong together; see :func:`decode_stream`.

    Raises:
        CorruptStream: If one is damaged or cut short, or there is none.
    """
    container, buffer = _next(source, b"")
    yield container
    while buffer or (buffer := source.read(_READ)):
        container, buffer = _next(source, buffer)
        yield container


def _next(source: BinaryIO, buffer: bytes) -> tuple[Container, bytes]:
    """The next container, and what was read beyond it. Reads twice as much as before whenever it does not suffice."""
    while True:
        more = source.read(max(_READ, len(buffer)))
        buffer += more
        try:
            container, end = read_container(buffer, 0)
        except CorruptStream:
            if not more:
                raise
            continue
        return container, buffer[end:]
