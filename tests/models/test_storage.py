"""The native format: exact, counted to the byte, whole or not at all, and suspicious of what it reads."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tersor.errors import CorruptFile, InvalidArgument, TersorError
from tersor.models import Model, load
from tersor.models import storage as storage_module
from tersor.models.storage import description_checksum, safetensors_size, stored_tensors, tensor_bytes
from tersor.models.tensorfile import file_sha256
from tersor.weights import DenseWeight, DictionaryWeight, LowRankWeight, SparseWeight, SumWeight, ZeroWeight, distinct_nbytes

TOKENS = torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(0))


def compress_some(model: Model, tiny: SimpleNamespace) -> Model:
    """Every third layer small in another way, the table too, the rest dense."""
    for index, name in enumerate(model.linears()):
        matrix = model.matrix(name)
        if index % 3 == 0:
            model.replace(name, tiny.rounded(matrix, bits=3))
        elif index % 9 == 1:
            small = tiny.rounded(matrix, bits=2)
            model.replace(name, SumWeight([small, DenseWeight((matrix - small.dense()).half())]))
        elif index % 9 == 4:
            model.replace(name, ZeroWeight((matrix.shape[0], matrix.shape[1])))
    for name in model.embeddings():
        model.replace(name, tiny.rounded(model.matrix(name), bits=8))
    return model


def same_state(first: Model, second: Model) -> bool:
    one, two = first.module.state_dict(), second.module.state_dict()
    return one.keys() == two.keys() and all(one[key].dtype == two[key].dtype and torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("compressed", [False, True], ids=["dense", "compressed"])
def test_round_trip_is_exact(tiny: SimpleNamespace, model: Model, compressed: bool, tmp_path: Path):
    if compressed:
        compress_some(model, tiny)
    model.provenance = {"method": "test", "bits": [3, 2]}
    model.save(tmp_path / "out")
    back = load(tmp_path / "out")
    assert same_state(model, back)
    assert torch.equal(tiny.outputs(back, TOKENS), tiny.outputs(model, TOKENS))
    assert back.fingerprint() == model.fingerprint()
    assert (back.name, back.provenance, back.tied) == (model.name, model.provenance, model.tied)
    assert not any(tensor.is_meta for tensor in (*back.module.parameters(), *back.module.buffers()))
    assert not any(parameter.requires_grad for parameter in back.module.parameters())


def test_saving_what_was_loaded_gives_the_same_bytes(tiny: SimpleNamespace, model: Model, tmp_path: Path):
    compress_some(model, tiny).save(tmp_path / "one")
    load(tmp_path / "one").save(tmp_path / "two")
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_sizes_are_those_of_the_file(tiny: SimpleNamespace, model: Model, tmp_path: Path):
    compress_some(model, tiny).save(tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    stored = load_file(file)
    assert model.nbytes == sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    assert safetensors_size(model) == file.stat().st_size
    for name, weight in model.weights().items():
        assert weight.nbytes == sum(tensor.nbytes for key, tensor in stored.items() if key.startswith(f"{name}.weight."))


def test_the_file_is_the_one_that_safetensors_would_write(tiny: SimpleNamespace, model: Model, tmp_path: Path):
    compress_some(model, tiny).save(tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    save_file(load_file(file), tmp_path / "theirs", metadata={"format": "pt"})
    assert file.read_bytes() == (tmp_path / "theirs").read_bytes()


def test_transformers_may_tie_what_is_compressed(tiny: SimpleNamespace, tmp_path: Path):
    """Harnesses and trainers ask every model to tie its weights; a compressed table has no parameter to be found."""
    model = tiny.model("llama")
    table = next(iter(model.embeddings()))
    model.replace(table, tiny.rounded(model.matrix(table)))
    model.save(tmp_path / "small")
    tokens = torch.arange(6)[None]
    wanted = model.module(tokens).logits
    for each in (model, model.copy(), load(tmp_path / "small")):
        each.module.tie_weights()
        assert torch.equal(each.module(tokens).logits, wanted)
        assert each.tied


def test_a_tied_table_is_stored_once(tiny: SimpleNamespace, tmp_path: Path):
    model = tiny.model("llama")
    model.save(tmp_path / "dense")
    assert "lm_head.weight" not in load_file(tmp_path / "dense" / "model.safetensors")
    back = load(tmp_path / "dense")
    assert back.module.lm_head.weight is back.module.model.embed_tokens.weight
    before = model.nbytes
    model.replace("model.embed_tokens", tiny.rounded(model.matrix("model.embed_tokens")))
    model.save(tmp_path / "small")
    assert not any(key.startswith("lm_head") for key in load_file(tmp_path / "small" / "model.safetensors"))
    assert model.nbytes == before - 96 * 32 * 4 + 96 * 16 + 96 * 2


def share_dictionary(model: Model, compressed: bool = False) -> list[str]:
    """Two layers of as many inputs that mix the same atoms; their names."""
    names = [name for name in model.linears() if model.shape(name)[1] == 32][:2]
    atoms = torch.randn(40, 32, generator=torch.Generator().manual_seed(1)).half()
    dictionary = LowRankWeight(atoms[:, :4].clone(), atoms[:4].clone()) if compressed else DenseWeight(atoms)
    for seed, name in enumerate(names):
        codes = torch.randn(model.shape(name)[0], 40, generator=torch.Generator().manual_seed(seed))
        model.replace(name, DictionaryWeight(SparseWeight.from_dense(codes, codes > 1), dictionary))
    return names


@pytest.mark.parametrize("compressed", [False, True], ids=["dense atoms", "compressed atoms"])
def test_a_dictionary_of_several_layers_is_stored_and_counted_once(tiny: SimpleNamespace, llama: Model, compressed: bool, tmp_path: Path):
    names = share_dictionary(llama, compressed)
    apart = sum(llama.weights()[name].nbytes for name in names)
    once = distinct_nbytes(llama.weights().values())
    assert once == apart - (2 * 40 * 32 if not compressed else 2 * (40 * 4 + 4 * 32))
    llama.save(tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert sum(tensor.nbytes for key, tensor in stored.items() if key.startswith(tuple(f"{name}.weight." for name in names))) == once
    assert llama.nbytes == sum(tensor.nbytes for tensor in stored.values())
    back = load(tmp_path / "out")
    assert same_state(llama, back)
    assert torch.equal(tiny.outputs(back, TOKENS), tiny.outputs(llama, TOKENS))
    assert back.fingerprint() == llama.fingerprint()
    assert back.nbytes == back.copy().nbytes == llama.nbytes
    assert distinct_nbytes(back.weights().values()) == once
    back.save(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("source", ["model.norm.weight", "nowhere", None, "model.layers.0.self_attn.q_proj.weight.codes.values.high"])
def test_a_share_of_what_is_not_there_is_refused(llama: Model, source: Any, tmp_path: Path):
    share_dictionary(llama)
    llama.save(tmp_path / "out")
    path = tmp_path / "out" / "tersor.json"
    description = json.loads(path.read_text())
    alias = next(iter(alias for alias in description["tied"] if "dictionary" in alias))
    description["tied"][alias] = source
    description["checksum"] = description_checksum(description)
    path.write_text(json.dumps(description))
    with pytest.raises(CorruptFile, match=r"cannot be tied|its description promises|lack"):
        load(tmp_path / "out")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (torch.tensor([1.5, -0.0, 65504.0]), torch.float16),
        (torch.tensor([1.5, 3e38, 1e-38]).bfloat16().float(), torch.bfloat16),
        (torch.tensor([1.5, 3e38, 0.5]).bfloat16().float(), torch.bfloat16),
        (torch.tensor([0.1]), torch.float32),
        (torch.cat([torch.ones(2000), torch.tensor([0.1])]), torch.float32),
        (torch.tensor([1e-8]).half().float() + 2.0**-24, torch.float16),
    ],
    ids=["half", "wide", "wide-again", "float", "float-late", "subnormal"],
)
def test_auto_picks_the_smallest_exact_type(llama: Model, values: torch.Tensor, expected: torch.dtype):
    llama.module.model.norm.weight = torch.nn.Parameter(values, requires_grad=False)
    assert stored_tensors(llama)["model.norm.weight"].dtype == expected


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_an_explicit_type_rounds_what_is_not_compressed(llama: Model, dtype: str, tmp_path: Path):
    llama.save(tmp_path / "out", dense_dtype=dtype)
    assert tensor_bytes(llama, dtype) == llama.n_parameters * (4 if dtype == "float32" else 2)
    assert safetensors_size(llama, dtype) == (tmp_path / "out" / "model.safetensors").stat().st_size
    back = load(tmp_path / "out")
    for before, after in zip(llama.module.parameters(), back.module.parameters(), strict=True):
        assert torch.equal(after, before.to(getattr(torch, dtype)).float())


def test_a_value_that_overflows_is_refused(llama: Model, tmp_path: Path):
    llama.module.model.norm.weight.data[0] = 1e6
    with pytest.raises(InvalidArgument, match=r"model\.norm\.weight holds values beyond float16"):
        llama.save(tmp_path / "out", dense_dtype="float16")
    with pytest.raises(InvalidArgument, match="dense_dtype must be auto"):
        llama.save(tmp_path / "out", dense_dtype="int8")
    assert not list(tmp_path.iterdir())


def test_loading_never_makes_a_compressed_layer_dense(tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = tiny.model("llama")
    for name in (*model.linears(), *model.embeddings()):
        model.replace(name, tiny.rounded(model.matrix(name)))
    model.save(tmp_path / "out")
    monkeypatch.setattr("tersor.weights.QuantizedWeight.dense", lambda self: pytest.fail("made dense"))
    back = load(tmp_path / "out")
    assert sum(parameter.numel() for parameter in back.module.parameters()) == 7 * 32
    assert len(back.weights()) == 22


def test_an_earlier_model_and_a_run_directory_may_be_written_to(llama: Model, tiny: SimpleNamespace, tmp_path: Path):
    out = tmp_path / "out"
    (out / "run").mkdir(parents=True)
    (out / "run" / "job.json").write_text("{}")
    llama.save(out)
    (out / "report.html").write_text("mine")
    other = tiny.model("gpt2")
    other.save(out)
    assert load(out).architecture == "GPT2LMHeadModel"
    assert (out / "report.html").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_foreign_output_is_refused(llama: Model, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(InvalidArgument, match="was not written by tersor"):
            llama.save(target)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_layers_that_the_configuration_does_not_describe_are_refused(llama: Model, tmp_path: Path):
    """What could not be loaded is not written, such as a layer that was wrapped into another module."""
    owner, _, name = next(iter(llama.linears())).rpartition(".")
    parent = llama.module.get_submodule(owner)
    setattr(parent, name, torch.nn.Sequential(getattr(parent, name)))
    with pytest.raises(InvalidArgument, match="no parameter of a LlamaForCausalLM; put back"):
        llama.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_is_fine(llama: Model, tmp_path: Path):
    (tmp_path / "out").mkdir()
    llama.save(tmp_path / "out")
    assert load(tmp_path / "out").fingerprint() == llama.fingerprint()


def test_a_full_disk_leaves_nothing(llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tersor.models.tensorfile.os.fsync", full)
    with pytest.raises(TersorError, match=r"cannot write .*out: No space left on device; nothing was left behind"):
        llama.save(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_earlier_model(tiny: SimpleNamespace, llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    llama.save(tmp_path / "out")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storage_module.os, "fsync", full)
        with pytest.raises(TersorError, match="No space left"):
            tiny.model("gpt2").save(tmp_path / "out")
    assert load(tmp_path / "out").fingerprint() == llama.fingerprint()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_is_one_sentence(llama: Model, tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(TersorError, match="Permission denied"):
        llama.save(tmp_path / "out")


def test_a_parent_that_is_a_file_is_one_sentence(llama: Model, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TersorError, match="cannot write"):
        llama.save(tmp_path / "file" / "out")


@pytest.fixture
def saved(tiny: SimpleNamespace, tmp_path: Path) -> Path:
    compress_some(tiny.model("llama"), tiny).save(tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("position", [3, 40, 400, -5, -2000])
def test_a_flipped_bit_is_found(saved: Path, position: int):
    file = saved / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[position] ^= 4
    file.write_bytes(data)
    with pytest.raises(CorruptFile, match=r"model\.safetensors"):
        load(saved)


@pytest.mark.parametrize("keep", [0, 4, 100, 5000])
def test_a_truncated_file_is_found(saved: Path, keep: int):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CorruptFile, match="safetensors"):
        load(saved)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_missing_file_is_named(saved: Path, name: str):
    (saved / name).unlink()
    with pytest.raises(CorruptFile, match=name):
        load(saved)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', "not json"])
def test_a_damaged_description_is_found(saved: Path, content: str):
    (saved / "tersor.json").write_text(content)
    with pytest.raises(CorruptFile, match=r"tersor\.json"):
        load(saved)


def test_every_flipped_digit_of_the_description_is_found(saved: Path):
    text = (saved / "tersor.json").read_text()
    for position in [i for i, letter in enumerate(text) if letter.isdigit()][::37]:
        (saved / "tersor.json").write_text(text[:position] + str((int(text[position]) + 1) % 10) + text[position + 1 :])
        with pytest.raises((CorruptFile, InvalidArgument)):
            load(saved)


def test_a_newer_format_is_told_from_damage(saved: Path):
    description = json.loads((saved / "tersor.json").read_text()) | {"format": 99}
    (saved / "tersor.json").write_text(json.dumps(description))
    with pytest.raises(InvalidArgument, match="in format 99; this version reads up to 1"):
        load(saved)


FIRST = "model.layers.0.self_attn.q_proj"


def lie(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(description: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        for key in parents:
            description = description[key]
        if value is None:
            del description[last]
        else:
            description[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        lie(f"weights/{FIRST}/kind", "made-up"),
        lie(f"weights/{FIRST}/bits", 4),
        lie(f"weights/{FIRST}/bits", 10**9),
        lie(f"weights/{FIRST}/shape", [32, 64]),
        lie(f"weights/{FIRST}/shape", [10**9, 10**9]),
        lie(f"weights/{FIRST}/shape", None),
        lie(f"weights/{FIRST}/group_size", 16),
        lie(f"weights/{FIRST}/group_size", 0),
        lie(f"weights/{FIRST}", "text"),
        lie(f"weights/{FIRST}", None),
        lie("weights/model.nothing", {"kind": "zero", "shape": [2, 2]}),
        lie("weights/model.norm", {"kind": "zero", "shape": [32, 1]}),
        lie("weights/lm_head", {"tied_to": "model.layers.1.self_attn.q_proj"}),
        lie("weights/lm_head", {"tied_to": 3}),
        lie("tied", {"model.norm.weight": "model.layers.0.input_layernorm.bias"}),
        lie("tied", {"nothing.weight": "model.norm.weight"}),
        lie("weights", []),
        lie("name", 3),
    ],
    ids=[
        "kind", "bits", "huge-bits", "shape", "huge-shape", "no-shape", "group", "zero-group", "text", "no-layer", "other-layer", "norm",
        "tied-shape", "tied-type", "tied-missing", "tied-nothing", "list", "name",
    ],
)  # fmt: skip
def test_a_lying_description_with_a_right_checksum_is_found(saved: Path, change: Callable[[dict[str, Any]], None]):
    description = json.loads((saved / "tersor.json").read_text())
    change(description)
    description["checksum"] = description_checksum(description)
    (saved / "tersor.json").write_text(json.dumps(description))
    with pytest.raises(CorruptFile):
        load(saved)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 48), ("num_hidden_layers", 2), ("num_hidden_layers", 4), ("vocab_size", 10), ("num_attention_heads", 0),
        ("model_type", "?"),
    ],
    ids=["width", "fewer-layers", "more-layers", "vocabulary", "heads", "type"],
)  # fmt: skip
def test_a_lying_configuration_with_a_right_checksum_is_found(saved: Path, key: str, value: Any):
    config = json.loads((saved / "config.json").read_text()) | {key: value}
    (saved / "config.json").write_text(json.dumps(config))
    description = json.loads((saved / "tersor.json").read_text())
    description["sha256"]["config.json"] = file_sha256(saved / "config.json")
    description["checksum"] = description_checksum(description)
    (saved / "tersor.json").write_text(json.dumps(description))
    with pytest.raises((CorruptFile, InvalidArgument)):
        load(saved)


def test_the_real_model_round_trips_with_its_tokenizer(stories_path: Path, tmp_path: Path, tiny: SimpleNamespace):
    model = load(stories_path)
    name = next(iter(model.linears()))
    model.replace(name, tiny.rounded(model.matrix(name)))
    model.save(tmp_path / "out")
    back = load(tmp_path / "out")
    assert back.name == "stories260k"
    assert same_state(model, back)
    assert torch.equal(back.encode("Once upon a time"), model.encode("Once upon a time"))
    assert back.module.generation_config.to_dict() == model.module.generation_config.to_dict()
