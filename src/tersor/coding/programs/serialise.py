"""Programs as bits that can be read back: what a program really costs."""

from __future__ import annotations

import math

from tersor.coding.entropy.reference import RangeDecoder, RangeEncoder
from tersor.coding.errors import CorruptStream
from tersor.coding.programs.dsl import FUNCTIONS, LARGEST, MOST_ITEMS, MOST_LINES, NAMES, PREDICATES, Argument, Kind, Line, Program

# A header names a function or, after the last line, the end.
_HEADERS = len(NAMES) + 1
HEADER_BITS = math.log2(_HEADERS)
_PREDICATES = tuple(PREDICATES)
# Numbers below the limit are uniform; the limit itself announces a larger or negative one.
_LIMITS: dict[Kind, int] = {"value": 256, "small": 8, "count": 31, "index": 256}


def write_program(program: Program, encoder: RangeEncoder) -> None:
    """Append a program to a stream: uniform headers, constants and references, list lengths in Elias's gamma code."""
    for index, line in enumerate(program.lines):
        encoder.encode_uniform(NAMES.index(line.function), _HEADERS)
        for kind, value in zip(FUNCTIONS[line.function].kinds, line.arguments, strict=True):
            if isinstance(value, tuple):
                encoder.encode_gamma(len(value) + 1)
                for item in value:
                    _write_number(item, "value", encoder)
            elif isinstance(value, str):
                encoder.encode_uniform(_PREDICATES.index(value), len(_PREDICATES))
            elif kind == "ref":
                encoder.encode_uniform(value, index)
            else:
                _write_number(value, kind, encoder)
    encoder.encode_uniform(len(NAMES), _HEADERS)


def read_program(decoder: RangeDecoder) -> Program:
    """The next program of a stream.

    Raises:
        CorruptStream: If it is longer than a program may be, reads lines that are not before it, or the stream ends.
    """
    lines: list[Line] = []
    while (header := decoder.decode_uniform(_HEADERS)) < len(NAMES):
        if len(lines) == MOST_LINES:
            raise CorruptStream("a stored program has too many lines")
        kinds = FUNCTIONS[NAMES[header]].kinds
        lines.append(Line(NAMES[header], tuple(_read_argument(kind, len(lines), decoder) for kind in kinds)))
    if not lines:
        raise CorruptStream("a stored program has no lines")
    return Program(tuple(lines))


def to_bytes(program: Program) -> bytes:
    """A program on its own, to the next byte."""
    encoder = RangeEncoder()
    write_program(program, encoder)
    return encoder.finish()


def from_bytes(data: bytes) -> Program:
    """The program that :func:`to_bytes` wrote.

    Raises:
        CorruptStream: If the bytes are none.
    """
    decoder = RangeDecoder(data)
    program = read_program(decoder)
    decoder.finish()
    return program


def program_bits(program: Program) -> float:
    """What :func:`write_program` adds to a stream, in bits."""
    total = HEADER_BITS * (len(program.lines) + 1)
    for index, line in enumerate(program.lines):
        for kind, value in zip(FUNCTIONS[line.function].kinds, line.arguments, strict=True):
            if isinstance(value, tuple):
                total += _gamma_bits(len(value) + 1) + sum(number_bits(item, "value") for item in value)
            elif isinstance(value, str):
                total += math.log2(len(_PREDICATES))
            else:
                total += math.log2(index) if kind == "ref" else number_bits(value, kind)
    return total


def _write_number(value: int, kind: Kind, encoder: RangeEncoder) -> None:
    limit = _LIMITS[kind]
    if 0 <= value < limit:
        encoder.encode_uniform(value, limit + 1)
        return
    encoder.encode_uniform(limit, limit + 1)
    encoder.encode_uniform(int(value < 0), 2)
    encoder.encode_gamma(-value if value < 0 else value - limit + 1)


def number_bits(value: int, kind: Kind) -> float:
    """What one number of a kind costs."""
    limit = _LIMITS[kind]
    escape = 0 if 0 <= value < limit else 1 + _gamma_bits(-value if value < 0 else value - limit + 1)
    return math.log2(limit + 1) + escape


def _gamma_bits(value: int) -> int:
    return 2 * value.bit_length() - 1


def _read_argument(kind: Kind, index: int, decoder: RangeDecoder) -> Argument:
    if kind == "ref":
        if index == 0:
            raise CorruptStream("the first line of a stored program reads another")
        return decoder.decode_uniform(index)
    if kind == "predicate":
        return _PREDICATES[decoder.decode_uniform(len(_PREDICATES))]
    if kind == "list":
        length = decoder.decode_gamma() - 1
        if length > MOST_ITEMS:
            raise CorruptStream("a stored program has too long a list")
        return tuple(_read_number("value", decoder) for _ in range(length))
    return _read_number(kind, decoder)


def _read_number(kind: Kind, decoder: RangeDecoder) -> int:
    limit = _LIMITS[kind]
    value = decoder.decode_uniform(limit + 1)
    if value < limit:
        return value
    negative = decoder.decode_uniform(2)
    value = decoder.decode_gamma()
    value = -value if negative else value + limit - 1
    if abs(value) > LARGEST:
        raise CorruptStream("a stored program holds too large a number")
    return value
