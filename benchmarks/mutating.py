"""Damage to compressed files: by accident, under checksums that then do not match, and on purpose, under checksums made anew."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.random import Generator

    from tersor.coding.entropy import Container

DAMAGED, FORGED = "damaged", "forged"
# What a header may claim: sizes beyond all memory, and values of every other type.
EXTREMES: tuple[Any, ...] = (
    0, -1, 1, 255, 2**16, 2**31, 2**31 - 1, 2**32, 2**62, 10**18, 10**30, -(2**63), 0.5, 1e300, None, True, "", "x", "0" * 4000, [], [0],
    [2**31, 2**31], [-1, -1], [1, 1], [65536, 65536], [1, 2, 3], {}, {"lanes": 2**40, "context": 2**40}, [[[[]]]],
)  # fmt: skip
LONGEST_VARINT = b"\xff" * 8 + b"\x7f"
_CHECKSUM = 4


def damaged(data: bytes, random: Generator) -> bytes:
    """``data`` with one kind of damage, sometimes several."""
    for _ in range(1 + int(random.integers(4) == 0)):
        data = _KINDS[int(random.integers(len(_KINDS)))](data, random)
    return data


def forged(data: bytes, random: Generator) -> bytes:
    """A container whose header, streams or codec were changed, under a right checksum."""
    from tersor.coding.entropy import Container

    if random.integers(6) == 0:
        # Lengths and counts of the container itself.
        body = damaged(data[:-_CHECKSUM], random)
        return body + zlib.crc32(body).to_bytes(_CHECKSUM, "little")
    container = Container.from_bytes(data)
    for _ in range(1 + int(random.integers(3) == 0)):
        container = _FORGERIES[int(random.integers(len(_FORGERIES)))](container, random)
    return container.to_bytes()


def _flip(data: bytes, random: Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(int(random.integers(1, 9)) if data else 0):
        changed[int(random.integers(len(data)))] ^= int(random.integers(1, 256))
    return bytes(changed)


def _cut(data: bytes, random: Generator) -> bytes:
    return data[: int(random.integers(len(data) + 1))]


def _behead(data: bytes, random: Generator) -> bytes:
    return data[int(random.integers(len(data) + 1)) :]


def _append(data: bytes, random: Generator) -> bytes:
    return data + random.bytes(int(random.integers(1, 40)))


def _span(data: bytes, random: Generator) -> tuple[int, int]:
    begin, end = sorted(random.integers(len(data) + 1, size=2).tolist())
    return begin, end


def _remove(data: bytes, random: Generator) -> bytes:
    begin, end = _span(data, random)
    return data[:begin] + data[end:]


def _repeat(data: bytes, random: Generator) -> bytes:
    begin, end = _span(data, random)
    return data[:end] + data[begin:]


def _fill(data: bytes, random: Generator) -> bytes:
    begin, end = _span(data, random)
    value = (0, 255, int(random.integers(256)))[int(random.integers(3))]
    return data[:begin] + bytes([value]) * (end - begin) + data[end:]


def _insert(data: bytes, random: Generator) -> bytes:
    place = int(random.integers(len(data) + 1))
    return data[:place] + random.bytes(int(random.integers(1, 20))) + data[place:]


def _lengthen(data: bytes, random: Generator) -> bytes:
    place = int(random.integers(len(data) + 1))
    return data[:place] + LONGEST_VARINT + data[place + int(random.integers(10)) :]


def _replace(data: bytes, random: Generator) -> bytes:
    return random.bytes(int(random.integers(len(data) + 1)))


_KINDS: tuple[Callable[[bytes, Generator], bytes], ...] = (
    _flip, _flip, _cut, _cut, _behead, _append, _remove, _repeat, _fill, _insert, _lengthen, _replace,
)  # fmt: skip


def _forge_header(container: Container, random: Generator) -> Container:
    header: dict[str, Any] = dict(container.header)
    names = [*header, "part", "more", "all", "sides", "size"]
    name = names[int(random.integers(len(names)))]
    if random.integers(6) == 0:
        header.pop(name, None)
    else:
        header[name] = EXTREMES[int(random.integers(len(EXTREMES)))]
    return replace(container, header=header)


def _forge_number(container: Container, random: Generator) -> Container:
    """A small change of one number of the header, which remains credible."""
    header = dict(container.header)
    names = [name for name, value in header.items() if type(value) is int or (isinstance(value, list) and value)]
    if not names:
        return _forge_stream(container, random)
    name = names[int(random.integers(len(names)))]
    change = int(random.integers(-3, 4))
    value = header[name]
    header[name] = value + change if isinstance(value, int) else [one + change if type(one) is int else one for one in value]
    return replace(container, header=header)


def _forge_stream(container: Container, random: Generator) -> Container:
    if not container.streams:
        return replace(container, streams=(random.bytes(8),))
    streams = list(container.streams)
    place = int(random.integers(len(streams)))
    streams[place] = damaged(streams[place], random)
    return replace(container, streams=tuple(streams))


def _forge_streams(container: Container, random: Generator) -> Container:
    streams = list(container.streams)
    return replace(container, streams=tuple([streams[:-1], streams * 2, streams[::-1], []][int(random.integers(4))]))


def _forge_codec(container: Container, random: Generator) -> Container:
    return replace(container, codec=int(random.integers(13)))


_FORGERIES: tuple[Callable[[Container, Generator], Container], ...] = (
    _forge_header, _forge_number, _forge_stream, _forge_stream, _forge_stream, _forge_streams, _forge_codec,
)  # fmt: skip


# What a decoder may do, and what it may not. ``changed``: other data than was coded, where no checksum of the content stands against it.
OUTCOMES = ("typed", "right", "changed", "wrong", "untyped")


def outcome(target: Any, right: Any, case: int, seed: int = 0) -> tuple[str, str]:
    """One case: what :class:`decoders.Target` did with an input that ``seed`` and ``case`` determine, and what it said if it should not."""
    import numpy as np

    from tersor.errors import TersorError

    random = np.random.default_rng((seed, case))
    kind = FORGED if target.container and case % 2 else DAMAGED
    data = (forged if kind == FORGED else damaged)(target.valid, random)
    try:
        found = target.decode(data)
    except TersorError as error:
        # A sentence of its own, not an empty one.
        return ("typed", "") if str(error) else ("untyped", "an error without a sentence")
    except Exception as error:  # whatever else comes out of a decoder is what this looks for
        return "untyped", f"{type(error).__name__}: {error}"
    if found == right:
        return "right", ""
    free = not target.checked and (kind == FORGED or not target.container)
    return ("changed", "") if free else ("wrong", f"{kind}: other data")
