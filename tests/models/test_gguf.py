"""GGUF files: equal to what transformers reads, and refused where they lie."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from gguf.quants import quantize

from tersor.errors import CorruptFile, InvalidArgument
from tersor.models import load
from tersor.models.gguf_reader import read_gguf
from tersor.models.huggingface import quiet_transformers
from tersor.models.model import Model

TYPE = GGMLQuantizationType
LETTERS = [chr(code) for code in range(33, 127)]
WORDS = ["<unk>", "<s>", "</s>", *LETTERS, "Ġ", "th", "the", "Ġthe"]
MERGES = ["t h", "th e", "Ġ the"]
TOKENS = torch.randint(3, len(WORDS), (2, 9), generator=torch.Generator().manual_seed(0))
_SHAPE = {"vocab_size": len(WORDS), "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}


def llama(tied: bool) -> Any:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**_SHAPE, intermediate_size=96, num_key_value_heads=2, rms_norm_eps=1e-5, tie_word_embeddings=tied)
    )


def qwen2() -> Any:
    config = transformers.Qwen2Config(**_SHAPE, intermediate_size=96, num_key_value_heads=2, rms_norm_eps=1e-5, tie_word_embeddings=False)
    return transformers.Qwen2ForCausalLM(config)


def gpt2(n_positions: int = 1024) -> Any:
    config = transformers.GPT2Config(vocab_size=len(WORDS), n_embd=64, n_layer=2, n_head=4, n_positions=n_positions)
    return transformers.GPT2LMHeadModel(config)


MODULES: dict[str, Callable[[], Any]] = {"llama": lambda: llama(True), "llama-untied": lambda: llama(False), "qwen2": qwen2, "gpt2": gpt2}


def permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to the rows of q and k."""
    return values.reshape(heads, 2, values.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)


def write_gguf(path: Path, module: Any, storage: TYPE, vocabulary: bool = True, extra: dict[str, Any] | None = None) -> Path:
    """``module`` as llama.cpp's converter would write it, matrices in ``storage``."""
    config = module.config
    arch = config.model_type
    writer = GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    if arch == "gpt2":
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(10000.0)
    if vocabulary:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(WORDS)
        writer.add_token_types([3] * 3 + [1] * (len(WORDS) - 3))
        writer.add_token_merges(MERGES)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
    for key, value in (extra or {}).items():
        writer.add_uint32(key, value)
    for name, values in stored(module):
        quantised = values.ndim == 2 and storage not in (TYPE.F32, TYPE.F16)
        data = quantize(values, storage) if quantised else values.astype(np.float16) if values.ndim == 2 and storage == TYPE.F16 else values
        writer.add_tensor(name, data, raw_dtype=storage if quantised else None)
    for finish in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        finish()
    return path


def stored(module: Any) -> list[tuple[str, np.ndarray]]:
    config = module.config
    arch = next(key for key, value in MODEL_ARCH_NAMES.items() if value == config.model_type)
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    tensors = []
    for key, tensor in module.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, _, suffix = key.rpartition(".")
        values = tensor.numpy()
        if config.model_type == "llama" and stem.endswith(("q_proj", "k_proj")):
            values = permuted(values, config.num_attention_heads if stem.endswith("q_proj") else config.num_key_value_heads)
        if config.model_type == "gpt2" and values.ndim == 2 and ".h." in key:
            values = values.T
        tensors.append((f"{names.get_name(stem)}.{suffix}", np.ascontiguousarray(values)))
    return tensors


@pytest.fixture(params=MODULES)
def module(request: pytest.FixtureRequest) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = MODULES[request.param]()
        for parameter in made.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return made.requires_grad_(False).eval()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = llama(True).requires_grad_(False)
    return write_gguf(tmp_path / "model.gguf", made, TYPE.Q8_0)


@pytest.mark.parametrize("storage", [TYPE.F32, TYPE.F16, TYPE.Q4_1, TYPE.Q8_0, TYPE.Q5_0, TYPE.BF16], ids=lambda kind: kind.name)
def test_tensors_are_those_that_transformers_reads(module: Any, storage: TYPE, tmp_path: Path):
    path = write_gguf(tmp_path / "model.gguf", module, storage)
    with quiet_transformers():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    ours = load(path)
    one, two = ours.module.state_dict(), theirs.state_dict()
    assert one.keys() == two.keys()
    for key in one:
        assert torch.equal(one[key], two[key]), key
    assert ours.tied == (module.config.tie_word_embeddings is True)
    assert type(ours.module) is type(theirs)


def test_an_unquantised_file_gives_the_original(module: Any, tiny: SimpleNamespace, tmp_path: Path):
    ours = load(write_gguf(tmp_path / "model.gguf", module, TYPE.F32))
    torch.testing.assert_close(tiny.outputs(ours, TOKENS), tiny.outputs(Model(module), TOKENS), rtol=0, atol=1e-5)


def test_other_architectures_go_through_transformers_and_lose_its_marks(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    expected = load(file)
    monkeypatch.setattr("tersor.models.gguf_loading._FAST", ())
    model = load(file)
    assert model.fingerprint() == expected.fingerprint()
    assert torch.equal(model.encode("the letters"), expected.encode("the letters"))
    model.module.save_pretrained(tmp_path / "plain")
    model.save(tmp_path / "native")
    assert load(tmp_path / "plain").fingerprint() == load(tmp_path / "native").fingerprint() == expected.fingerprint()


def test_a_gpt2_of_another_context_is_read(tmp_path: Path):
    module = gpt2(n_positions=128).requires_grad_(False)
    loaded = load(write_gguf(tmp_path / "model.gguf", module, TYPE.F32))
    assert loaded.max_context == 128
    assert torch.equal(loaded.module.transformer.wpe.weight, module.transformer.wpe.weight)


def test_what_was_loaded_can_be_saved(file: Path, tmp_path: Path, tiny: SimpleNamespace):
    model = load(file)
    assert getattr(model.config, "quantization_config", None) is None
    model.module.save_pretrained(tmp_path / "plain")
    model.tokenizer.save_pretrained(tmp_path / "plain")
    model.save(tmp_path / "native")
    for folder in ("plain", "native"):
        back = load(tmp_path / folder)
        assert torch.equal(tiny.outputs(back, TOKENS), tiny.outputs(model, TOKENS))
        assert torch.equal(back.encode("the letters"), model.encode("the letters"))


def test_the_tokenizer_is_the_one_that_transformers_reads(module: Any, tmp_path: Path):
    path = write_gguf(tmp_path / "model.gguf", module, TYPE.F32)
    with quiet_transformers():
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    ours = load(path).tokenizer
    for text in ("the letters", " the the", "x", "</s>y"):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert ours.all_special_tokens == theirs.all_special_tokens


def test_a_file_without_a_vocabulary_gives_a_model_without_a_tokenizer(module: Any, tmp_path: Path):
    sizes = {f"{module.config.model_type}.vocab_size": len(WORDS)}
    assert load(write_gguf(tmp_path / "model.gguf", module, TYPE.F32, vocabulary=False, extra=sizes)).tokenizer is None


def test_the_header_says_what_was_written(file: Path):
    header = read_gguf(file)
    assert header.architecture == "llama"
    assert header.metadata["tokenizer.ggml.tokens"] == WORDS
    assert header.metadata["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    by_name = {tensor.name: tensor for tensor in header.tensors}
    assert by_name["blk.0.ffn_down.weight"].shape == (64, 96)
    assert by_name["blk.0.ffn_down.weight"].nbytes == 64 * 96 // 32 * 34
    assert header.raw(by_name["blk.0.ffn_down.weight"]).shape == (64, 3 * 34)


@pytest.mark.parametrize("share", [0.0, 0.0002, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(file: Path, share: float):
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CorruptFile, match=r"model\.gguf"):
        load(file)


def patched(file: Path, position: int, form: str, value: int) -> Path:
    data = bytearray(file.read_bytes())
    struct.pack_into(form, data, position, value)
    file.write_bytes(data)
    return file


@pytest.mark.parametrize(
    ("position", "form", "value", "error", "message"),
    [
        (0, "<I", 0, CorruptFile, "not a GGUF file"),
        (4, "<I", 1, InvalidArgument, "version 1"),
        (4, ">I", 3, InvalidArgument, "version 50331648"),
        (8, "<Q", 2**40, CorruptFile, "claims 1099511627776 tensors"),
        (8, "<Q", 2**63, CorruptFile, "tensors"),
        (8, "<Q", 21, CorruptFile, "model.gguf"),
        (16, "<Q", 2**50, CorruptFile, "metadata entries"),
        (16, "<Q", 3, CorruptFile, "model.gguf"),
        (24, "<Q", 2**62, CorruptFile, "claims 4611686018427387904 bytes"),
    ],
    ids=["magic", "old", "big-endian", "tensors", "more-tensors", "one-more-tensor", "pairs", "fewer-pairs", "string"],
)
def test_lying_counts_are_refused(file: Path, position: int, form: str, value: int, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        load(patched(file, position, form, value))


def tensor_field(file: Path, name: str, field: str) -> int:
    """Where the description of a tensor keeps a field."""
    at = file.read_bytes().rindex(name.encode() + struct.pack("<I", 2)) + len(name)
    return at + {"dimensions": 0, "columns": 4, "rows": 12, "type": 20, "offset": 24}[field]


@pytest.mark.parametrize(
    ("field", "form", "value"),
    [
        ("dimensions", "<I", 0), ("dimensions", "<I", 2**31), ("columns", "<Q", 2**61), ("columns", "<Q", 0), ("columns", "<Q", 33),
        ("rows", "<Q", 2**40), ("rows", "<Q", 32), ("type", "<I", 999), ("type", "<I", 2), ("offset", "<Q", 2**60), ("offset", "<Q", 1),
        ("offset", "<Q", 0),
    ],
    ids=[
        "no-dimensions", "many-dimensions", "huge", "empty", "not-blocks", "rows", "fewer-rows", "unknown-type", "other-type", "far",
        "unaligned", "overlap",
    ],
)  # fmt: skip
def test_lying_tensor_descriptions_are_refused(file: Path, field: str, form: str, value: int):
    name = "blk.1.ffn_up.weight"
    with pytest.raises(CorruptFile, match=r"model\.gguf"):
        load(patched(file, tensor_field(file, name, field), form, value))


@pytest.mark.parametrize(
    ("key", "value"),
    [("block_count", 10**9), ("block_count", 1), ("embedding_length", 128), ("attention.head_count", 0), ("attention.head_count", 3)],
    ids=["many-blocks", "fewer-blocks", "width", "no-heads", "odd-heads"],
)
def test_lying_configurations_are_refused(file: Path, key: str, value: int):
    at = file.read_bytes().index(f"llama.{key}".encode()) + len(f"llama.{key}") + 4
    with pytest.raises(CorruptFile):
        load(patched(file, at, "<I", value))


def test_a_nan_is_named(module: Any, tmp_path: Path):
    name = next(key for key in module.state_dict() if key.endswith(("mlp.up_proj.weight", "mlp.c_fc.weight")))
    module.get_parameter(name).data[3, 5] = float("nan")
    with pytest.raises(CorruptFile, match=f"tensor {name}.* holds 1 NaN"):
        load(write_gguf(tmp_path / "model.gguf", module, TYPE.F32))


def test_a_missing_and_a_foreign_tensor_are_named(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    complete = stored(module)
    monkeypatch.setitem(globals(), "stored", lambda _: complete[:3] + complete[4:])
    with pytest.raises(CorruptFile, match="lacks 1 tensors"):
        load(write_gguf(tmp_path / "less.gguf", module, TYPE.F32))
    monkeypatch.setitem(globals(), "stored", lambda _: [*complete, ("blk.0.made_up.weight", np.ones(4, np.float32))])
    with pytest.raises(CorruptFile, match=r"blk\.0\.made_up\.weight belongs to no layer"):
        load(write_gguf(tmp_path / "more.gguf", module, TYPE.F32))


def test_split_and_unknown_files_are_refused(tmp_path: Path, file: Path):
    module = llama(True).requires_grad_(False)
    with pytest.raises(InvalidArgument, match="one part of a split file"):
        load(write_gguf(tmp_path / "part.gguf", module, TYPE.F32, extra={"split.count": 2}))
    data = file.read_bytes().replace(b"llama", b"lxama")
    file.write_bytes(data)
    with pytest.raises(InvalidArgument, match="the architecture 'lxama'"):
        load(file)
