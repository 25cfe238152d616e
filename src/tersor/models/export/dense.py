"""Plain Hugging Face folders: every layer dense, so that anything that reads safetensors loads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import InvalidArgument
from tersor.models.export.gguf_choice import relative_error
from tersor.models.export.report import LayerRow
from tersor.models.huggingface import quiet_transformers
from tersor.models.model import Model, output_head
from tersor.models.storage import stored_tensors
from tersor.models.tensorfile import Promise, write_tensors
from tersor.weights.base import CompressedWeight
from tersor.weights.modules import CompressedEmbedding, CompressedLinear

DENSE_TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_EXACT = (torch.float16, torch.bfloat16)


class Decompressed(Promise):
    """The promise of a compressed weight as a dense tensor, which is made only while it is written.

    Args:
        weight: Any kind.
        dtype: As it will be stored.
        transposed: Whether the layer multiplies by the transpose, as GPT-2's does.
    """

    weight: CompressedWeight
    transposed: bool

    def __init__(self, weight: CompressedWeight, dtype: torch.dtype, transposed: bool) -> None:
        shape = weight.shape[::-1] if transposed else weight.shape
        # Past the frozen constructor, which would ask for a source.
        vars(self).update(dtype=dtype, shape=shape, weight=weight, transposed=transposed)

    @property
    def source(self) -> Tensor:
        """The values, decompressed anew each time."""
        return self.weight.dense().T if self.transposed else self.weight.dense()


def write_dense(model: Model, folder: Path, dense_dtype: str) -> tuple[list[LayerRow], list[str], int]:
    """Write ``model`` without any compressed layer to an existing ``folder``.

    Returns:
        A row a matrix, notes, and the bytes of all tensors.
    """
    promises, kinds = uncompressed_promises(model, dense_dtype), layer_kinds(model)
    rows = []
    for name, weight in model.weights().items():
        promise = promises[f"{name}.weight"] = decompressed(name, weight, dense_dtype, kinds[name])
        rows.append(dense_row(name, weight.dense(), promise))
    for name in (model.linears() | model.embeddings()).keys() - model.weights().keys():
        rows.append(dense_row(name, model.matrix(name), promises[f"{name}.weight"]))
    order = list(model.embeddings() | model.linears())
    write_folder(model, folder, promises)
    return sorted(rows, key=lambda row: order.index(row.name)), [], sum(promise.nbytes for promise in promises.values())


def uncompressed_promises(model: Model, dense_dtype: str) -> dict[str, Promise]:
    """Every distinct tensor of ``model`` that does not belong to a compressed weight."""
    layers = [name for name, layer in model.module.named_modules() if isinstance(layer, (CompressedLinear, CompressedEmbedding))]
    compressed = tuple(f"{name}.weight." for name in layers)
    return {name: promise for name, promise in stored_tensors(model, dense_dtype).items() if not name.startswith(compressed)}


def decompressed(name: str, weight: CompressedWeight, dense_dtype: str, kind: str) -> Decompressed:
    """The promise of a compressed layer as a dense one, in ``dense_dtype``, or for ``"auto"`` in the smallest type that is exact.

    Raises:
        InvalidArgument: If a value overflows float16.
    """
    matrix = weight.dense()
    if dense_dtype == "auto":
        dtype = next((dtype for dtype in _EXACT if torch.equal(matrix.to(dtype).float(), matrix)), torch.float32)
    else:
        dtype = DENSE_TYPES[dense_dtype]
        if not torch.isfinite(matrix.to(dtype)).all():
            raise InvalidArgument(f"layer {name} holds values beyond {dense_dtype}; export with dense_dtype bfloat16 or auto")
    return Decompressed(weight, dtype, kind == "Conv1D")


def dense_row(name: str, matrix: Tensor, promise: Promise) -> LayerRow:
    """What the report says about a matrix that is stored dense."""
    error = relative_error(matrix, matrix.to(promise.dtype).float())
    return LayerRow(name, str(promise.dtype).removeprefix("torch."), promise.nbytes, 8 * promise.nbytes / matrix.numel(), error)


def layer_kinds(model: Model) -> dict[str, str]:
    """Class name of every module as transformers makes it: what the compressed layers stand for."""
    with quiet_transformers(), torch.device("meta"):
        skeleton = type(model.module)(model.config)
    return {name: "Linear" if isinstance(layer, nn.Linear) else type(layer).__name__ for name, layer in skeleton.named_modules()}


def write_folder(model: Model, folder: Path, promises: dict[str, Promise], quantization: dict[str, Any] | None = None) -> None:
    """Tensors, configuration and tokenizer of a Hugging Face folder."""
    write_tensors(folder / "model.safetensors", promises)
    module: Any = model.module
    model.config.save_pretrained(folder)
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content |= {"architectures": [model.architecture], "dtype": _common_type(promises)}
    if output_head(module) is not None:
        content["tie_word_embeddings"] = model.tied
    if quantization is not None:
        content["quantization_config"] = quantization
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if getattr(module, "generation_config", None) is not None:
        module.generation_config.save_pretrained(folder)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)


def _common_type(promises: dict[str, Promise]) -> str:
    """The smallest type that loses nothing of any tensor; transformers computes in it unless told otherwise."""
    types = {promise.dtype for promise in promises.values() if promise.dtype.is_floating_point}
    common = types.pop() if len(types) == 1 else torch.float32
    return str(common).removeprefix("torch.")
