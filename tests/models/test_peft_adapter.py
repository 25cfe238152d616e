"""Corrections as an adapter: what goes out is the base and the low-rank part, which add up to the model again."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from tersor.errors import InvalidArgument
from tersor.layerwise import compensate, rtn
from tersor.models import Model
from tersor.models.export.peft_adapter import export_peft_adapter, split_corrections
from tersor.weights import LowRankWeight, QuantizedWeight, SumWeight


def compensated(model: Model, ranks: dict[str, int], factor_bits: int | None = None) -> Model:
    """``model`` with every named layer rounded to 3 bits and corrected by the rank beside its name."""
    made = model.copy()
    for name, rank in ranks.items():
        weight = model.matrix(name)
        base = rtn(weight, bits=3, group_size=16)
        made.replace(name, compensate(weight, base, None, rank=rank, space="plain", factor_bits=factor_bits))
    return made


RANKS = {"model.layers.0.self_attn.q_proj": 3, "model.layers.0.mlp.down_proj": 3, "model.layers.2.mlp.up_proj": 5}


@pytest.mark.parametrize("factor_bits", [None, 4], ids=["floats", "rounded"])
def test_base_and_adapter_add_up_to_the_model(llama: Model, tmp_path: Path, factor_bits: int | None):
    model = compensated(llama, RANKS, factor_bits)
    base = export_peft_adapter(model, tmp_path / "adapter", base_model="base")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(tensors) == 2 * len(RANKS)
    for name, rank in RANKS.items():
        right, left = (tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        assert (right.shape[0], left.shape[1]) == (rank, rank)
        torch.testing.assert_close(base.matrix(name) + left.float() @ right.float(), model.matrix(name), rtol=1e-5, atol=1e-6)
        assert isinstance(base.weights()[name], QuantizedWeight)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"]) == (3, 3)
    assert config["rank_pattern"] == config["alpha_pattern"] == {"model.layers.2.mlp.up_proj": 5}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_peft_computes_what_the_model_computes(tiny: SimpleNamespace, tmp_path: Path, family: str):
    peft = pytest.importorskip("peft")
    original = tiny.model(family)
    ranks = {name: 2 + index % 3 for index, name in enumerate(original.linears()) if name != "lm_head"}
    model, tokens = compensated(original, ranks), tiny.tokens(2, 9)
    base = export_peft_adapter(model, tmp_path / "adapter")
    dense = original.copy().module
    with torch.no_grad():
        for name in ranks:
            layer, matrix = dense.get_submodule(name), base.matrix(name)
            layer.weight = torch.nn.Parameter((matrix.T if family == "gpt2" else matrix).contiguous())
    adapted = peft.PeftModel.from_pretrained(dense, str(tmp_path / "adapter"))
    with torch.no_grad():
        torch.testing.assert_close(adapted(input_ids=tokens).logits, tiny.outputs(model, tokens), rtol=1e-4, atol=1e-4)


def test_only_a_low_rank_last_part_is_a_correction(llama: Model):
    name = "model.layers.1.mlp.gate_proj"
    first, second = (rtn(llama.matrix(name), bits=bits, group_size=16) for bits in (2, 3))
    low = LowRankWeight(torch.ones(48, 2), torch.ones(2, 32))
    for weight, found in ((SumWeight([first, second]), False), (SumWeight([first, second, low]), True), (SumWeight([low]), False)):
        model = llama.copy()
        model.replace(name, weight)
        base, corrections = split_corrections(model)
        assert (name in corrections) is found
        if found:
            assert torch.equal(base.matrix(name), first.dense() + second.dense())
            assert torch.equal(model.matrix(name), weight.dense())


def test_nothing_to_export_and_foreign_folders_are_refused(llama: Model, tmp_path: Path):
    with pytest.raises(InvalidArgument, match="no layer of the model holds a base with a low-rank correction"):
        export_peft_adapter(llama, tmp_path / "adapter")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InvalidArgument, match="was not written by tersor"):
        export_peft_adapter(compensated(llama, RANKS), tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
