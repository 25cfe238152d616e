"""Finding blocks, propagating through them, and what the statistics are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn

from tersor.errors import InvalidArgument, TersorError
from tersor.layerwise.stats import LayerStats
from tersor.models import BlockWalk, Model, check_propagation, find_blocks, load
from tersor.models import activations as activations_module
from tersor.weights import DenseWeight, ZeroWeight

TOKENS = torch.randint(3, 96, (5, 13), generator=torch.Generator().manual_seed(0))
MASK = torch.ones(5, 13, dtype=torch.bool)
MASK[1, 9:] = MASK[4, 5:] = False

PREFIXES = {
    "llama": "model.layers", "gpt2": "transformer.h", "opt": "model.decoder.layers", "qwen2": "model.layers",
    "bert": "bert.encoder.layer", "bert-encoder": "encoder.layer",
}  # fmt: skip


def test_blocks_are_found(model: Model):
    blocks = find_blocks(model.module)
    assert blocks.name == PREFIXES[model.name]
    assert len(blocks) == 3
    assert blocks.index_of(f"{blocks.name}.2.anything.at.all") == 2
    assert blocks.index_of(next(iter(model.embeddings()))) == 0
    assert blocks.head == ("lm_head" if model.name == "qwen2" else None)


def test_the_head_counts_as_behind_the_blocks(tiny: SimpleNamespace):
    blocks = find_blocks(tiny.model("qwen2").module)
    assert blocks.index_of("lm_head") == 3


def test_a_model_that_reuses_one_block_is_refused():
    config = transformers.AlbertConfig(
        vocab_size=96, embedding_size=16, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48
    )
    with pytest.raises(InvalidArgument, match="runs 3 layers out of"):
        find_blocks(transformers.AlbertModel(config))


def test_a_module_without_blocks_is_refused():
    with pytest.raises(InvalidArgument, match="no list of blocks"):
        find_blocks(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_propagation_reproduces_the_model(model: Model, batch_size: int, mask: torch.Tensor | None):
    assert check_propagation(model, TOKENS, batch_size=batch_size, mask=mask) < 1e-5


def test_propagation_reproduces_the_real_model(stories_path: Path):
    model = load(stories_path)
    tokens = torch.randint(3, 512, (4, 100), generator=torch.Generator().manual_seed(0))
    assert check_propagation(model, tokens, batch_size=3) < 1e-5


def test_the_gate_names_block_and_sequence_where_keys_leak(llama: Model, monkeypatch: pytest.MonkeyPatch):
    original = activations_module.run_block
    seen: list[object] = []

    def leaking(module, blocks, index, inputs, tokens, mask=None):
        output = original(module, blocks, index, inputs, tokens, mask)
        if index == 1:
            seen.append(output)
            return output + 0.1 * seen[0] * (len(seen) > 1)
        return output

    monkeypatch.setattr(activations_module, "run_block", leaking)
    with pytest.raises(TersorError, match="the output of block 1 on sequence 2"):
        check_propagation(llama, TOKENS[:4], batch_size=2)


def plain_inputs(model: Model, tokens: torch.Tensor, mask: torch.Tensor | None) -> dict[str, list[torch.Tensor]]:
    """What every linear layer sees, one sequence at a time, without padding."""
    seen: dict[str, list[torch.Tensor]] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: seen.setdefault(name, []).append(args[0].reshape(-1, args[0].shape[-1])))
        for name, layer in (model.linears() | {"head": model.module.get_output_embeddings()}).items()
        if layer is not None
    ]
    with torch.no_grad():
        for row in range(len(tokens)):
            keep = tokens[row] if mask is None else tokens[row][mask[row]]
            model.module(input_ids=keep[None])
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
def test_statistics_are_those_of_plain_forward_passes(model: Model, mask: torch.Tensor | None):
    expected = plain_inputs(model, TOKENS, mask)
    walk = BlockWalk(model, TOKENS, batch_size=2, mask=mask)
    found = {name: stats for step in walk for name, stats in step.stats.items()}
    found |= {name: stats for name, stats in walk.outside.items() if name in model.linears() and "pooler" not in name}
    assert set(found) == {name for name in model.linears() if "pooler" not in name}
    for name, stats in found.items():
        reference = LayerStats.from_inputs(*expected[name])
        assert stats.n_tokens == reference.n_tokens
        torch.testing.assert_close(stats.hessian, reference.hessian, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(stats.mean_abs, reference.mean_abs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "qwen2", "bert"])
def test_head_statistics_are_the_inputs_of_the_head(tiny: SimpleNamespace, family: str):
    model = tiny.model(family)
    expected = LayerStats.from_inputs(*plain_inputs(model, TOKENS, None)["head"])
    walk = BlockWalk(model, TOKENS, TOKENS[:2], batch_size=2)
    assert walk.head_stats is None
    for _ in walk:
        pass
    assert walk.head_stats is not None
    torch.testing.assert_close(walk.head_stats.hessian, expected.hessian, rtol=1e-4, atol=1e-5)
    assert walk.head_held_out is not None
    assert walk.head_held_out.n_tokens == 2 * 13


def test_an_encoder_without_a_head_has_no_head_statistics(tiny: SimpleNamespace):
    walk = BlockWalk(tiny.model("bert-encoder"), TOKENS)
    assert [step.index for step in walk] == [0, 1, 2]
    assert walk.head_stats is None


def test_layers_with_one_input_share_one_object(llama: Model):
    step = next(iter(BlockWalk(llama, TOKENS)))
    short = {name.rpartition(".")[2]: stats for name, stats in step.stats.items()}
    assert short["q_proj"] is short["k_proj"] is short["v_proj"]
    assert short["gate_proj"] is short["up_proj"]
    assert len({id(stats) for stats in short.values()}) == 4
    assert step.name == "model.layers.0"
    assert list(step.layers) == list(step.stats)


def test_later_blocks_see_what_the_caller_left(llama: Model):
    changed = llama.copy()
    changed.replace("model.layers.0.mlp.down_proj", ZeroWeight(changed.shape("model.layers.0.mlp.down_proj")))
    expected = {name: stats for step in BlockWalk(changed, TOKENS) if step.index for name, stats in step.stats.items()}
    for step in BlockWalk(llama, TOKENS):
        if step.index == 0:
            llama.replace("model.layers.0.mlp.down_proj", ZeroWeight(llama.shape("model.layers.0.mlp.down_proj")))
            continue
        for name, stats in step.stats.items():
            assert torch.equal(stats.hessian, expected[name].hessian)


def test_restoring_before_the_next_step_calibrates_on_dense_inputs(llama: Model):
    expected = {name: stats.hessian for step in BlockWalk(llama, TOKENS) for name, stats in step.stats.items()}
    for step in BlockWalk(llama, TOKENS):
        for name, stats in step.stats.items():
            assert torch.equal(stats.hessian, expected[name])
            original = llama.matrix(name)
            llama.replace(name, ZeroWeight(llama.shape(name)))
            llama.replace(name, DenseWeight(original))


def test_held_out_sequences_are_observed_apart(llama: Model):
    alone = [step.stats for step in BlockWalk(llama, TOKENS[:2])]
    for step in BlockWalk(llama, TOKENS, TOKENS[:2], batch_size=5):
        for name, stats in step.held_out.items():
            torch.testing.assert_close(stats.hessian, alone[step.index][name].hessian, rtol=1e-5, atol=1e-7)


def test_spilling_to_disk_changes_nothing_and_leaves_nothing(model: Model, tmp_path: Path):
    in_memory = [step.stats for step in BlockWalk(model, TOKENS, batch_size=2)]
    sizes = []
    for step in BlockWalk(model, TOKENS, batch_size=2, spill_dir=tmp_path / "spill"):
        sizes += [file.stat().st_size for file in (tmp_path / "spill").glob("*.hidden")] if step.index else []
        for name, stats in step.stats.items():
            assert torch.equal(stats.hessian, in_memory[step.index][name].hessian)
    assert set(sizes) == {TOKENS.numel() * 32 * 4}
    assert not list((tmp_path / "spill").iterdir())


def test_an_abandoned_walk_deletes_its_files(llama: Model, tmp_path: Path):
    walk = iter(BlockWalk(llama, TOKENS, spill_dir=tmp_path))
    next(walk)
    next(walk)
    assert list(tmp_path.iterdir())
    walk.close()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_sentence(llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(activations_module.os, "posix_fallocate", full)
    walk = iter(BlockWalk(llama, TOKENS, spill_dir=tmp_path))
    next(walk)
    with pytest.raises(TersorError, match=r"cannot spill .* No space left"):
        next(walk)
    assert not list(tmp_path.iterdir())


def test_a_model_with_compressed_layers_is_walked_like_its_dense_twin(llama: Model):
    twin = llama.copy()
    for name in twin.linears():
        twin.replace(name, DenseWeight(twin.matrix(name)))
    pairs = zip(BlockWalk(llama, TOKENS), BlockWalk(twin, TOKENS), strict=True)
    for dense, compressed in pairs:
        for name, stats in dense.stats.items():
            torch.testing.assert_close(stats.hessian, compressed.stats[name].hessian, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        (TOKENS.float(), {}, "int64 token ids"),
        (TOKENS[0], {}, "int64 token ids"),
        (TOKENS[:0], {}, "int64 token ids"),
        (TOKENS + 96, {}, "the vocabulary has 96"),
        (torch.randint(3, 96, (1, 65), generator=torch.Generator().manual_seed(0)), {}, "the model takes 64"),
        (TOKENS, {"batch_size": 0}, "batch_size"),
        (TOKENS, {"mask": MASK[:2]}, "mask"),
        (TOKENS, {"mask": torch.zeros_like(MASK)}, "mask"),
    ],
    ids=["float", "flat", "empty", "vocabulary", "context", "batch", "mask-shape", "mask-empty"],
)
def test_bad_tokens_are_refused(llama: Model, tokens: torch.Tensor, options: dict[str, object], message: str):
    with pytest.raises(InvalidArgument, match=message):
        BlockWalk(llama, tokens, **options)


def test_pairs_of_encoder_and_decoder_are_refused():
    config = transformers.T5Config(vocab_size=96, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    with pytest.raises(InvalidArgument, match="pairs an encoder with a decoder"):
        BlockWalk(Model(transformers.T5ForConditionalGeneration(config)), TOKENS)
