"""Data codecs over one entropy-coding layer: lossless text and bytes now, by models that the decoder shares."""

from tersor.coding.codecs import CODECS, decode, encode
from tersor.coding.errors import CorruptStream, ModelMismatch, NumericsMismatch
from tersor.coding.streaming import decode_stream, encode_stream

__all__ = [
    "CODECS",
    "CorruptStream",
    "ModelMismatch",
    "NumericsMismatch",
    "decode",
    "decode_stream",
    "encode",
    "encode_stream",
]
