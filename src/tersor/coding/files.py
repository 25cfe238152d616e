"""Files on disk: what the command line calls."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tersor.coding.codecs import AUTO, TRAINED, codec_name
from tersor.coding.defaults import default_codec, kept_codec
from tersor.coding.streaming import BLOCK, containers, decode_stream, encode_stream
from tersor.errors import InvalidArgument, TersorError


@dataclass(frozen=True)
class Transfer:
    """What became of a file.

    Attributes:
        source: What was read.
        target: What was written.
        read: Its bytes.
        written: Likewise.
        seconds: How long it took.
        codecs: Names of the codecs that its blocks were written by, each once.
    """

    source: str
    target: str
    read: int
    written: int
    seconds: float
    codecs: tuple[str, ...] = ()

    @property
    def bits_per_byte(self) -> float:
        """Bits of the compressed file for each byte of the original, every header counted."""
        small, large = sorted((self.read, self.written))
        return 8 * small / large if large else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "bits_per_byte": self.bits_per_byte}

    def __str__(self) -> str:
        speed = max(self.read, self.written) / max(self.seconds, 1e-9) / 1e6
        by = f" by {', '.join(self.codecs)}" if self.codecs else ""
        return f"{self.source}: {self.read:,} bytes; {self.target}: {self.written:,} bytes{by}; {self.seconds:.1f} s, {speed:.2g} MB/s"


def encode_file(
    source: Path, target: Path, *, codec: str = AUTO, model: str | None = None, block: int = BLOCK, verify: bool = True,
    progress: Callable[[int, int, float], object] | None = None,
) -> Transfer:  # fmt: skip
    """Compress a file; ``target`` appears only when it is whole.

    Args:
        source: Any file.
        target: Where the compressed file goes.
        codec: As in :func:`tersor.coding.encode`.
        model: What :func:`tersor.load` takes, for a language model, or the folder of a trained codec. A trained codec that is named
            without one is the default of :func:`tersor.coding.defaults.default_codec`, trained on its first use.
        block: Bytes in memory at once.
        verify: Decode every block again before it is written.
        progress: Of that training: called with steps done, steps in all and the loss.

    Raises:
        InvalidArgument: If ``source`` cannot be read, or an option is out of range.
        TersorError: If ``target`` cannot be written.
    """
    _check_readable(source)
    loaded: Any = None if model is None else _load(model)
    if model is None and codec in TRAINED:
        loaded = default_codec(codec, progress)
    return _transfer(
        source, target, target,
        lambda reader, writer: encode_stream(reader, writer, codec=codec, model=loaded, block=block, verify=verify),
    )  # fmt: skip


def decode_file(source: Path, target: Path, *, model: str | None = None, force: bool = False) -> Transfer:
    """Decompress a file; ``target`` appears only when all of it was checked.

    Args:
        source: What :func:`encode_file` wrote.
        target: Where the original goes.
        model: The language model, or the folder of the trained codec, that wrote it, if one did; not for the default codec of this machine.
        force: As in :func:`tersor.coding.decode`.

    Raises:
        InvalidArgument: If ``source`` cannot be read, or the model is missing.
        CorruptStream: If it is damaged.
        TersorError: If ``target`` cannot be written, or the model or the numerics are others.
    """
    _check_readable(source)
    loaded = _writer(source) if model is None else _load(model)
    return _transfer(source, target, source, lambda reader, writer: decode_stream(reader, writer, model=loaded, force=force))


def _check_readable(source: Path) -> None:
    """Before a model is loaded, or even trained, for nothing."""
    try:
        source.open("rb").close()
    except OSError as error:
        raise InvalidArgument(f"cannot read {source}: {error.strerror}") from None


def _writer(source: Path) -> Any:
    """This machine's default codec, if that wrote the file."""
    with source.open("rb") as file:
        container = next(containers(file))
    name = codec_name(container.codec)
    return kept_codec(name, container.header.get("model")) if name in TRAINED else None


def _codecs(packed: Path) -> tuple[str, ...]:
    with packed.open("rb") as file:
        return tuple(dict.fromkeys(codec_name(container.codec) for container in containers(file)))


def _load(name: str) -> Any:
    from tersor.coding.training import is_codec, load_codec

    if is_codec(name):
        return load_codec(name)
    from tersor.models import load

    return load(name)


def _transfer(source: Path, target: Path, packed: Path, work: Callable[[BinaryIO, BinaryIO], object]) -> Transfer:
    began = time.perf_counter()
    try:
        reader = source.open("rb")
    except OSError as error:
        raise InvalidArgument(f"cannot read {source}: {error.strerror}") from None
    with reader, _whole(target) as writer:
        work(reader, writer)
        read, written = reader.tell(), writer.tell()
    return Transfer(str(source), str(target), read, written, time.perf_counter() - began, _codecs(packed))


@contextmanager
def _whole(target: Path) -> Iterator[BinaryIO]:
    """A file beside ``target`` that takes its place at the end, or is removed."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise TersorError(f"cannot write {target}: {error.strerror}") from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
