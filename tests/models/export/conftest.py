"""Hand-made quantised weights and tiny models, so that these tests know the right answer themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tersor.models.huggingface import load_folder
from tersor.models.model import Model
from tersor.weights import QuantizedWeight, round_scale

Round = Callable[..., QuantizedWeight]


def round_to_nearest(weight: Tensor, bits: int, scheme: str = "symmetric", group_size: int = -1, **options: Any) -> QuantizedWeight:
    """Plain rounding onto every kind of grid, written without the layerwise room."""
    rows, columns = weight.shape
    group = columns if group_size == -1 else group_size
    x = weight.reshape(rows, columns // group, group)
    levels = 2**bits - 1
    if scheme == "symmetric":
        scale = round_scale(x.abs().amax(-1) / max(levels / 2, 0.5))
        steps = x / scale.float()[..., None]
        codes, zero = (x > 0).float() if bits == 1 else steps.round() + 2 ** (bits - 1), None
    else:
        low, high = x.amin(-1).clamp_max(0), x.amax(-1).clamp_min(0)
        scale = round_scale((high - low) / levels)
        if scheme == "asymmetric":
            zero = (-low / scale.float()).round().clamp(0, levels)
            codes = (x / scale.float()[..., None]).round() + zero[..., None]
        else:
            zero = low.half().float()
            codes = ((x - zero[..., None]) / scale.float()[..., None]).round()
    stored = codes.clamp(0, levels).to(torch.uint8).reshape(rows, columns)
    return QuantizedWeight(stored, scale, zero, bits=bits, scheme=scheme, group_size=group_size, **options)


@pytest.fixture(scope="session")
def rtn() -> Round:
    return round_to_nearest


def _llama(transformers: Any) -> Any:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=80, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            tie_word_embeddings=False,
        )
    )


def _biased(transformers: Any) -> Any:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=80, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
            attention_bias=True, mlp_bias=True,
        )
    )


def _llama3(transformers: Any) -> Any:
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=80, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=True,
            rope_parameters={**rope, "original_max_position_embeddings": 64},
        )
    )


def _qwen2(transformers: Any) -> Any:
    return transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            vocab_size=80, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            tie_word_embeddings=True,
        )
    )


def _gpt2(transformers: Any) -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=80, n_embd=64, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0)
    )


_MAKERS = {"llama": _llama, "biased": _biased, "llama3": _llama3, "qwen2": _qwen2, "gpt2": _gpt2}


@pytest.fixture(scope="session")
def random_model() -> Callable[..., Model]:
    """A function from a name and a seed to a tiny model whose biases and norms are not trivial."""

    def make(name: str, seed: int = 0) -> Model:
        import transformers

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = _MAKERS[name](transformers)
            with torch.no_grad():
                for parameter in module.parameters():
                    noise = torch.randn_like(parameter)
                    parameter.add_(0.1 * noise) if parameter.ndim == 1 else parameter.mul_(3)
        return Model(module, None, name)

    return make


@pytest.fixture(scope="session")
def stories(stories_path: Path) -> Model:
    return load_folder(stories_path, "stories260k")


@pytest.fixture(scope="session")
def quantized(rtn: Round) -> Callable[..., Model]:
    """A copy of a model with every linear layer rounded; ``choose(index, matrix)`` gives the arguments of the rounding."""

    def make(model: Model, choose: Callable[[int, Tensor], tuple[int, str, int]]) -> Model:
        twin = model.copy()
        for index, name in enumerate(model.linears()):
            matrix = model.matrix(name)
            twin.replace(name, rtn(matrix, *choose(index, matrix)))
        return twin

    return make
