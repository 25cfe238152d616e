"""Tiny random models of every family that the room must handle, as fixtures; ``tiny`` holds what tests share."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from tersor.models import Model
from tersor.weights import QuantizedWeight, round_scale

VOCABULARY = 96
_COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def _llama() -> Any:
    config = transformers.LlamaConfig(
        **_COMMON, intermediate_size=48, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def _gpt2() -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
    )


def _opt() -> Any:
    return transformers.OPTForCausalLM(transformers.OPTConfig(**_COMMON, ffn_dim=48, max_position_embeddings=64, word_embed_proj_dim=16))


def _qwen2() -> Any:
    # Blocks 1 and 2 attend to a window of four tokens: every block must get its own mask.
    config = transformers.Qwen2Config(
        **_COMMON, intermediate_size=48, num_key_value_heads=2, tie_word_embeddings=False, max_position_embeddings=64,
        use_sliding_window=True, sliding_window=4, max_window_layers=1,
    )  # fmt: skip
    return transformers.Qwen2ForCausalLM(config)


def _bert() -> Any:
    return transformers.BertForMaskedLM(transformers.BertConfig(**_COMMON, intermediate_size=48, max_position_embeddings=64))


def _bert_encoder() -> Any:
    return transformers.BertModel(transformers.BertConfig(**_COMMON, intermediate_size=48, max_position_embeddings=64))


BUILDERS: dict[str, Callable[[], Any]] = {
    "llama": _llama, "gpt2": _gpt2, "opt": _opt, "qwen2": _qwen2, "bert": _bert, "bert-encoder": _bert_encoder,
}  # fmt: skip
FAMILIES = tuple(BUILDERS)
DECODERS = ("llama", "gpt2", "opt", "qwen2")


def tiny_model(family: str, seed: int = 0) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = BUILDERS[family]()
        # Fresh biases are zero and fresh norms one; trained ones are not.
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn(parameter.shape)
    return Model(module, name=family)


def random_tokens(n: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCABULARY, (n, length), generator=torch.Generator().manual_seed(seed))


def outputs(model: Model, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        output = model.module(input_ids=tokens)
    return output[0] if not hasattr(output, "logits") else output.logits


def rounded(matrix: Tensor, bits: int = 4) -> QuantizedWeight:
    """``matrix`` rounded symmetrically with one scale a row."""
    scale = round_scale(matrix.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1))
    codes = (matrix / scale.float()).round().add(2 ** (bits - 1)).clamp(0, 2**bits - 1).to(torch.uint8)
    return QuantizedWeight(codes, scale, None, bits=bits, scheme="symmetric", group_size=matrix.shape[1])


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """Helpers: ``tiny.model("llama")``, ``tiny.tokens(2, 9)``, ``tiny.outputs(model, tokens)``, ``tiny.rounded(matrix)``."""
    return SimpleNamespace(model=tiny_model, tokens=random_tokens, outputs=outputs, rounded=rounded)


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Model:
    """Every family in turn."""
    return tiny_model(request.param)


@pytest.fixture(params=DECODERS)
def decoder(request: pytest.FixtureRequest) -> Model:
    """Every family that predicts next tokens in turn."""
    return tiny_model(request.param)


@pytest.fixture
def llama() -> Model:
    """The plainest of them."""
    return tiny_model("llama")
