from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tersor.errors import TersorError
from tersor.models import load
from tersor.models.export import dense, export_model
from tersor.models.model import Model
from tersor.weights import LowRankWeight, SparseWeight

RandomModel = Callable[..., Model]
Quantize = Callable[..., Model]


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_any_mixture_becomes_an_ordinary_folder(random_model: RandomModel, quantized: Quantize, name: str, tmp_path: Path) -> None:
    small = quantized(random_model(name), lambda index, _: (3 + index % 3, ("symmetric", "float_min")[index % 2], 32))
    first, second = list(small.linears())[:2]
    small.replace(first, SparseWeight.from_dense(small.matrix(first), small.matrix(first) > 0))
    matrix = small.matrix(second)
    small.replace(second, LowRankWeight(matrix[:, :4].clone(), torch.ones(4, matrix.shape[1])))
    report = export_model(small, tmp_path / "out", "safetensors")
    assert report.verified is not None
    assert report.verified["logit_difference"] < 1e-5
    reloaded = load(tmp_path / "out")
    assert all(torch.equal(reloaded.matrix(layer), small.matrix(layer)) for layer in small.linears() | small.embeddings())
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_encoders_export_as_well(tmp_path: Path) -> None:
    import transformers

    config = transformers.BertConfig(vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    report = export_model(Model(transformers.BertForMaskedLM(config)), tmp_path / "out", "safetensors")
    assert report.verified is not None


def test_type_on_wish_is_smaller_and_its_loss_reported(stories: Model, tmp_path: Path) -> None:
    exact = export_model(stories, tmp_path / "exact", "safetensors")
    half = export_model(stories, tmp_path / "half", "safetensors", dense_dtype="bfloat16")
    assert exact.bits_per_weight == pytest.approx(32)
    assert half.bits_per_weight == pytest.approx(16)
    assert half.verified is not None
    assert 1e-4 < half.verified["logit_difference"] < 1e-1
    assert max(row.error for row in half.layers) > 1e-4
    assert {tensor.dtype for tensor in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.bfloat16}


def test_a_wrong_tensor_is_caught_and_nothing_is_left(
    random_model: RandomModel, quantized: Quantize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = quantized(random_model("llama"), lambda *_: (4, "symmetric", 32))
    right: Callable[[dense.Decompressed], Tensor] = dense.Decompressed.source.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(dense.Decompressed, "source", property(lambda self: right(self).flip(0)))
    with pytest.raises(TersorError, match="verification failed: logits in transformers differ"):
        export_model(small, tmp_path / "out", "safetensors")
    assert list(tmp_path.iterdir()) == []
