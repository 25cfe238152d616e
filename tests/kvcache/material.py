"""Small models with random weights, and states as attention caches them."""

from __future__ import annotations

from typing import Any

import torch
import transformers


def tiny(layers: int = 2, kv_heads: int = 2, seed: int = 0) -> Any:
    """A Llama with heads of 16 channels, its weights drawn wide enough for tokens to differ."""
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=kv_heads,
        bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.15)
    return model


def states(seed: int, tokens: int = 128, batch: int = 1, heads: int = 2, width: int = 32) -> torch.Tensor:
    """``[batch, heads, tokens, width]`` with channels of different sizes, a few shared directions and heavy tails."""
    random = torch.Generator().manual_seed(seed)
    shape = (batch, heads, tokens, width)
    scale = torch.randn(1, heads, 1, width, generator=random).exp()
    shared = torch.randn(batch, heads, tokens, 3, generator=random) @ torch.randn(batch, heads, 3, width, generator=random)
    spikes = 8 * torch.randn(shape, generator=random) * (torch.rand(shape, generator=random) < 0.01)
    return scale * (torch.randn(shape, generator=random) + shared + spikes)
