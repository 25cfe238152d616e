"""Tokens made of compressed text, on which another language model can be trained."""

from __future__ import annotations

from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from tersor.coding.entropy.reference import RangeDecoder, RangeEncoder
from tersor.coding.errors import CorruptStream
from tersor.coding.windows.ngram import NGramByteLM
from tersor.errors import InvalidArgument

Mode = Literal["exact", "delay", "greedy"]
Tokens = NDArray[np.int64]
# Tables of the paper's coder.
TABLE_BITS = 14
# What 64-bit integers hold: the codes of exact, and the interval of the others with room for one more table below it.
_WIDEST = {"exact": 56, "delay": 32, "greedy": 32}
_NARROWEST = {"exact": 8, "delay": TABLE_BITS + 1, "greedy": TABLE_BITS + 1}
# No byte costs less than log2(2^14 / (2^14 - 255)) bits, so that a window stands for fewer bytes than this for each of its bits.
_BYTES_A_BIT = 64
# Windows decoded at once.
_BATCH = 1024


class ByteTokenizer(Protocol):
    """What turns bytes into tokens below ``vocabulary`` and back."""

    @property
    def vocabulary(self) -> int:
        """Different tokens."""
        ...

    def encode(self, data: bytes) -> Tokens:
        """Tokens of ``data``."""
        ...


class EqualInfoTokenizer:
    """Cuts text into windows of equal information, each compressed on its own into the same number of bits.

    Plain arithmetic coding leaves nothing to learn: its tokens look random. Here model and coder start anew in every window, so that
    the same text gives the same tokens wherever a window begins.

    Args:
        model: Predicts the bytes within a window.
        window_bits: Bits of a window, a multiple of ``token_bits``: 8 to 56 for ``exact``, 15 to 32 for the others.
        token_bits: 8 or 16.
        mode: ``"exact"`` splits the codes of a window among texts in integers, one code of every text reserved for its end: lossless.
            ``"delay"`` is the paper's lossless variant, of a lower ratio. ``"greedy"`` is the paper's default and **not lossless**: a
            decoder that keeps the longest text with the window's code is wrong whenever the true next byte did not fit but another does.

    Raises:
        InvalidArgument: If the numbers do not go together.

    Reference:
        Lester, Lee, Alemi, Pennington, Roberts, Sohl-Dickstein, Constant: "Training LLMs over neurally compressed text", 2024.
    """

    def __init__(self, model: NGramByteLM, window_bits: int = 16, token_bits: int = 8, mode: Mode = "exact") -> None:
        if mode not in get_args(Mode):
            raise InvalidArgument(f"mode must be one of {', '.join(map(repr, get_args(Mode)))}, got {mode!r}")
        if token_bits not in (8, 16) or window_bits % token_bits or not _NARROWEST[mode] <= window_bits <= _WIDEST[mode]:
            raise InvalidArgument(
                f"windows of {window_bits} bits in tokens of {token_bits}: tokens have 8 or 16 bits, windows a multiple of that, for mode "
                f"{mode!r} from {_NARROWEST[mode]} to {_WIDEST[mode]}"
            )
        self.model = model
        self.window_bits = window_bits
        self.token_bits = token_bits
        self.mode: Mode = mode

    @property
    def vocabulary(self) -> int:
        """Different tokens."""
        return 1 << self.token_bits

    @property
    def tokens_per_window(self) -> int:
        """Tokens that a window takes; the position within it is worth telling a language model."""
        return self.window_bits // self.token_bits

    def encode(self, data: bytes) -> Tokens:
        """Tokens ``[windows * tokens_per_window]`` of any bytes."""
        codes, _ = self._windows(data)
        shifts = np.arange(self.window_bits - self.token_bits, -1, -self.token_bits)
        return (codes[:, None] >> shifts & (self.vocabulary - 1)).reshape(-1)

    def window_lengths(self, data: bytes) -> Tokens:
        """``[windows]``: bytes of ``data`` in each window that :meth:`encode` makes."""
        return self._windows(data)[1]

    def decode(self, tokens: Tokens) -> bytes:
        """The bytes that gave ``tokens``; for ``"greedy"``, the paper's guess at them.

        Raises:
            CorruptStream: If tokens are out of range, end within a window, or stand for nothing.
        """
        from tersor.coding.windows import _windows

        values = np.asarray(tokens, dtype=np.int64)
        if values.size % self.tokens_per_window or (values.size and (values.min() < 0 or values.max() >= self.vocabulary)):
            raise CorruptStream(f"tokens below {self.vocabulary} come in windows of {self.tokens_per_window}, got {values.size} tokens")
        shifts = np.arange(self.window_bits - self.token_bits, -1, -self.token_bits)
        codes = (values.reshape(-1, self.tokens_per_window) << shifts).sum(1)
        parts = []
        for begin in range(0, len(codes), _BATCH):
            part = codes[begin : begin + _BATCH]
            out = np.zeros(len(part) * self.window_bits * _BYTES_A_BIT, np.uint8)
            count = _windows.decode(self.model.arrays, part, TABLE_BITS, self.window_bits, self._number, out)
            if count < 0:
                raise CorruptStream("a window stands for no text: the tokens are damaged")
            parts.append(out[:count].tobytes())
        return b"".join(parts)

    def _windows(self, data: bytes) -> tuple[Tokens, Tokens]:
        from tersor.coding.windows import _windows

        codes, lengths = np.zeros(len(data), np.int64), np.zeros(len(data), np.int64)
        values = np.frombuffer(data, dtype=np.uint8).copy()
        count = _windows.encode(self.model.arrays, values, TABLE_BITS, self.window_bits, self._number, codes, lengths)
        return codes[:count], lengths[:count]

    @property
    def _number(self) -> int:
        return ("exact", "greedy", "delay").index(self.mode)


class ArithmeticTokenizer:
    """One arithmetic code over the whole text, chopped into tokens: the best ratio, and nothing for a second model to learn.

    Args:
        model: Predicts every byte from all before it; of order 0 this is the paper's static arithmetic coding.
        token_bits: 8 or 16.
    """

    def __init__(self, model: NGramByteLM, token_bits: int = 8) -> None:
        if token_bits not in (8, 16):
            raise InvalidArgument(f"tokens have 8 or 16 bits, got {token_bits}")
        self.model = model
        self.token_bits = token_bits

    @property
    def vocabulary(self) -> int:
        """Different tokens."""
        return 1 << self.token_bits

    def encode(self, data: bytes) -> Tokens:
        """Tokens of any bytes; their number must be kept to decode."""
        encoder = RangeEncoder()
        lows, weights = self.model.bounds(data, TABLE_BITS)
        for low, weight in zip(lows.tolist(), weights.tolist(), strict=True):
            encoder.encode(low, weight, 1 << TABLE_BITS)
        stream = encoder.finish()
        width = self.token_bits // 8
        return np.frombuffer(stream.ljust(-(-len(stream) // width) * width, b"\0"), dtype=f">u{width}").astype(np.int64)

    def decode(self, tokens: Tokens, size: int) -> bytes:
        """The ``size`` bytes that gave ``tokens``.

        Raises:
            CorruptStream: If they end before.
        """
        decoder = RangeDecoder(np.asarray(tokens).astype(f">u{self.token_bits // 8}").tobytes())
        out = bytearray()
        for _ in range(size):
            edges = np.cumsum(self.model.table(bytes(out[-self.model.order :] if self.model.order else b""), TABLE_BITS))
            symbol = int(np.searchsorted(edges, decoder.peek(1 << TABLE_BITS), side="right"))
            low = int(edges[symbol - 1]) if symbol else 0
            decoder.advance(low, int(edges[symbol]) - low, 1 << TABLE_BITS)
            out.append(symbol)
        return bytes(out)
