"""Synthetic layers with correlated inputs, and real ones from the small trained model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tersor.layerwise import LayerStats, StatsAccumulator


@dataclass(frozen=True)
class Layer:
    """A weight, the statistics it is fitted to, and those it is judged by."""

    weight: Tensor
    stats: LayerStats
    held_out: LayerStats


@pytest.fixture(scope="session")
def make_layer() -> Callable[..., Layer]:
    """``make_layer(seed, out, n)``: Gaussian weights behind inputs that are correlated and of very different sizes, as in real models."""

    def make(seed: int = 0, out: int = 48, n: int = 64) -> Layer:
        generator = torch.Generator().manual_seed(seed)
        mixing = torch.randn(n, n, generator=generator) * torch.linspace(2, 0.1, n) / n**0.5
        sizes = torch.exp(0.7 * torch.randn(n, generator=generator))

        def inputs(tokens: int) -> Tensor:
            return torch.randn(tokens, n, generator=generator) @ mixing.T * sizes

        weight = 0.05 * torch.randn(out, n, generator=generator)
        return Layer(weight, LayerStats.from_inputs(inputs(32 * n)), LayerStats.from_inputs(inputs(8 * n)))

    return make


@pytest.fixture(scope="session")
def layer(make_layer: Callable[..., Layer]) -> Layer:
    return make_layer()


@pytest.fixture(scope="session")
def real_layers(stories_path: Path, data_dir: Path) -> dict[str, Layer]:
    """Three linear layers of the middle block, fitted on 4,096 tokens of stories and judged on other 1,024."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(stories_path)
    model = AutoModelForCausalLM.from_pretrained(stories_path, dtype=torch.float32).eval()
    text = (data_dir / "text" / "tinystories.txt").read_text(encoding="utf-8")[:40_000]
    tokens = torch.tensor(tokenizer(text).input_ids)[:5120].reshape(-1, 256)
    block = model.model.layers[2]
    names = ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")
    stats = [_capture(model, block, names, part) for part in (tokens[:16], tokens[16:])]
    return {name: Layer(block.get_submodule(name).weight.detach(), stats[0][name], stats[1][name]) for name in names}


def _capture(model: torch.nn.Module, block: torch.nn.Module, names: tuple[str, ...], tokens: Tensor) -> dict[str, LayerStats]:
    seen = {name: StatsAccumulator(block.get_submodule(name).weight.shape[1]) for name in names}
    hooks = [block.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: seen[name].update(args[0])) for name in names]
    with torch.no_grad():
        model(tokens)
    for hook in hooks:
        hook.remove()
    return {name: accumulator.finish() for name, accumulator in seen.items()}
