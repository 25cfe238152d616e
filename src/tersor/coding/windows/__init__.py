"""Equal-Info windows: compressed text as tokens that a language model can learn."""

from tersor.coding.windows.ngram import NGramByteLM
from tersor.coding.windows.second_model import (
    SecondModel,
    SecondModelConfig,
    bits_per_byte,
    bits_per_token,
    train_second_model,
    unigram_bits,
)  # fmt: skip
from tersor.coding.windows.tokenizers import ArithmeticTokenizer, ByteTokenizer, EqualInfoTokenizer

__all__ = [
    "ArithmeticTokenizer",
    "ByteTokenizer",
    "EqualInfoTokenizer",
    "NGramByteLM",
    "SecondModel",
    "SecondModelConfig",
    "bits_per_byte",
    "bits_per_token",
    "train_second_model",
    "unigram_bits",
]
