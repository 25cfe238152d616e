"""How a transformers model is called and laid out in GGUF: keys, tensor names, the order of rotary rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tersor.errors import InvalidArgument
from tersor.models.model import Model

# transformers model_type -> architecture of llama.cpp.
_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gpt2": "gpt2"}
_SILU, _GELU = ("silu", "swish"), ("gelu_new", "gelu_pytorch_tanh")
_ACTIVATIONS = {"llama": _SILU, "qwen2": _SILU, "qwen3": _SILU, "gpt2": _GELU}


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp must know about a model beyond its tensors.

    Attributes:
        name: Of the architecture.
        metadata: Key without the architecture's prefix, to a number or a string.
        heads: Query heads.
        kv_heads: Key and value heads.
        frequency_factors: float32 ``[head_dim / 2]`` that divide the rotary frequencies, or ``None``.
    """

    name: str
    metadata: dict[str, int | float | str]
    heads: int
    kv_heads: int
    frequency_factors: np.ndarray | None = None

    def rows(self, tensor_name: str, values: np.ndarray) -> np.ndarray:
        """``values`` ``[rows, ...]`` in the order of rows that the file has for the tensor of this name."""
        if self.name != "llama" or not tensor_name.endswith((".attn_q.weight", ".attn_k.weight", ".attn_q.bias", ".attn_k.bias")):
            return values
        # transformers rotates the first half of a head against the second, llama.cpp's llama neighbouring rows.
        heads = self.heads if ".attn_q." in tensor_name else self.kv_heads
        halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        return np.ascontiguousarray(np.swapaxes(halves, 1, 2)).reshape(values.shape)


def architecture_of(model: Model) -> Architecture:
    """The description of ``model`` for llama.cpp.

    Raises:
        InvalidArgument: If the architecture, or an option of it, has no counterpart that tersor writes.
    """
    config = model.config
    name = _ARCHITECTURES.get(config.model_type)
    if name is None or not model.architecture.endswith(("ForCausalLM", "LMHeadModel")):
        known = ", ".join(_ARCHITECTURES)
        raise InvalidArgument(f"{model.architecture} cannot be exported to GGUF, language models of the types {known} can")
    _refuse_options(config, name)
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    if name == "gpt2":
        return Architecture(name, _gpt2_metadata(config), heads, heads)
    metadata, factors = _rotary_metadata(config, getattr(config, "head_dim", None) or config.hidden_size // heads)
    metadata |= {
        "vocab_size": config.vocab_size, "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers, "feed_forward_length": config.intermediate_size, "attention.head_count": heads,
        "attention.head_count_kv": kv_heads, "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
    }  # fmt: skip
    return Architecture(name, metadata, heads, kv_heads, factors)


def _refuse_options(config: Any, name: str) -> None:
    activation = getattr(config, "hidden_act", getattr(config, "activation_function", None))
    if activation not in _ACTIVATIONS[name]:
        raise InvalidArgument(f"llama.cpp computes {name} with {_ACTIVATIONS[name][0]}, this model uses {activation}; use another format")
    layers = getattr(config, "layer_types", None) or ()
    windowed = getattr(config, "sliding_window", None) and (config.model_type == "mistral" or getattr(config, "use_sliding_window", False))
    if "sliding_attention" in layers or windowed:
        raise InvalidArgument(f"this {config.model_type} has a sliding window, which llama.cpp's {name} has not; use another format")
    if name == "gpt2" and (config.scale_attn_by_inverse_layer_idx or config.add_cross_attention or not config.scale_attn_weights):
        raise InvalidArgument("this gpt2 scales its attention in a way that llama.cpp does not; use another format")


def _gpt2_metadata(config: Any) -> dict[str, int | float | str]:
    return {
        "vocab_size": config.vocab_size, "context_length": config.n_positions, "embedding_length": config.n_embd,
        "block_count": config.n_layer, "feed_forward_length": config.n_inner or 4 * config.n_embd,
        "attention.head_count": config.n_head, "attention.layer_norm_epsilon": float(config.layer_norm_epsilon),
    }  # fmt: skip


def _rotary_metadata(config: Any, head_dim: int) -> tuple[dict[str, int | float | str], np.ndarray | None]:
    rope = config.rope_parameters or {}
    kind, base = rope.get("rope_type", "default"), float(rope.get("rope_theta", 10000.0))
    metadata: dict[str, int | float | str] = {
        "rope.dimension_count": head_dim, "rope.freq_base": base, "attention.key_length": head_dim, "attention.value_length": head_dim,
    }  # fmt: skip
    if kind == "default":
        return metadata, None
    if kind == "linear":
        return metadata | {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}, None
    if kind == "llama3":
        return metadata, _llama3_factors(rope, base, head_dim)
    raise InvalidArgument(f"rotary embeddings of the type {kind!r} cannot be exported to GGUF; default, linear and llama3 can")


def _llama3_factors(rope: dict[str, Any], base: float, head_dim: int) -> np.ndarray:
    """What long wavelengths are stretched by, blended in between as Llama 3.1 does."""
    wavelength = 2 * math.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] / wavelength
    blend = np.clip((turns - low) / (high - low), 0, 1)
    factors: np.ndarray = 1 / ((1 - blend) / factor + blend)
    return factors.astype(np.float32)


def tensor_names(model: Model, architecture: Architecture) -> dict[str, str]:
    """State-dict name of every tensor that goes into the file, to its name there; a tied head has none of its own.

    Raises:
        InvalidArgument: If a tensor has no place in the format.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    from tersor.models.storage import tied_names

    arch = next(key for key, value in MODEL_ARCH_NAMES.items() if value == architecture.name)
    table = get_tensor_name_map(arch, model.config.num_hidden_layers)
    aliases, layers = tied_names(model), model.linears() | model.embeddings()
    tied_head = model.tied and _head_prefix(model)
    names = {}
    for key in model.module.state_dict():
        if key in aliases or (tied_head and key.startswith(tied_head)):
            continue
        layer = next((name for name in layers if key.startswith(f"{name}.weight")), None)
        stem, suffix = (layer, "weight") if layer is not None else key.rpartition(".")[::2]
        stored = table.get_name(stem)
        if stored is None or suffix not in ("weight", "bias"):
            raise InvalidArgument(f"tensor {key} has no place in a GGUF file of the architecture {architecture.name}")
        names[f"{stem}.{suffix}"] = f"{stored}.{suffix}"
    return names


def _head_prefix(model: Model) -> str:
    from tersor.models.model import name_of, output_head

    return f"{name_of(model.module, output_head(model.module))}."
