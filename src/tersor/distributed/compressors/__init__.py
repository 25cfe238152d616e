"""Gradient compressors, one file a family."""

from tersor.distributed.compressors.base import COMPRESSORS, Compressor, Context, Message
from tersor.distributed.compressors.identity import Identity
from tersor.distributed.compressors.low_rank import LowRank, matrix_shape
from tersor.distributed.compressors.parsing import describe_compressor, parse_compressor
from tersor.distributed.compressors.quant import UniformQuant
from tersor.distributed.compressors.randk import RandK
from tersor.distributed.compressors.sign import ScaledSign
from tersor.distributed.compressors.topk import TopK

__all__ = [
    "COMPRESSORS", "Compressor", "Context", "Identity", "LowRank", "Message", "RandK", "ScaledSign", "TopK", "UniformQuant",
    "describe_compressor", "matrix_shape", "parse_compressor",
]  # fmt: skip
