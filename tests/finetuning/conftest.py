"""A small language model and compressed versions of it, for the tests of PV-tuning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tersor import layerwise
from tersor.models import Model

# One of each kind that can be tuned.
MADE: dict[str, tuple[str, dict[str, Any]]] = {
    "codebooks": ("additive_codebooks", {"bits": 4, "group_size": 4}),
    "grid": ("rtn", {"bits": 2, "group_size": 8}),
    "mask": ("magnitude", {"sparsity": 0.6}),
}


@pytest.fixture(scope="package")
def teacher() -> Model:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, tie_word_embeddings=True, initializer_range=0.15,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(LlamaForCausalLM(config))


@pytest.fixture(scope="package")
def windows() -> Tensor:
    return torch.randint(64, (24, 32), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="package")
def made(teacher: Model) -> Callable[[str], Model]:
    """A model whose layers are of that kind."""

    def make(kind: str) -> Model:
        method, options = MADE[kind]
        small = teacher.copy()
        for name in teacher.linears():
            stats = layerwise.LayerStats.identity(teacher.shape(name)[1])
            small.replace(name, layerwise.find_method(method).function(teacher.matrix(name), stats, **options))
        return small

    return make
