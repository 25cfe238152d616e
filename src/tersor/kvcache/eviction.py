"""The other way to a small cache: forget tokens. Importing this imports transformers."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from tersor.kvcache.layer import check_states
from tersor.layerwise.checking import check_choice, check_integer

Policy = Literal["recent", "small_keys"]


class EvictionLayer(CacheLayerMixin):
    """A layer that keeps at most ``budget`` tokens in full precision; positions stay those at which the tokens were read.

    Args:
        budget: Tokens kept between two calls.
        policy: ``"recent"`` keeps the first tokens and the last ones (StreamingLLM); ``"small_keys"`` keeps the last ones and, in every
            head, the older ones whose keys have the smallest norm, which draw the most attention.
        protected: First tokens that ``"recent"`` keeps, last ones that ``"small_keys"`` keeps; 4 and a quarter of the budget by default.

    Raises:
        InvalidArgument: If an option is out of range.

    Reference:
        Xiao, Tian, Chen, Han, Lewis: "Efficient Streaming Language Models with Attention Sinks", 2024.
        Devoto, Zhao, Scardapane, Minervini: "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression", 2024.
    """

    is_sliding = False
    is_compileable = False
    is_croppable = False

    def __init__(self, budget: int, policy: Policy = "recent", protected: int | None = None) -> None:
        super().__init__()
        self.keys: Any = None
        self.values: Any = None
        self.budget = check_integer("budget", budget, 1)
        check_choice("policy", policy, Policy)
        self.policy = policy
        default = min(4, budget - 1) if policy == "recent" else budget // 4
        self.protected = check_integer("protected", default if protected is None else protected, 0, budget)
        self.seen = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Empty buffers of the type and device of the states."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (states.new_empty((*states.shape[:2], 0, states.shape[-1])) for states in (key_states, value_states))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append, return what is kept with the new tokens, and then forget what exceeds the budget.

        Args:
            key_states: ``[batch, heads, tokens, width]``.
            value_states: The same.
            *args: Ignored.
            **kwargs: Ignored.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        check_states(self.keys, key_states, value_states)
        full = torch.cat([self.keys, key_states], 2), torch.cat([self.values, value_states], 2)
        self.seen += key_states.shape[2]
        self.keys, self.values = self._kept(*full) if full[0].shape[2] > self.budget else full
        return full

    def get_seq_length(self) -> int:
        """Tokens seen so far, forgotten ones included: it sets the position of the next."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the mask for ``query_length`` new tokens."""
        held = self.keys.shape[2] if self.is_initialized else 0
        return held + query_length, self.seen - held

    def get_max_length(self) -> int:
        """No limit: forgetting makes room."""
        return -1

    def reset(self) -> None:
        """Forget every token."""
        self.keys = self.values = None
        self.is_initialized, self.seen = False, 0

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every batch element."""
        if self.is_initialized:
            self.keys, self.values = (states.repeat_interleave(repeats, 0) for states in (self.keys, self.values))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the batch elements ``indices``."""
        if self.is_initialized:
            self.keys, self.values = (states[indices.to(states.device)] for states in (self.keys, self.values))

    def nbytes(self) -> int:
        """Bytes of all that is stored."""
        return self.keys.nbytes + self.values.nbytes if self.is_initialized else 0

    def dense_nbytes(self) -> int:
        """Bytes of all tokens seen at 16 bits an entry."""
        if not self.is_initialized:
            return 0
        return 2 * self.seen * sum(states.shape[0] * states.shape[1] * states.shape[3] for states in (self.keys, self.values))

    def _kept(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        older = keys.shape[2] - (self.protected if self.policy == "small_keys" else self.budget - self.protected)
        if self.policy == "recent":
            # A copy: a view would keep what is forgotten alive.
            parts = [torch.cat([states[:, :, : self.protected], states[:, :, older:]], 2) for states in (keys, values)]
            return parts[0], parts[1]
        chosen = keys[:, :, :older].norm(dim=-1).topk(self.budget - self.protected, largest=False).indices.sort(-1).values
        recent = torch.arange(older, keys.shape[2], device=keys.device).expand(*chosen.shape[:2], -1)
        index = torch.cat([chosen, recent], -1).unsqueeze(-1)
        parts = [states.gather(2, index.expand(-1, -1, -1, states.shape[-1])) for states in (keys, values)]
        return parts[0], parts[1]
