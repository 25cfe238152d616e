"""Compression by programs: a bounded language, its code, random programs, a search, and the KoLMogorov Test."""

from tersor.coding.programs.codec import Synthesiser, decode_blocks, encode_blocks
from tersor.coding.programs.dsl import Line, Program, ProgramError
from tersor.coding.programs.generator import GeneratorConfig, generate_pairs
from tersor.coding.programs.report import KTReport, evaluate, from_text_model
from tersor.coding.programs.search import Search, puts_out
from tersor.coding.programs.serialise import from_bytes, program_bits, to_bytes

__all__ = [
    "GeneratorConfig",
    "KTReport",
    "Line",
    "Program",
    "ProgramError",
    "Search",
    "Synthesiser",
    "decode_blocks",
    "encode_blocks",
    "evaluate",
    "from_bytes",
    "from_text_model",
    "generate_pairs",
    "program_bits",
    "puts_out",
    "to_bytes",
]
