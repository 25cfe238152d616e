"""How keys and values are compressed: one frozen set of options for GEAR and for what it is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_choice, check_integer, check_number

Backbone = Literal["kivi", "kcvt", "plain"]
Solver = Literal["eigh", "power"]

# Tokens that wait in full precision: a group of keys for the backbones with groups, what the authors use for the one without.
_KCVT_BUFFER = 20


@dataclass(frozen=True)
class GearConfig:
    """Options of :class:`GearCache`: a low-bit backbone, a low-rank term for its error, and outliers kept apart.

    Attributes:
        bits: Of a code of the backbone, 1 to 8; ``None`` keeps keys and values as they are, in segments all the same.
        backbone: ``"kivi"`` quantises keys by channel in groups of ``group`` tokens and values by token in groups of ``group`` channels;
            ``"kcvt"`` likewise with one group a channel or token; ``"plain"`` both by token in groups of ``group`` channels.
        group: Entries that share a scale; it divides ``buffer`` (kivi) and the key-value channels of all heads together.
        rank_prefill: Rank, in every head, of the error of the segment that the prompt becomes; 0 for none.
        rank_decode: The same for later segments, which are shorter.
        sparsity: Fraction of entries kept apart, half of them the largest and half the smallest; 0 for none.
        buffer: Tokens that are kept in full precision until they become a segment; ``group`` unless given, 20 for ``"kcvt"``.
        solver: ``"eigh"`` for the best factors, ``"power"`` for a few power iterations from a seeded start.
        iterations: Of ``"power"``.
        seed: Of its start.
        store_dtype: Type of factors and outliers, a 16-bit float or float32; values that overflow it are stored in float32.

    Raises:
        InvalidArgument: If an option is out of range or ``group`` does not divide ``buffer``.

    Example:
        >>> GearConfig(bits=4, backbone="kcvt").buffer_tokens
        20

    Reference:
        Kang, Zhang, Kundu, Jeong, Liu, Krishna, Zhao: "GEAR: An Efficient KV Cache Compression Recipe for Near-Lossless Generative
        Inference of LLM", 2024.
    """

    bits: int | None = 2
    backbone: Backbone = "kivi"
    group: int = 64
    rank_prefill: int = 4
    rank_decode: int = 2
    sparsity: float = 0.02
    buffer: int | None = None
    solver: Solver = "eigh"
    iterations: int = 3
    seed: int = 0
    store_dtype: torch.dtype = torch.float16

    def __post_init__(self) -> None:
        if self.bits is not None:
            check_integer("bits", self.bits, 1, 8)
        check_choice("backbone", self.backbone, Backbone)
        check_choice("solver", self.solver, Solver)
        for name, lowest in (("group", 1), ("rank_prefill", 0), ("rank_decode", 0), ("iterations", 1)):
            check_integer(name, getattr(self, name), lowest)
        check_number("sparsity", self.sparsity, 0.0, 1.0)
        check_integer("buffer", self.buffer_tokens, 1)
        if self.backbone == "kivi" and self.buffer_tokens % self.group:
            raise InvalidArgument(f"buffer {self.buffer} is no multiple of group {self.group}, by which kivi groups the tokens of keys")
        if self.store_dtype not in (torch.float16, torch.bfloat16, torch.float32):
            raise InvalidArgument(f"store_dtype must be torch.float16, torch.bfloat16 or torch.float32, got {self.store_dtype}")

    @property
    def buffer_tokens(self) -> int:
        """Tokens of the streaming buffer, the default filled in."""
        if self.buffer is not None:
            return self.buffer
        return _KCVT_BUFFER if self.backbone == "kcvt" else self.group

    def bits_per_element(self, tokens: int, heads: int, width: int, *, prompt: bool = True) -> float:
        """The bits that an entry of a segment takes by the formula, keys and values taken together.

        ``bits + 32 / g`` for codes with 16-bit scale and minimum, ``16 r (n + d) / (n d)`` for factors, and 32 for each outlier kept.

        Args:
            tokens: Of the segment, ``n``.
            heads: Key-value heads.
            width: Channels of a head, ``d``.
            prompt: Whether it is the segment of the prompt, which has ``rank_prefill``.
        """
        if self.bits is None:
            return float("nan")
        channels = heads * width
        groups = {"kivi": (self.group, self.group), "kcvt": (tokens, channels), "plain": (self.group, self.group)}[self.backbone]
        rank = min(self.rank_prefill if prompt else self.rank_decode, tokens, width)
        factors = rank * (tokens + width) / (tokens * width)
        return self.bits + sum(16 / g for g in groups) + 16 * factors + 32 * self.sparsity
