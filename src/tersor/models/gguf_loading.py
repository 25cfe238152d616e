"""Models from GGUF files: configuration and tokenizer as transformers reads them, tensors much faster, a plain float32 model out."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor.errors import CorruptFile, InvalidArgument
from tersor.models.gguf_reader import GGUFHeader, GGUFTensorInfo, read_gguf
from tersor.models.huggingface import check_finite, first_line, model_class, quiet_transformers
from tersor.models.model import Model

# Architectures whose tensors are read here; others go through transformers' own, slower reader.
_FAST = ("llama", "qwen2", "qwen3", "gpt2")
_CHUNK = 1 << 17  # bytes of a row given to the decoder; 16 of them and what they decode to stay in cache
# Values of tokenizer.ggml.pre whose words never hold more than one digit.
_DIGIT_SPLITTERS = ("smollm", "starcoder", "refact", "command-r")
# Tables that llama.cpp computes from the configuration and stores beside the weights.
_DERIVED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def load_gguf(path: Path, name: str | None = None) -> Model:
    """A float32 model from a GGUF file of any storage type.

    Args:
        path: The file; its counts and sizes are checked before anything is allocated.
        name: What reports call it; the file's name without it.

    Raises:
        CorruptFile: If the file contradicts itself, lacks tensors, or holds NaN.
        InvalidArgument: If transformers cannot read the architecture, or the file is one part of several.
    """
    _need_gguf()
    header = read_gguf(path)
    if header.metadata.get("split.count", 1) > 1:
        raise InvalidArgument(f"{path} is one part of a split file; merge the parts with llama-gguf-split first")
    config = _config(header)
    with quiet_transformers():
        module = _module(header, config) if header.architecture in _FAST else _module_by_transformers(path, config)
    check_finite(module, str(path))
    return Model(module, _tokenizer(header), name or path.stem)


def _need_gguf() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise InvalidArgument("reading GGUF files needs the package gguf; run pip install tersor[gguf]") from None


def _config(header: GGUFHeader) -> Any:
    """The configuration, by transformers, from a copy of the header without vocabulary and tensors: parsing those takes it seconds."""
    from transformers import AutoConfig

    blocks = header.metadata.get(f"{header.architecture}.block_count", 0)
    if type(blocks) is not int or not 0 <= blocks <= len(header.tensors):
        raise CorruptFile(f"{header.path} claims {blocks} blocks but holds {len(header.tensors)} tensors")
    with tempfile.TemporaryDirectory() as folder:
        write_skeleton(header, Path(folder) / "header.gguf")
        try:
            with quiet_transformers():
                config = AutoConfig.from_pretrained(folder, gguf_file="header.gguf", local_files_only=True)
        except Exception as error:
            if "is not supported" in str(error):
                message = f"{header.path} is of the architecture {header.architecture!r}, which transformers cannot read from GGUF"
                raise InvalidArgument(message) from None
            raise CorruptFile(f"{header.path} does not describe a {header.architecture} model: {first_line(error)}") from None
    # The table itself is the surest source; some architectures' readers look elsewhere or not at all.
    for tensor in header.tensors:
        if tensor.name == "token_embd.weight":
            config.vocab_size = tensor.shape[0]
    if header.architecture == "gpt2":
        # Transformers leaves its default, which fits no model but GPT-2's own sizes.
        config.n_positions = header.metadata.get("gpt2.context_length", config.n_positions)
    return config


def write_skeleton(header: GGUFHeader, path: Path) -> None:
    """A GGUF file with the metadata and tensor names of another, its vocabulary cut to one entry and its tensors to one number."""
    from gguf import GGUFValueType, GGUFWriter

    writer = GGUFWriter(path, header.architecture)
    for key, value in header.metadata.items():
        if key == "general.architecture" or (isinstance(value, list) and not value):
            continue
        kind, element = header.types[key]
        short = value[:1] if key.startswith("tokenizer.") and isinstance(value, list) else value
        if isinstance(value, list):
            writer.add_key_value(key, short, GGUFValueType(kind), GGUFValueType(element))
        else:
            writer.add_key_value(key, short, GGUFValueType(kind))
    for tensor in header.tensors:
        writer.add_tensor(tensor.name, np.zeros(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tokenizer(header: GGUFHeader) -> Any | None:
    if "tokenizer.ggml.tokens" not in header.metadata:
        return None
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # The auto class would parse the file once more, slowly, only to choose this class.
    cls = PreTrainedTokenizerFast if header.architecture in _FAST else AutoTokenizer
    try:
        with quiet_transformers():
            tokenizer = cls.from_pretrained(header.path.parent, gguf_file=header.path.name, local_files_only=True)
    except Exception as error:
        raise CorruptFile(f"the tokenizer in {header.path} cannot be read: {first_line(error)}") from None
    if header.metadata.get("tokenizer.ggml.pre") in _DIGIT_SPLITTERS:
        _split_digits(tokenizer)
    return tokenizer


def _split_digits(tokenizer: Any) -> None:
    """Give a byte-level tokenizer the first step that transformers drops when it reads a GGUF file: every digit is a word of its own."""
    from tokenizers.pre_tokenizers import Digits, Sequence

    backend = tokenizer.backend_tokenizer
    if backend.pre_tokenizer is not None:
        backend.pre_tokenizer = Sequence([Digits(individual_digits=True), backend.pre_tokenizer])


def _module(header: GGUFHeader, config: Any) -> Any:
    cls = model_class(config)
    with torch.device("meta"):
        skeleton = cls(config)
    expected = skeleton.state_dict()
    tensors: dict[str, Tensor] = {}
    names = _names(skeleton, config, header.architecture)
    convert = _converter(header.architecture, config)
    for info in header.tensors:
        target = names.get(info.name)
        if target is None or target not in expected:
            if info.name not in _DERIVED:
                raise CorruptFile(f"{header.path}: tensor {info.name} belongs to no layer of {cls.__name__}")
            continue
        values = convert(info.name, _dequantized(header, info))
        if values.shape != expected[target].shape:
            raise CorruptFile(
                f"{header.path}: tensor {info.name} has shape {list(values.shape)}, "
                f"the configuration asks for {list(expected[target].shape)}"
            )
        tensors[target] = torch.from_numpy(np.array(values, dtype=np.float32, order="C"))
    module, report = cls.from_pretrained(None, config=config, state_dict=tensors, dtype=torch.float32, output_loading_info=True)
    if missing := report["missing_keys"]:
        raise CorruptFile(f"{header.path} lacks {len(missing)} tensors of {cls.__name__}, the first is {min(missing)}")
    return module


def _names(skeleton: Any, config: Any, architecture: str) -> dict[str, str]:
    """Name in a GGUF file -> name in the state dict."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(key for key, value in MODEL_ARCH_NAMES.items() if value == architecture)
    table = get_tensor_name_map(arch, config.num_hidden_layers)
    names: dict[str, str] = {}
    for key in skeleton.state_dict():
        stem, _, suffix = key.rpartition(".")
        if (stored := table.get_name(stem)) is not None:
            names.setdefault(f"{stored}.{suffix}", key)
    return names


def _converter(architecture: str, config: Any) -> Any:
    """What undoes the reordering that llama.cpp applies when it converts a model of this architecture."""
    heads, kv_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", None) or config.num_attention_heads

    def convert(name: str, values: np.ndarray) -> np.ndarray:
        if architecture == "llama" and ".attn_q." in name:
            return _unpermuted(values, heads)
        if architecture == "llama" and ".attn_k." in name:
            return _unpermuted(values, kv_heads)
        transposed = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
        return values.T if architecture == "gpt2" and name.endswith(transposed) else values

    return convert


def _unpermuted(values: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of rotary pairs that lie side by side, back to the halves that transformers rotates."""
    half = values.shape[0] // n_heads // 2
    if half * n_heads * 2 != values.shape[0]:
        raise CorruptFile(f"an attention weight of {values.shape[0]} rows cannot belong to {n_heads} heads")
    pairs = values.reshape(n_heads, half, 2, *values.shape[1:])
    return np.swapaxes(pairs, 1, 2).reshape(values.shape)


def _dequantized(header: GGUFHeader, info: GGUFTensorInfo) -> np.ndarray:
    from gguf.quants import dequantize

    raw = header.raw(info)
    # The package decodes 16 rows at a time: long rows keep it in numpy. Any cut between blocks will do.
    wide = max((n for n in range(1, raw.shape[0] + 1) if raw.shape[0] % n == 0 and n * raw.shape[1] <= _CHUNK), default=1)
    try:
        values = dequantize(raw.reshape(raw.shape[0] // wide, -1), info.type)
    except NotImplementedError:
        raise InvalidArgument(f"{header.path}: tensor {info.name} is stored as {info.type.name}, which gguf cannot decode") from None
    return np.asarray(values).astype(np.float32, copy=False).reshape(info.shape)


def _module_by_transformers(path: Path, config: Any) -> Any:
    cls = model_class(config)
    try:
        module, report = cls.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, local_files_only=True, output_loading_info=True,
        )  # fmt: skip
    except Exception as error:
        raise CorruptFile(f"{path} cannot be read as {cls.__name__}: {first_line(error)}") from None
    # What marks a model as quantised would make save_pretrained refuse it.
    for owner, leftover in ((module.config, "quantization_config"), (module.config, "_pre_quantization_dtype"), (module, "hf_quantizer")):
        if leftover in vars(owner):
            delattr(owner, leftover)
    if missing := report["missing_keys"]:
        raise CorruptFile(f"{path} lacks {len(missing)} tensors of {cls.__name__}, the first is {min(missing)}")
    return module
