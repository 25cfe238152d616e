"""Caches for ``generate`` of ``transformers``. Importing this imports transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache

from tersor.errors import InvalidArgument
from tersor.kvcache.config import GearConfig
from tersor.kvcache.eviction import EvictionLayer, Policy
from tersor.kvcache.layer import GearLayer, new_scratch

# What `make_cache` takes, and how each differs from GEAR.
KINDS: dict[str, dict[str, Any]] = {
    "gear": {}, "gear-l": {"sparsity": 0.0}, "gear-kcvt": {"backbone": "kcvt"},
    "kivi": {"rank_prefill": 0, "rank_decode": 0, "sparsity": 0.0},
    "kcvt": {"backbone": "kcvt", "rank_prefill": 0, "rank_decode": 0, "sparsity": 0.0},
    "plain": {"backbone": "plain", "rank_prefill": 0, "rank_decode": 0, "sparsity": 0.0},
}  # fmt: skip


class MeasuredCache(Cache):
    """A cache that knows its bytes and refuses the states of another model; the base of all caches here.

    Args:
        config: The configuration of the model, or of the whole of which it is the text decoder.
        layers: One a layer of the model.
    """

    def __init__(self, config: Any, layers: Sequence[GearLayer | EvictionLayer]) -> None:
        super().__init__(layers=list(layers))
        self._heads = _key_value_heads(config)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append to a layer and return all that its attention may look at.

        Raises:
            InvalidArgument: If the states are not those of the model that the cache was made for, or do not continue what it holds.
        """
        heads = key_states.shape[1]
        if layer_idx >= len(self.layers) or heads != (self._heads or heads):
            raise InvalidArgument(
                f"this cache was made for a model of {len(self.layers)} layers with {self._heads} key-value heads, but layer {layer_idx} "
                f"of a model with {heads} uses it; make a cache of its own for every model"
            )
        made: tuple[Tensor, Tensor] = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        return made

    def nbytes(self) -> int:
        """Bytes of all stored tensors: codes, scales, factors, outliers and the tokens in full precision.

        The memory that one layer at a time is read back into is left out.
        """
        return sum(layer.nbytes() for layer in self.layers)

    def compression_ratio(self) -> float:
        """How many times smaller than the same tokens at 16 bits an entry; NaN while empty."""
        nbytes = self.nbytes()
        return sum(layer.dense_nbytes() for layer in self.layers) / nbytes if nbytes else math.nan


class GearCache(MeasuredCache):
    """Keys and values in a few bits, with low-rank factors of the error and outliers kept apart.

    Use it where a long context fills the memory. For 4 bits and above :class:`KiviCache` loses little and is smaller; at equal bytes
    compare with KIVI at one bit more. Pass it to ``generate`` as ``cache=`` (``past_key_values=`` before transformers 5.2).

    Args:
        config: ``model.config``; every layer must attend to the whole context.
        gear: The options; 2 bits in groups of 64 unless given.

    Raises:
        InvalidArgument: If the model has layers of another kind, or the groups do not divide its channels.

    Example:
        >>> import torch, transformers
        >>> config = transformers.LlamaConfig(vocab_size=32, hidden_size=64, intermediate_size=32, num_hidden_layers=1,
        ...                                   num_attention_heads=2)
        >>> model, cache = transformers.LlamaForCausalLM(config), GearCache(config, GearConfig(bits=2))
        >>> _ = model.generate(torch.zeros(1, 150, dtype=torch.long), max_new_tokens=4, do_sample=False, cache=cache)
        >>> cache.get_seq_length(), len(cache.layers[0].segments["keys"])
        (153, 1)

    Reference:
        Kang, Zhang, Kundu, Jeong, Liu, Krishna, Zhao: "GEAR: An Efficient KV Cache Compression Recipe for Near-Lossless Generative
        Inference of LLM", 2024.
    """

    def __init__(self, config: Any, gear: GearConfig | None = None) -> None:
        self.gear = gear or GearConfig()
        scratch = new_scratch()
        count = _full_attention_layers(config, type(self).__name__)
        super().__init__(config, [GearLayer(self.gear, scratch) for _ in range(count)])


class KiviCache(GearCache):
    """Keys by channel and values by token in groups, and nothing else: the backbone that GEAR improves on.

    Args:
        config: ``model.config``.
        bits: 1 to 8.
        group: Entries that share a scale, and tokens that wait in full precision.

    Reference:
        Liu, Yuan, Jin, Zhong, Xu, Braverman, Chen, Hu: "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", 2024.
    """

    def __init__(self, config: Any, bits: int = 2, group: int = 64) -> None:
        super().__init__(config, GearConfig(bits=bits, group=group, **KINDS["kivi"]))


class PlainCache(GearCache):
    """Keys and values alike by token in groups of channels: the usual quantised cache, which suffers from the outlier channels of keys.

    Args:
        config: ``model.config``.
        bits: 1 to 8.
        group: Channels that share a scale, and tokens that wait in full precision.
    """

    def __init__(self, config: Any, bits: int = 4, group: int = 64) -> None:
        super().__init__(config, GearConfig(bits=bits, group=group, **KINDS["plain"]))


class EvictionCache(MeasuredCache):
    """A bounded number of tokens in full precision: constant memory for any length, and no way back to what was forgotten.

    Masks cannot follow tokens that moved up, so batches padded on the left are for the other caches.

    Args:
        config: ``model.config``.
        budget: Tokens kept.
        policy: See :class:`~tersor.kvcache.eviction.EvictionLayer`.
        protected: Likewise.
    """

    def __init__(self, config: Any, budget: int = 256, policy: Policy = "recent", protected: int | None = None) -> None:
        count = _full_attention_layers(config, "EvictionCache")
        super().__init__(config, [EvictionLayer(budget, policy, protected) for _ in range(count)])


def make_cache(kind: str, config: Any, bits: int = 2, group: int | None = None) -> GearCache:
    """A cache by the name that the command line gives it.

    Args:
        kind: One of ``gear``, ``gear-l`` (no outliers), ``gear-kcvt``, ``kivi``, ``kcvt`` and ``plain``.
        config: ``model.config``.
        bits: 1 to 8.
        group: Entries that share a scale; the largest of 64 and its halves that fits the model unless given.

    Raises:
        InvalidArgument: If the kind is unknown or an option does not fit the model.
    """
    if kind not in KINDS:
        raise InvalidArgument(f"unknown kind of cache {kind!r}; there are {', '.join(KINDS)}")
    text = config.get_text_config(decoder=True)
    channels = (_key_value_heads(config) or 1) * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    return GearCache(config, GearConfig(bits=bits, group=math.gcd(64, channels) if group is None else group, **KINDS[kind]))


def _key_value_heads(config: Any) -> int | None:
    text = config.get_text_config(decoder=True)
    heads = getattr(text, "num_key_value_heads", None) or getattr(text, "num_attention_heads", None)
    return heads if isinstance(heads, int) else None


def _full_attention_layers(config: Any, name: str) -> int:
    """The number of layers, all of which must attend to every token."""
    text = config.get_text_config(decoder=True)
    kinds = getattr(text, "layer_types", None) or ["sliding_attention" if getattr(text, "sliding_window", None) else "full_attention"]
    if other := sorted(set(kinds) - {"full_attention"}):
        found = ", ".join(other)
        raise InvalidArgument(f"{name} is for models whose layers all have full attention; this one has {found}: use DynamicCache")
    return int(text.num_hidden_layers)
