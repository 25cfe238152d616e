"""The keys and values of one layer, compressed, as ``transformers`` wants them. Importing this imports transformers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from tersor.errors import InvalidArgument, TersorError
from tersor.kvcache.config import GearConfig
from tersor.kvcache.scratch import Scratch
from tersor.kvcache.segments import Segments, Side

# Tokens that are stored and read back together: what grows without end leaves holes behind that the allocator cannot use again, and
# reading it back takes as much again.
_TOGETHER = 1024
_SIDES: tuple[Side, Side] = ("keys", "values")


class GearLayer(CacheLayerMixin):
    """The keys and values of one layer: compressed segments, and the last tokens as they are.

    Args:
        config: How it is compressed.
        scratch: What keys and values are read back into, shared with the other layers of a model.

    Attributes:
        keys: The last tokens, in full precision ``[batch, heads, tokens, width]``.
        values: The same.
        segments: Compressed segments of ``"keys"`` and ``"values"``, those of one shape together up to a thousand tokens.
    """

    is_sliding = False
    is_compileable = False
    is_croppable = False

    def __init__(self, config: GearConfig, scratch: dict[Side, Scratch] | None = None) -> None:
        super().__init__()
        self.keys: Any = None
        self.values: Any = None
        self.config = config
        self._scratch = new_scratch() if scratch is None else scratch
        self.segments: dict[Side, list[Segments]] = {side: [] for side in _SIDES}

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Empty buffers of the type and device of the states."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (states.new_empty((*states.shape[:2], 0, states.shape[-1])) for states in (key_states, value_states))
        _check_group(self.config, self.keys, self.values)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append, and return all keys and values; what is compressed by this call is still returned as it was given.

        Args:
            key_states: ``[batch, heads, tokens, width]``.
            value_states: The same.
            *args: Ignored.
            **kwargs: Ignored.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        check_states(self.keys, key_states, value_states)
        first = self.get_seq_length() == 0
        before = [(list(self.segments[side]), buffer) for side, buffer in zip(_SIDES, (self.keys, self.values), strict=True)]
        self.keys, self.values = torch.cat([self.keys, key_states], 2), torch.cat([self.values, value_states], 2)
        # What stays is allocated before what is read back: behind the largest tensors of a step it would keep the allocator from giving
        # their memory to those of the next, which are larger.
        ready = self.keys.shape[2] // self.config.buffer_tokens * self.config.buffer_tokens
        if ready:
            self._compress(ready, self.config.rank_prefill if first else self.config.rank_decode)
        keys, values = (
            _full(*held, states, self._scratch[side])
            for side, held, states in zip(_SIDES, before, (key_states, value_states), strict=True)
        )
        return keys, values

    def get_seq_length(self) -> int:
        """Tokens seen so far."""
        return self._compressed_tokens() + (self.keys.shape[2] if self.is_initialized else 0)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the mask for ``query_length`` new tokens."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def reset(self) -> None:
        """Forget every token."""
        self.segments = {side: [] for side in _SIDES}
        self.keys = self.values = None
        self.is_initialized = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the batch elements ``beam_idx``."""
        self._map(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every batch element."""
        self._map(lambda tensor: tensor.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the batch elements ``indices``."""
        self._map(lambda tensor: tensor[indices.to(tensor.device)])

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last ``-tokens_to_remove`` tokens, which must not have been compressed yet.

        Raises:
            InvalidArgument: If they have been, or the number is positive.
        """
        held = self.keys.shape[2] if self.is_initialized else 0
        if tokens_to_remove > 0 or -tokens_to_remove > held:
            given = f"by a negative number; got {tokens_to_remove}"
            raise InvalidArgument(f"only the last {held} tokens are uncompressed and can be cropped, {given}")
        if tokens_to_remove:
            self.keys, self.values = self.keys[:, :, :tokens_to_remove], self.values[:, :, :tokens_to_remove]

    def offload(self) -> None:
        """Not there: the compressed cache is meant to stay where it is."""
        raise NotImplementedError("a compressed cache is not offloaded; use DynamicCache(offloading=True) to offload")

    def prefetch(self) -> None:
        """Not there, as :meth:`offload` is not."""
        self.offload()

    def nbytes(self) -> int:
        """Bytes of all that is stored, the tokens in full precision included."""
        held = self.keys.nbytes + self.values.nbytes if self.is_initialized else 0
        return held + sum(segments.nbytes for side in _SIDES for segments in self.segments[side])

    def dense_nbytes(self) -> int:
        """Bytes of the same tokens at 16 bits an entry."""
        if not self.is_initialized:
            return 0
        return 2 * self.get_seq_length() * sum(states.shape[0] * states.shape[1] * states.shape[3] for states in (self.keys, self.values))

    def _compressed_tokens(self) -> int:
        return sum(segments.count * segments.tokens for segments in self.segments["keys"])

    def _compress(self, tokens: int, rank: int) -> None:
        for side in _SIDES:
            buffer: Tensor = getattr(self, side)
            if not torch.isfinite(buffer).all():
                raise TersorError(f"the {side} to be compressed hold NaN or Inf; mend the model, or use DynamicCache to see where")
            made = Segments.compress(buffer[:, :, :tokens], side, self.config, rank)
            held = self.segments[side]
            if held and held[-1].fits(made) and (held[-1].count + 1) * made.tokens <= _TOGETHER:
                held[-1] = held[-1].joined(made)
            else:
                held.append(made)
            # A copy: a view would keep the compressed tokens alive.
            setattr(self, side, buffer[:, :, tokens:].clone())

    def _map(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.is_initialized:
            self.keys, self.values = change(self.keys), change(self.values)
            self.segments = {side: [segments.map(change) for segments in held] for side, held in self.segments.items()}


def new_scratch() -> dict[Side, Scratch]:
    """Memory for what is read back, which layers that run one after another may share."""
    return {side: Scratch() for side in _SIDES}


def _full(segments: list[Segments], buffer: Tensor, states: Tensor, scratch: Scratch) -> Tensor:
    """All tokens so far and ``states`` after them, in memory that is theirs as long as the caller holds it."""
    done = sum(each.count * each.tokens for each in segments)
    if done + buffer.shape[2] == 0:
        return states
    full = scratch.empty((*states.shape[:2], done + buffer.shape[2] + states.shape[2], states.shape[3]), states)
    start = 0
    for each in segments:
        end = start + each.count * each.tokens
        each.write(full[:, :, start:end])
        start = end
    full[:, :, done : done + buffer.shape[2]] = buffer
    full[:, :, done + buffer.shape[2] :] = states
    return full


def check_states(keys: Tensor, key_states: Tensor, value_states: Tensor) -> None:
    """Refuse states that do not continue what a layer holds.

    Raises:
        InvalidArgument: If batch, heads or width differ, or keys and values have different numbers of tokens.
    """
    held, given = (keys.shape[0], keys.shape[1], keys.shape[3]), (key_states.shape[0], key_states.shape[1], key_states.shape[3])
    if held != given or key_states.shape[:3] != value_states.shape[:3]:
        raise InvalidArgument(
            f"the cache holds batch, heads and width {held} but was given keys {tuple(key_states.shape)} and values "
            f"{tuple(value_states.shape)}; make a cache of its own for every model and batch, or call reset()"
        )


def _check_group(config: GearConfig, keys: Tensor, values: Tensor) -> None:
    if config.bits is None or config.backbone == "kcvt":
        return
    # Only the plain backbone groups the channels of keys too.
    for states in (keys, values) if config.backbone == "plain" else (values,):
        channels = states.shape[1] * states.shape[3]
        if channels % config.group:
            raise InvalidArgument(
                f"group {config.group} does not divide the {channels} channels of all key-value heads; choose a divisor, such as "
                f"{math.gcd(config.group, channels)}"
            )
