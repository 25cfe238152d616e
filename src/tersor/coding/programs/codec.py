"""Files by programs: each block a program where that is shorter, the others together by a codec that knows nothing of programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tersor.coding import classical
from tersor.coding.entropy.container import read_varint, write_varint
from tersor.coding.entropy.reference import RangeDecoder, RangeEncoder
from tersor.coding.errors import CorruptStream
from tersor.coding.programs.dsl import MOST_ITEMS, Program, ProgramError
from tersor.coding.programs.search import Search, puts_out
from tersor.coding.programs.serialise import program_bits, read_program, write_program
from tersor.errors import InvalidArgument

BLOCK = 128
# From bytes to a program that should put them out, or None; it need not be right, as every program is run and compared.
Synthesiser = Callable[[bytes], Program | None]


def encode_blocks(data: bytes, synthesiser: Synthesiser | None = None, block: int = BLOCK) -> bytes:
    """Compress bytes by programs of ``block`` bytes each.

    Args:
        data: Any bytes.
        synthesiser: Where programs come from, :class:`Search` without it. A wrong program is never written: it counts as none.
        block: Bytes that a program puts out, at most 4,096.

    Returns:
        The stream, at most one bit a block and a few bytes more than the best classical codec makes of all of ``data``.

    Raises:
        InvalidArgument: If ``block`` is out of range.
    """
    if not 1 <= block <= MOST_ITEMS:
        raise InvalidArgument(f"block must be 1 to {MOST_ITEMS} bytes, got {block}")
    synthesiser = synthesiser or Search()
    blocks = [data[begin : begin + block] for begin in range(0, len(data), block)]
    price = 8 * len(_fallback(data)) / max(len(data), 1)
    programs = [_found(synthesiser, part, price) for part in blocks]
    with_programs = _written(blocks, programs, block)
    without = _written(blocks, [None] * len(blocks), block)
    return min(with_programs, without, key=len)


def decode_blocks(stream: bytes, size: int) -> bytes:
    """The ``size`` bytes that :func:`encode_blocks` was given. Programs are interpreted within bounds.

    Raises:
        CorruptStream: If the stream is damaged or stands for another number of bytes.
    """
    block, begin = read_varint(stream, 0)
    length, begin = read_varint(stream, begin)
    rest_size, begin = read_varint(stream, begin)
    if not 1 <= block <= MOST_ITEMS or length > len(stream) - begin or rest_size > size:
        raise CorruptStream("the lengths of a stream of programs contradict each other")
    decoder, rest = RangeDecoder(stream[begin : begin + length]), _read_fallback(stream[begin + length :], rest_size)
    parts, done, used = [], 0, 0
    while done < size:
        expected = min(block, size - done)
        if decoder.decode_uniform(2):
            part = _run(read_program(decoder))
        else:
            part, used = rest[used : used + expected], used + expected
        if len(part) != expected:
            raise CorruptStream("a stored program puts out another number of bytes than its block has")
        parts.append(part)
        done += len(part)
    decoder.finish()
    if used != len(rest):
        raise CorruptStream("a stream of programs holds more bytes than its blocks take")
    return b"".join(parts)


def _found(synthesiser: Synthesiser, part: bytes, price: float) -> Program | None:
    """A right program that is cheaper than what the classical codec needs on average."""
    try:
        program = synthesiser(part)
    except ProgramError:
        return None
    if program is None or not puts_out(program, part) or program_bits(program) >= price * len(part):
        return None
    return program


def _written(blocks: Sequence[bytes], programs: Sequence[Program | None], block: int) -> bytes:
    encoder = RangeEncoder()
    for program in programs:
        encoder.encode_uniform(int(program is not None), 2)
        if program is not None:
            write_program(program, encoder)
    stream = encoder.finish()
    rest = b"".join(part for part, program in zip(blocks, programs, strict=True) if program is None)
    return write_varint(block) + write_varint(len(stream)) + write_varint(len(rest)) + stream + _fallback(rest)


def _fallback(data: bytes) -> bytes:
    packed = [bytes([number]) + classical.compress(data, method) for number, method in enumerate(classical.METHODS)]
    return min(packed, key=len)


def _read_fallback(stream: bytes, size: int) -> bytes:
    if not stream or stream[0] >= len(classical.METHODS):
        raise CorruptStream("a stream of programs names no codec for its other blocks")
    return classical.decompress(stream[1:], classical.METHODS[stream[0]], size)


def _run(program: Program) -> bytes:
    try:
        return bytes(program.run())
    except (ProgramError, ValueError):
        raise CorruptStream("a stored program does not run, or puts out no bytes") from None
