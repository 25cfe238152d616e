"""GGUF files for llama.cpp and what builds on it, written without llama.cpp."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tersor.models.export.gguf_architecture import Architecture, architecture_of, tensor_names
from tersor.models.export.gguf_blocks import BLOCK_TYPES
from tersor.models.export.gguf_choice import Stored, fallback, store_compressed, store_dense
from tersor.models.export.gguf_tokenizer import Vocabulary, vocabulary_of
from tersor.models.export.output import GGUF_MARK
from tersor.models.export.report import LayerRow
from tersor.models.model import Model

# A table that is also the output head, or the head itself, loses most by rounding: llama.cpp gives it this type as well.
_HEAD_TYPE = "Q6_K"


def write_gguf(
    model: Model, path: Path, gguf_type: str | None, importance: Mapping[str, Tensor] | None
) -> tuple[list[LayerRow], list[str], int]:
    """Write ``model``, its column scales folded, to ``path``.

    Args:
        model: Of an architecture that :func:`architecture_of` knows.
        path: The file.
        gguf_type: For layers that are not compressed; ``None`` stores them without loss.
        importance: Layer name to ``[in_features]``, weights of the squared error.

    Returns:
        A row a matrix, notes, and the bytes of all tensors.

    Raises:
        InvalidArgument: If llama.cpp has no place for a part of the model.
    """
    from gguf import GGMLQuantizationType, GGUFWriter

    architecture, vocabulary = architecture_of(model), vocabulary_of(model)
    names = tensor_names(model, architecture)
    writer = GGUFWriter(path, architecture.name)
    rows, total = [], 0
    values, layers = model.module.state_dict(), model.linears() | model.embeddings()
    for key, stored_name in names.items():
        layer = key.removesuffix(".weight")
        if key.endswith(".weight") and layer in layers:
            stored = _store(model, layer, _wanted(model, layer, gguf_type), (importance or {}).get(layer))
            data = architecture.rows(stored_name, stored.data)
            writer.add_tensor(stored_name, data, raw_dtype=GGMLQuantizationType[stored.type])
            rows.append(_row(layer, stored, model.shape(layer)))
        else:
            data = architecture.rows(stored_name, values[key].float().contiguous().numpy())
            writer.add_tensor(stored_name, data)
        total += data.nbytes
    if architecture.frequency_factors is not None:
        writer.add_tensor("rope_freqs.weight", architecture.frequency_factors)
        total += architecture.frequency_factors.nbytes
    _write_metadata(writer, model, architecture, vocabulary, rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return rows, _notes(model, rows, gguf_type), total


def _store(model: Model, layer: str, kind: str | None, importance: Tensor | None) -> Stored:
    weight = model.weights().get(layer)
    return store_dense(model.matrix(layer), kind, importance) if weight is None else store_compressed(weight, kind, importance)


def _wanted(model: Model, layer: str, gguf_type: str | None) -> str | None:
    if gguf_type not in BLOCK_TYPES:
        return gguf_type
    is_head = (layer in model.embeddings() and model.tied) or layer == _head_name(model)
    if not is_head:
        return gguf_type
    return max(gguf_type, _HEAD_TYPE, key=lambda name: BLOCK_TYPES[name].bits_per_weight)


def _head_name(model: Model) -> str | None:
    from tersor.models.model import name_of, output_head

    return name_of(model.module, output_head(model.module))


def _row(name: str, stored: Stored, shape: tuple[int, int]) -> LayerRow:
    return LayerRow(name, stored.type, stored.data.nbytes, 8 * stored.data.nbytes / (shape[0] * shape[1]), stored.error)


def _write_metadata(writer: Any, model: Model, architecture: Architecture, vocabulary: Vocabulary, rows: list[LayerRow]) -> None:
    from tersor import __version__

    writer.add_type("model")
    writer.add_name(model.name)
    writer.add_quantized_by("tersor")
    writer.add_string(GGUF_MARK, __version__)
    writer.add_quantization_version(2)
    writer.add_file_type(_file_type(rows))
    for key, value in architecture.metadata.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(f"{architecture.name}.{key}", value)
    writer.add_tokenizer_model(vocabulary.model)
    if vocabulary.model == "no_vocab":
        return
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    for name, token in vocabulary.special.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
    for name, flag in vocabulary.flags.items():
        writer.add_bool(f"tokenizer.ggml.{name}", flag)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)


def _file_type(rows: list[LayerRow]) -> int:
    """The number that stands for "mostly this type", by bytes."""
    from gguf import LlamaFileType

    nbytes: Counter[str] = Counter()
    for row in rows:
        nbytes[row.stored_as] += row.nbytes
    common = nbytes.most_common(1)[0][0]
    candidates = ("ALL_F32",) if common == "F32" else (f"MOSTLY_{common}", f"MOSTLY_{common}_S")
    return next((int(LlamaFileType[name]) for name in candidates if name in LlamaFileType.__members__), int(LlamaFileType.GUESSED))


def _notes(model: Model, rows: list[LayerRow], gguf_type: str | None) -> list[str]:
    notes = []
    replaced = [row for row in rows if gguf_type in BLOCK_TYPES and fallback(gguf_type, model.shape(row.name)[1]) != gguf_type]
    if replaced:
        notes.append(
            f"{len(replaced)} of {len(rows)} layers have rows that are no multiple of {BLOCK_TYPES[str(gguf_type)].block}, stored in "
            f"a larger type than {gguf_type}; go by the bits per weight, not by that name"
        )
    before = {name: weight.nbytes for name, weight in model.weights().items()}
    grown = [row for row in rows if row.nbytes > 2 * before.get(row.name, row.nbytes)]
    if grown:
        notes.append(
            f"{len(grown)} compressed layers, such as {grown[0].name}, take more than twice the bytes they had in tersor, because GGUF has "
            "no type for them; name a gguf_type such as Q4_K to round what it cannot hold"
        )
    if model.tokenizer is None:
        notes.append("the model has no tokenizer, so the file has no vocabulary: programs can feed it token ids only")
    return notes
