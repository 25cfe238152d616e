"""The KoLMogorov Test itself: how often programs are right, how long they are, and what a file of sequences comes to with them."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tersor.coding.programs.codec import Synthesiser
from tersor.coding.programs.dsl import Program, ProgramError
from tersor.coding.programs.search import puts_out
from tersor.coding.programs.serialise import program_bits
from tersor.errors import InvalidArgument


@dataclass(frozen=True)
class KTReport:
    """What a synthesiser did on some sequences.

    Attributes:
        accuracy: Fraction of sequences for which it gave a program that puts out exactly that sequence.
        precision: Bits of the right programs over those of gzip on the same sequences joined; below 1 is good.
        rate: Programs where right and short, gzip on the others joined, and a bit a sequence, over raw bits. Never above gzip, or 1, and
            that bit.
        nominal_rate: Likewise with the paper's lengths of programs, which are no decodable code.
        baselines: Rates of gzip, bz2 and xz on all sequences joined, and of deflate on each alone.
    """

    accuracy: float
    precision: float
    rate: float
    nominal_rate: float
    baselines: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def evaluate(sequences: Sequence[bytes], synthesiser: Synthesiser) -> KTReport:
    """Put a synthesiser to the test. Its programs are run within bounds and compared; a wrong one counts as none.

    Args:
        sequences: What to compress, as raw bytes (the official evaluator doubles bytes above 127 in its baseline by encoding text).
        synthesiser: A search, or :func:`from_text_model` around any code model.

    Raises:
        InvalidArgument: If there are no sequences.

    Reference:
        Yoran, Zheng, Gloeckle, Gehring, Synnaeve, Cohen: "The KoLMogorov Test: compression by code generation", 2025.
    """
    if not any(sequences):
        raise InvalidArgument("the test needs at least one sequence that is not empty")
    programs = [_attempt(synthesiser, sequence) for sequence in sequences]
    right = [(program, sequence) for program, sequence in zip(programs, sequences, strict=True) if program is not None]
    bits = sum(program_bits(program) for program, _ in right)
    gzip_right = 8 * _gzip(b"".join(sequence for _, sequence in right))
    known = baselines(sequences)
    costs = [program_bits(program) if program is not None else float("inf") for program in programs]
    nominal = [program.nominal_bits() if program is not None else float("inf") for program in programs]
    # Whether a right program is used is the encoder's choice: not if it is longer than its sequence, or than gzip would make it. As gzip
    # gets worse the less it is left, no limit is best everywhere; the last is to use none.
    limits = (1.0, known["gzip"], known["gzip"] / 2, 0.0)
    return KTReport(
        len(right) / len(sequences), bits / gzip_right if right else float("nan"),
        min(_rate(costs, sequences, limit) for limit in limits), min(_rate(nominal, sequences, limit) for limit in limits), known,
    )  # fmt: skip


def _rate(bits: Sequence[float], sequences: Sequence[bytes], limit: float) -> float:
    """Programs below ``limit`` times their sequence, gzip on the others joined if that helps, and a bit a sequence."""
    used = [cost < 8 * limit * len(sequence) for cost, sequence in zip(bits, sequences, strict=True)]
    others = b"".join(sequence for use, sequence in zip(used, sequences, strict=True) if not use)
    total = sum(cost for use, cost in zip(used, bits, strict=True) if use) + 8 * min(_gzip(others), len(others)) + len(sequences)
    return total / (8 * sum(map(len, sequences)))


def baselines(sequences: Sequence[bytes]) -> dict[str, float]:
    """Compressed over raw size by the codecs of the standard library."""
    joined = b"".join(sequences)
    sizes = {
        "gzip": _gzip(joined), "bz2": len(bz2.compress(joined)), "xz": len(lzma.compress(joined, preset=9 | lzma.PRESET_EXTREME)),
        "deflate, each alone": sum(min(len(sequence), len(_deflate(sequence))) for sequence in sequences),
    }  # fmt: skip
    return {name: size / len(joined) for name, size in sizes.items()}


def from_text_model(model: Callable[[str], str | Sequence[str]], prompt: str | None = None) -> Synthesiser:
    """Any code model as a synthesiser: what it writes is parsed as the language of this room and never executed as Python.

    Args:
        model: From a prompt to a completion or several; everything after ``###`` in one is ignored.
        prompt: With ``{sequence}`` where the numbers go; a description of the language without it.
    """
    template = prompt or PROMPT

    def synthesise(data: bytes) -> Program | None:
        written = model(template.replace("{sequence}", str(list(data))))
        found = []
        for text in [written] if isinstance(written, str) else written:
            try:
                program = Program.parse(text.partition("###")[0].strip())
            except ProgramError:
                continue
            if puts_out(program, data):
                found.append(program)
        return min(found, key=program_bits, default=None)

    return synthesise


PROMPT = """Write the shortest program whose output is exactly the sequence below.
Each line assigns the result of one function to a new name: sequence_1, sequence_2, and so on. The last line is `output = sequence_k`.
Functions: range_func_up(first, last), range_func_interval(first, end, step), repeat_num(times, value), set_list([values]),
repeat_list(times, list), reverse_list(list), substitute(list, old, new), get_subsequence_with_jumps(list, jump),
get_subsequence_between_indices(list, begin, end), max_n(list, n), min_n(list, n), add_item_list(list, number),
subtract_item_list(list, number), modulo_item_list(list, number), scan_add(list), filter(is_even or is_odd or is_not_zero, list),
add_two_lists(list, list), subtract_two_lists(list, list), modulo_two_lists(list, list), concatenate(list, list), interleave(list, list).
End with ###.

Sequence: {sequence}
Program:
"""


def _attempt(synthesiser: Synthesiser, sequence: bytes) -> Program | None:
    try:
        program = synthesiser(sequence) if sequence else None
    except ProgramError:
        return None
    return program if program is not None and puts_out(program, sequence) else None


def _deflate(data: bytes) -> bytes:
    encoder = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    return encoder.compress(data) + encoder.flush()


def _gzip(data: bytes) -> int:
    # The format's header and checksum are 18 bytes around deflate.
    return len(_deflate(data)) + 18 if data else 0
