from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file
from torch import Tensor

from tersor.models.export import export_model
from tersor.models.export.compressed_tensors import packed_tensors, scheme_of
from tersor.models.model import Model
from tersor.models.structure import logits_of, run_model
from tersor.weights import LowRankWeight, QuantizedWeight, SparseWeight

Round = Callable[..., QuantizedWeight]
RandomModel = Callable[..., Model]
Quantize = Callable[..., Model]
SCHEMES = ["symmetric", "asymmetric"]


def in_transformers(folder: Path, tokens: Tensor) -> Tensor:
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    with torch.inference_mode():
        return module.eval()(tokens).logits


def check_folder(model: Model, folder: Path) -> None:
    tokens = (torch.arange(1, 33) * 7 % model.vocabulary).unsqueeze(0)
    ours, theirs = logits_of(run_model(model.module, tokens)), in_transformers(folder, tokens)
    assert (ours - theirs).norm() <= 1e-3 * ours.norm()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", range(2, 9))
def test_packing_is_that_of_the_library(rtn: Round, bits: int, scheme: str) -> None:
    weight = rtn(torch.randn(37, 96, generator=torch.Generator().manual_seed(bits)), bits, scheme, 32)
    tensors = packed_tensors(weight)
    signed = (weight.unpacked_codes().int() - 2 ** (bits - 1)).to(torch.int8)
    assert torch.equal(tensors["weight_packed"], pack_to_int32(signed, bits))
    assert torch.equal(unpack_from_int32(tensors["weight_packed"], bits, torch.Size([37, 96])), signed)
    if scheme == "asymmetric":
        zero = (weight.unpacked_zero().int() - 2 ** (bits - 1)).to(torch.int8)
        assert torch.equal(tensors["weight_zero_point"], pack_to_int32(zero, bits, packed_dim=0))


def test_one_bit_of_signs_is_stored_as_two(rtn: Round) -> None:
    weight = rtn(torch.randn(4, 32, generator=torch.Generator().manual_seed(0)), 1, "symmetric", 32)
    assert scheme_of(weight)["num_bits"] == 2
    signed = unpack_from_int32(packed_tensors(weight)["weight_packed"], 2, torch.Size([4, 32]))
    assert torch.equal(signed * weight.scale.float(), weight.dense())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("bits", "group_size"), [(2, 32), (3, 64), (4, -1), (4, 32), (5, 32), (8, -1)])
def test_one_scheme_loads_in_plain_transformers(
    random_model: RandomModel, quantized: Quantize, bits: int, group_size: int, scheme: str, tmp_path: Path
) -> None:
    small = quantized(random_model("llama"), lambda *_: (bits, scheme, group_size))
    export_model(small, tmp_path / "out", "compressed-tensors", verify=False)
    check_folder(small, tmp_path / "out")


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_mixed_schemes_load_in_plain_transformers(random_model: RandomModel, quantized: Quantize, name: str, tmp_path: Path) -> None:
    grids = [(2, "symmetric", 32), (3, "asymmetric", 64), (4, "float_min", 32), (4, "symmetric", -1), (8, "asymmetric", 32)]
    small = quantized(random_model(name), lambda index, _: grids[index % len(grids)])
    report = export_model(small, tmp_path / "out", "compressed-tensors")
    check_folder(small, tmp_path / "out")
    assert any("stored dense" in note for note in report.notes)
    assert {row.name for row in report.layers} == set(small.linears() | small.embeddings())
    assert (len({row.stored_as for row in report.layers}) > 3) == (name != "gpt2")


def test_configuration_is_what_the_library_reads(random_model: RandomModel, quantized: Quantize, tmp_path: Path) -> None:
    small = quantized(random_model("llama"), lambda index, _: (4 if index % 2 else 8, "symmetric", 32))
    export_model(small, tmp_path / "out", "compressed-tensors", verify=False)
    content = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(content)
    targets = [target for group in config.config_groups.values() for target in group.targets]  # type: ignore[union-attr]
    assert sorted(targets) == sorted(small.weights())
    assert config.ignore == []
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert "model.layers.0.mlp.up_proj.weight" not in tensors
    assert tensors["model.layers.0.mlp.up_proj.weight_shape"].tolist() == [256, 128]


def test_one_scheme_targets_all_linear_layers_but_the_dense_ones(random_model: RandomModel, rtn: Round, tmp_path: Path) -> None:
    model = random_model("llama")
    small = model.copy()
    for name in model.linears():
        if name != "lm_head":
            small.replace(name, rtn(model.matrix(name), 4, "symmetric", 32))
    export_model(small, tmp_path / "out", "compressed-tensors")
    content = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert content["config_groups"]["group_0"]["targets"] == ["Linear"]
    assert content["ignore"] == ["lm_head"]
    assert content["dequantize"] is False


def test_pruned_grids_stay_packed_and_other_kinds_become_dense(random_model: RandomModel, rtn: Round, tmp_path: Path) -> None:
    small = random_model("llama")
    down, up, gate = (f"model.layers.0.mlp.{name}_proj" for name in ("down", "up", "gate"))
    matrix = small.matrix(down)
    small.replace(down, SparseWeight.from_quantized(rtn(matrix, 4, "symmetric", 32), matrix > 0))
    small.replace(up, SparseWeight.from_dense(small.matrix(up), small.matrix(up) > 0))
    small.replace(gate, LowRankWeight(small.matrix(gate)[:, :8].clone(), small.matrix(gate)[:8].clone()))
    report = export_model(small, tmp_path / "out", "compressed-tensors")
    rows = {row.name: row.stored_as for row in report.layers}
    assert rows[down] == "int4 group 32"
    assert {rows[up], rows[gate]} <= {"float16", "float32"}
    assert sum("the format has no" in note for note in report.notes) == 2
    check_folder(small, tmp_path / "out")


def test_fused_layers_of_different_schemes_are_warned_about(random_model: RandomModel, quantized: Quantize, tmp_path: Path) -> None:
    model = random_model("llama")
    names = list(model.linears())
    small = quantized(model, lambda index, _: (8 if names[index].endswith(("q_proj", "up_proj")) else 4, "symmetric", 32))
    notes = export_model(small, tmp_path / "out", "compressed-tensors", verify=False).notes
    assert sum("vLLM fuses layers" in note for note in notes) == 1
    same = quantized(model, lambda *_: (4, "symmetric", 32))
    assert export_model(same, tmp_path / "same", "compressed-tensors", verify=False).notes == []


def test_tied_tables_are_dense_and_stored_once(random_model: RandomModel, rtn: Round, tmp_path: Path) -> None:
    small = random_model("qwen2")
    table = next(iter(small.embeddings()))
    small.replace(table, rtn(small.matrix(table), 8, "symmetric", 32))
    report = export_model(small, tmp_path / "out", "compressed-tensors")
    assert any("runtimes look up embeddings in dense tables" in note for note in report.notes)
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    check_folder(small, tmp_path / "out")


def test_column_scales_that_do_not_fold_become_dense(random_model: RandomModel, rtn: Round, tmp_path: Path) -> None:
    small = random_model("llama")
    name = "model.layers.0.self_attn.q_proj"
    scale = torch.linspace(0.5, 2, 128)
    small.replace(name, rtn(small.matrix(name) / scale, 4, "symmetric", 32, input_scale=scale))
    report = export_model(small, tmp_path / "out", "compressed-tensors")
    assert any("column scales that do not fold" in note for note in report.notes)
    check_folder(small, tmp_path / "out")
