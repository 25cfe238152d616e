from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tersor.errors import InvalidArgument, TersorError
from tersor.models import load
from tersor.models.export import check_target, export_model, verify
from tersor.models.export.folding import fold_input_scales
from tersor.models.export.verify import kl_divergence
from tersor.models.gguf_reader import read_gguf
from tersor.models.model import Model
from tersor.models.structure import logits_of, run_model
from tersor.weights import QuantizedWeight

Quantize = Callable[..., Model]
HAS_LLAMA_CPP = find_spec("llama_cpp") is not None
ARCHITECTURES = ["llama", "biased", "llama3", "qwen2", "gpt2"]


def mixture(index: int, matrix: Tensor) -> tuple[int, str, int]:
    """Grids that GGUF holds exactly."""
    return [(4, "symmetric", 32), (4, "float_min", 32), (3, "asymmetric", 64), (5, "symmetric", 32)][index % 4]


def logits(model: Model) -> Tensor:
    tokens = torch.arange(1, 33) * 7 % model.vocabulary
    return logits_of(run_model(model.module, tokens.unsqueeze(0)))[0]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_dense_model_is_stored_without_loss(random_model: Callable[..., Model], name: str, tmp_path: Path) -> None:
    model = random_model(name)
    if not HAS_LLAMA_CPP and name in ("biased", "llama3"):
        pytest.skip("tersor and transformers do not read this back; llama_cpp is not installed")
    report = export_model(model, tmp_path / "out.gguf")
    assert {row.error for row in report.layers} == {0.0}
    assert report.nbytes == (tmp_path / "out.gguf").stat().st_size
    assert report.verified is not None
    assert report.verified["kl_to_model"] < 1e-6


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_quantised_model_keeps_its_grids(random_model: Callable[..., Model], quantized: Quantize, name: str, tmp_path: Path) -> None:
    small = quantized(random_model(name), mixture)
    report = export_model(small, tmp_path / "out.gguf")
    rows = {row.name: row for row in report.layers}
    assert {rows[layer].stored_as for layer in small.weights()} == {"Q4_0", "Q4_1", "Q5_0"}
    assert all(rows[layer].error == 0 for layer in small.weights())
    reloaded = load(tmp_path / "out.gguf")
    for layer in small.linears():
        assert torch.equal(reloaded.matrix(layer), small.matrix(layer))
    assert kl_divergence(logits(small), logits(reloaded)) < 1e-9


@pytest.mark.skipif(not HAS_LLAMA_CPP, reason="llama_cpp is not installed")
@pytest.mark.parametrize("gguf_type", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", None])
def test_llama_cpp_agrees_on_a_trained_model(stories: Model, gguf_type: str | None, tmp_path: Path) -> None:
    report = export_model(stories, tmp_path / "out.gguf", gguf_type=gguf_type)
    assert report.verified is not None
    assert report.verified["runtime"].startswith("llama.cpp")
    assert report.verified["kl_of_runtime"] < 1e-3
    assert report.verified["tokenizer"] == "the same tokens for 2 texts"


def test_untouched_models_come_back_equal(stories: Model, tmp_path: Path) -> None:
    export_model(stories, tmp_path / "out.gguf", verify=False)
    reloaded = load(tmp_path / "out.gguf")
    assert all(torch.equal(reloaded.matrix(name), stories.matrix(name)) for name in stories.linears() | stories.embeddings())
    text = "Lily went to the park. It's 3 o'clock!"
    assert reloaded.encode(text).tolist() == stories.encode(text).tolist()


def test_file_without_llama_cpp_is_checked_by_reading_it(stories: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "find_spec", lambda _: None)
    report = export_model(stories, tmp_path / "out.gguf", gguf_type="Q8_0")
    assert report.verified is not None
    assert "llama_cpp is not installed" in report.verified["runtime"]
    assert report.verified["kl_of_runtime"] < 1e-6


def test_pure_types_name_their_true_rate(random_model: Callable[..., Model], tmp_path: Path) -> None:
    report = export_model(random_model("llama"), tmp_path / "out.gguf", gguf_type="Q4_K", verify=False)
    rows = {row.name: row.stored_as for row in report.layers}
    assert rows["model.layers.0.mlp.down_proj"] == "Q4_K"
    assert rows["model.layers.0.mlp.up_proj"] == "Q5_0"
    assert rows["lm_head"] == "Q8_0"
    assert any("go by the bits per weight" in note for note in report.notes)
    size = sum(row.nbytes for row in report.layers)
    assert report.bits_per_weight > 8 * size / sum(8 * row.nbytes / row.bits_per_weight for row in report.layers) - 1e-9


def test_a_wrong_row_order_is_caught(random_model: Callable[..., Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tersor.models.export.gguf_architecture import Architecture

    monkeypatch.setattr(Architecture, "rows", lambda self, name, values: values)
    target = tmp_path / "out.gguf"
    with pytest.raises(TersorError, match="verification failed: logits of the file differ"):
        export_model(random_model("llama"), target)
    assert list(tmp_path.iterdir()) == []


def test_metadata_says_what_the_model_is(stories: Model, tmp_path: Path) -> None:
    export_model(stories, tmp_path / "out.gguf", verify=False)
    metadata = read_gguf(tmp_path / "out.gguf").metadata
    expected = {
        "general.architecture": "llama", "llama.block_count": 5, "llama.attention.head_count": 8, "llama.attention.head_count_kv": 4,
        "llama.context_length": 512, "llama.feed_forward_length": 172, "tokenizer.ggml.model": "llama", "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.add_bos_token": True, "general.quantization_version": 2,
    }  # fmt: skip
    assert {key: metadata[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "llama.cpp computes llama with silu, this model uses gelu"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rotary embeddings of the type 'yarn' cannot be exported"),
    ],
)
def test_options_without_counterpart_are_refused(random_model: Callable[..., Model], change: dict[str, object], message: str) -> None:
    model = random_model("llama")
    for key, value in change.items():
        setattr(model.config, key, value)
    with pytest.raises(InvalidArgument, match=message):
        check_target(model, "gguf")


def test_other_architectures_are_refused_in_one_sentence() -> None:
    import transformers

    sizes = {"vocab_size": 40, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 1}
    config = transformers.OPTConfig(num_attention_heads=2, **sizes)
    with pytest.raises(InvalidArgument, match=r"OPTForCausalLM cannot be exported to GGUF, language models of the types llama, .* can"):
        check_target(Model(transformers.OPTForCausalLM(config)), "gguf")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "onnx"}, "format must be one of gguf, compressed-tensors, safetensors, got 'onnx'"),
        ({"format": "gguf", "gguf_type": "Q9"}, "gguf_type must be one of"),
        ({"format": "safetensors", "gguf_type": "Q4_0"}, "are for the format gguf, not for safetensors"),
        ({"format": "safetensors", "dense_dtype": "int8"}, "dense_dtype must be one of"),
        ({"format": "gguf", "dense_dtype": "float16"}, "dense_dtype is for folders"),
    ],
)
def test_bad_options_are_refused(random_model: Callable[..., Model], options: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=message):
        export_model(random_model("llama"), tmp_path / "out", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_column_scales_reach_the_file(random_model: Callable[..., Model], rtn: Callable[..., QuantizedWeight], tmp_path: Path) -> None:
    model = random_model("llama")
    small = model.copy()
    scale = torch.linspace(0.5, 2, 128)
    for name in ("q_proj", "k_proj", "v_proj"):
        layer = f"model.layers.0.self_attn.{name}"
        small.replace(layer, rtn(model.matrix(layer) / scale, 4, "symmetric", 32, input_scale=scale))
    report = export_model(small, tmp_path / "out.gguf")
    rows = {row.name: row for row in report.layers}
    assert rows["model.layers.0.self_attn.q_proj"].stored_as == "Q4_0"
    assert rows["model.layers.0.self_attn.q_proj"].error == 0
    assert fold_input_scales(small) is not small
