from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.models.export.folding import fold_input_scales, fold_offsets
from tersor.models.model import Model
from tersor.models.structure import logits_of, run_model
from tersor.weights import BiasedWeight, DenseWeight, QuantizedWeight, SumWeight

Round = Callable[..., QuantizedWeight]
RandomModel = Callable[..., Model]


def logits(model: Model) -> Tensor:
    tokens = torch.arange(1, 25) * 11 % model.vocabulary
    return logits_of(run_model(model.module, tokens.unsqueeze(0)))[0]


def scaled(model: Model, rtn: Round, names: list[str], seed: int | None = 0) -> Model:
    """A copy with column scales in layers: one for all of the same width, or for ``seed=None`` one each."""
    small = model.copy()
    for i, name in enumerate(names):
        random = torch.Generator().manual_seed(i if seed is None else seed)
        matrix = model.matrix(name)
        scale = torch.rand(matrix.shape[1], generator=random) + 0.5
        small.replace(name, rtn(matrix / scale, 4, "asymmetric", 32, input_scale=scale))
    return small


def unfolded(model: Model) -> list[str]:
    return [name for name, weight in model.weights().items() if isinstance(weight, QuantizedWeight) and weight.input_scale is not None]


CASES = {
    "llama": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
    "qwen2": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"],
    "gpt2": ["attn.c_attn", "mlp.c_fc"],
}


@pytest.mark.parametrize("name", CASES)
def test_shared_scales_fold_without_changing_the_logits(random_model: RandomModel, rtn: Round, name: str) -> None:
    model = random_model(name)
    prefix = "transformer.h" if name == "gpt2" else "model.layers"
    small = scaled(model, rtn, [f"{prefix}.{block}.{layer}" for block in range(2) for layer in CASES[name]])
    before = logits(small)
    folded = fold_input_scales(small)
    assert unfolded(folded) == []
    assert len(unfolded(small)) == 2 * len(CASES[name])
    # Rows that take a scale have it rounded to float16; norms take it as it is.
    assert torch.allclose(logits(folded), before, atol=1e-3 * float(before.abs().max()))
    assert torch.equal(logits(small), before)


def test_readers_that_disagree_keep_their_scales(random_model: RandomModel, rtn: Round) -> None:
    names = [f"model.layers.0.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj")]
    small = scaled(random_model("llama"), rtn, names, seed=None)
    folded = fold_input_scales(small)
    assert unfolded(folded) == names
    assert torch.equal(logits(folded), logits(small))


def test_value_heads_take_a_scale_that_their_queries_agree_about(random_model: RandomModel, rtn: Round) -> None:
    model = random_model("llama")
    name = "model.layers.1.self_attn.o_proj"
    per_value = torch.rand(2, 1, 32, generator=torch.Generator().manual_seed(1)) + 0.5
    agreed = per_value.expand(2, 2, 32).reshape(-1)
    for scale, left in ((agreed, []), (torch.linspace(0.5, 1.5, 128), [name])):
        small = model.copy()
        small.replace(name, rtn(model.matrix(name) / scale, 4, "symmetric", 32, input_scale=scale))
        folded = fold_input_scales(small)
        assert unfolded(folded) == left
        assert torch.allclose(logits(folded), logits(small), atol=1e-3 * float(logits(small).abs().max()))


def test_nothing_to_fold_gives_the_model_itself(random_model: RandomModel) -> None:
    model = random_model("llama")
    assert fold_input_scales(model) is model


def test_an_offset_becomes_the_bias_of_its_layer(random_model: RandomModel, tmp_path: Path) -> None:
    for name, format in (("gpt2", "safetensors"), ("biased", "compressed-tensors")):
        small = with_offset(random_model(name))
        assert small.export(tmp_path / name, format).verified["logit_difference"] < 1e-4
        folded = fold_offsets(small)
        tokens = torch.arange(24)[None]
        torch.testing.assert_close(folded.module(tokens).logits, small.module(tokens).logits, rtol=1e-4, atol=1e-4)
        assert all(weight.offset is None for weight in folded.weights().values())


def test_an_offset_without_a_place_is_refused_by_name(random_model: RandomModel, tmp_path: Path) -> None:
    small = with_offset(random_model("llama"))
    with pytest.raises(InvalidArgument, match=r"layer model\.layers\.0\.\S+ brings a bias .* LlamaForCausalLM has no place"):
        small.export(tmp_path / "out", "safetensors")
    assert not (tmp_path / "out").exists()


def with_offset(model: Model) -> Model:
    """The first layer with a bias around its weight, the second with one inside of it."""
    for number, name in enumerate(list(model.linears())[:2]):
        matrix = model.matrix(name)
        offset = torch.randn(matrix.shape[0], generator=torch.Generator().manual_seed(number))
        biased = BiasedWeight(DenseWeight(matrix / 2**number), offset)
        model.replace(name, SumWeight([biased, DenseWeight(matrix / 2)]) if number else biased)
    return model
