"""How far layers of a compressed model fall behind, against plain forward passes of both models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from tersor.models import BlockWalk, Model
from tersor.models.lagging import find_streams
from tersor.weights import DenseWeight

TOKENS = torch.randint(3, 96, (5, 13), generator=torch.Generator().manual_seed(0))
MASK = torch.ones(5, 13, dtype=torch.bool)
MASK[1, 9:] = MASK[4, 5:] = False

# The layers that write to the residual stream, and where it is seen behind them.
STREAMS = {
    "llama": {"self_attn.o_proj": "post_attention_layernorm", "mlp.down_proj": ""},
    "qwen2": {"self_attn.o_proj": "post_attention_layernorm", "mlp.down_proj": ""},
    "gpt2": {"attn.c_proj": "ln_2", "mlp.c_proj": ""},
    "opt": {"self_attn.out_proj": "final_layer_norm", "fc2": ""},
    # Their norms come behind the sums, also behind the last.
    "bert": {"attention.output.dense": "attention.output.LayerNorm", "output.dense": "output.LayerNorm"},
    "bert-encoder": {"attention.output.dense": "attention.output.LayerNorm", "output.dense": "output.LayerNorm"},
}  # fmt: skip


def damage(model: Model, name: str, seed: int = 0) -> None:
    """Replace a layer's weight by itself with noise."""
    matrix = model.matrix(name)
    noise = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(seed))
    model.replace(name, DenseWeight(matrix + 0.3 * matrix.std() * noise))


def traced(model: Model, names: list[str], mask: Tensor | None) -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs and outputs of parts of a model over all tokens that count, one sequence at a time."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
    keep = torch.ones_like(TOKENS, dtype=torch.bool) if mask is None else mask

    def note(name: str, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        found[name].append((inputs[0], output[0] if isinstance(output, tuple) else output))

    hooks = [
        model.module.get_submodule(name).register_forward_hook(lambda _, inputs, output, name=name: note(name, inputs, output))
        for name in names
    ]
    with torch.no_grad():
        for row in range(len(TOKENS)):
            model.module(input_ids=TOKENS[row : row + 1, keep[row]])
    for hook in hooks:
        hook.remove()
    rows = {name: [(a.flatten(0, -2), b.flatten(0, -2)) for a, b in pairs] for name, pairs in found.items()}
    return {name: (torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])) for name, pairs in rows.items()}


def streams(model: Model) -> dict[str, str]:
    walk = BlockWalk(model, TOKENS)
    block = walk._blocks[0]
    with torch.no_grad():
        return find_streams(block, 0, walk._passes[0])


def test_what_writes_to_the_residual_stream_is_found(model: Model):
    assert streams(model) == STREAMS[model.name]


@pytest.mark.parametrize(
    ("family", "options", "expected"),
    [
        # Attention and feed-forward in parallel: what attention writes is seen by nobody before the block ends.
        ("GPTNeoX", {"intermediate_size": 64}, {"mlp.dense_4h_to_h": ""}),
        # Experts that are no linear layers.
        (
            "Mixtral", {"intermediate_size": 64, "num_key_value_heads": 2, "num_local_experts": 4},
            {"self_attn.o_proj": "post_attention_layernorm"},
        ),
        # A norm of its own, or a factor, before the sum.
        ("Gemma2", {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}, {}),
        ("Granite", {"intermediate_size": 64, "residual_multiplier": 0.3}, {}),
    ],
)  # fmt: skip
def test_blocks_of_other_kinds(family: str, options: dict[str, Any], expected: dict[str, str]):
    config = getattr(transformers, f"{family}Config")(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64, **options
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert streams(Model(getattr(transformers, f"{family}ForCausalLM")(config).eval())) == expected


def test_an_unchanged_model_falls_behind_nowhere(model: Model):
    for step in BlockWalk(model, TOKENS, lags=True, mask=MASK):
        inside = {name for name in step.layers if "pooler" not in name}
        assert step.lags.keys() == inside
        assert all(not lag.change.any() for lag in step.lags.values())


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
@pytest.mark.parametrize("batch_size", [2, 5])
def test_lags_are_those_of_plain_forward_passes(tiny: SimpleNamespace, mask: Tensor | None, batch_size: int):
    """Llama, its first block damaged: every layer of the second answers for its output, the writers for the stream behind them."""
    original, model = tiny.model("llama"), tiny.model("llama")
    second = "model.layers.1"
    walk = iter(BlockWalk(model, TOKENS, lags=True, batch_size=batch_size, mask=mask))
    first = next(walk)
    for name in first.layers:
        damage(model, name)
    step = next(walk)
    norm = f"{second}.post_attention_layernorm"
    names = [*step.layers, norm, second]
    ours, theirs = (traced(each, names, mask) for each in (model, original))
    # Tokens of more than the usual size in the original count less.
    squares = theirs[second][0].double().square().mean(-1)
    weights = (squares.median() / squares).clamp_max(1.0)
    assert 0.1 < float(weights.min()) < 0.9
    for name in step.layers:
        if name.endswith("o_proj"):
            lag = theirs[norm][0] - ours[norm][0]
        elif name.endswith("down_proj"):
            lag = theirs[second][1] - ours[second][1]
        else:
            lag = theirs[name][1] - ours[name][1]
        inputs = ours[name][0].double()
        found = step.lags[name]
        gram, cross = inputs.T * weights @ inputs, inputs.T * weights @ lag.double()
        expected = torch.linalg.solve(gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram)), cross).T.float()
        assert torch.allclose(found.change, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())), name
        assert found.n_tokens == pytest.approx(float(weights.sum() ** 2 / weights.square().sum()), rel=1e-4)


def test_a_copy_in_another_type_is_walked_alike(llama: Model):
    """In float32 of its own, as jobs walk: the caller's weights reach the compressed side alone."""
    plain, lean = BlockWalk(llama.copy(), TOKENS, lags=True), BlockWalk(llama, TOKENS, lags=True, dtype=torch.float32)
    for mine, theirs in zip(plain, lean, strict=True):
        assert mine.lags.keys() == theirs.lags.keys()
        for name in mine.lags:
            assert torch.allclose(mine.lags[name].change, theirs.lags[name].change, rtol=1e-3, atol=1e-4)
            for step in (mine, theirs):
                step.layers[name].weight.data = step.layers[name].weight.data + 0.01 * step.layers[name].weight.data.sign()
