"""Folders in the compressed-tensors format, as transformers and vLLM read them: packed integers, one scheme a group of layers."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tersor.kernels.packing import pack_bits
from tersor.models.export.dense import decompressed, dense_row, layer_kinds, uncompressed_promises, write_folder
from tersor.models.export.grids import IntegerGrid, quantized_view
from tersor.models.export.report import LayerRow
from tersor.models.model import Model
from tersor.models.tensorfile import Promise
from tersor.weights.base import CompressedWeight
from tersor.weights.quantized import QuantizedWeight

_FORMAT = "pack-quantized"
# Layers that vLLM computes as one, which therefore must share a scheme.
_FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def write_compressed_tensors(model: Model, folder: Path, dense_dtype: str) -> tuple[list[LayerRow], list[str], int]:
    """Write ``model``, its column scales folded, to an existing ``folder``.

    Returns:
        A row a matrix, notes, and the bytes of all tensors.
    """
    promises, kinds = uncompressed_promises(model, dense_dtype), layer_kinds(model)
    schemes: dict[str, dict[str, Any]] = {}
    refused: dict[str, list[str]] = defaultdict(list)
    rows: dict[str, LayerRow] = {}
    for name, weight in model.weights().items():
        reason, grid = _representable(kinds[name], weight)
        if grid is None:
            refused[reason].append(name)
            promise = promises[f"{name}.weight"] = decompressed(name, weight, dense_dtype, kinds[name])
            rows[name] = dense_row(name, weight.dense(), promise)
            continue
        schemes[name] = scheme_of(grid)
        tensors = {f"{name}.{key}": tensor for key, tensor in packed_tensors(grid).items()}
        promises |= {key: Promise(tensor.dtype, tuple(tensor.shape), tensor) for key, tensor in tensors.items()}
        nbytes = sum(promises[key].nbytes for key in tensors)
        rows[name] = LayerRow(name, _title(schemes[name]), nbytes, 8 * nbytes / (weight.shape[0] * weight.shape[1]), 0.0)
    layers = model.embeddings() | model.linears()
    for name in layers.keys() - rows.keys():
        rows[name] = dense_row(name, model.matrix(name), promises[f"{name}.weight"])
    linears = [name for name, kind in kinds.items() if kind == "Linear"]
    write_folder(model, folder, promises, quantization_config(schemes, linears) if schemes else None)
    notes = [f"{reason}: {_some(names)} stored dense" for reason, names in refused.items()]
    notes += _fusion_notes(schemes, linears) + _width_notes(schemes)
    return [rows[name] for name in layers], notes, sum(promise.nbytes for promise in promises.values())


def _representable(kind: str, weight: CompressedWeight) -> tuple[str, QuantizedWeight | None]:
    """The grid that is stored, or why there is none."""
    grid = quantized_view(weight)
    if "Embedding" in kind:
        return "runtimes look up embeddings in dense tables", None
    if kind != "Linear":
        return f"the format knows linear layers, not {kind}", None
    if grid is None:
        return f"the format has no {weight.kind} weights", None
    if grid.scheme == "float_min":
        return "the format has integer zero points, no float minimum", None
    if grid.input_scale is not None:
        return "column scales that do not fold into the layer before", None
    return "", grid


def scheme_of(weight: QuantizedWeight) -> dict[str, Any]:
    """The ``weights`` entry of the configuration for a symmetric or asymmetric grid."""
    grouped = weight.group_size != weight.shape[1]
    return {
        # A symmetric bit stands for two signs; the format's own would stand for minus one and zero.
        "num_bits": 2 if weight.bits == 1 and weight.scheme == "symmetric" else weight.bits, "type": "int",
        "symmetric": weight.scheme == "symmetric", "strategy": "group" if grouped else "channel",
        "group_size": weight.group_size if grouped else None, "dynamic": False,
    }  # fmt: skip


def packed_tensors(weight: QuantizedWeight) -> dict[str, Tensor]:
    """What the format stores for a layer, by the last part of the tensor's name."""
    bits = scheme_of(weight)["num_bits"]
    codes = weight.unpacked_codes() if bits == weight.bits else (IntegerGrid.of(weight).steps + 2 ** (bits - 1)).to(torch.uint8)
    tensors = {
        "weight_packed": _words(codes, bits), "weight_scale": weight.scale, "weight_shape": torch.tensor(weight.shape),
    }  # fmt: skip
    if weight.scheme == "asymmetric":
        # Zero points are packed down the rows, so that a shard of rows is a shard of words.
        tensors["weight_zero_point"] = _words(weight.unpacked_zero().to(torch.uint8).T.contiguous(), bits).T.contiguous()
    return tensors


def _words(codes: Tensor, bits: int) -> Tensor:
    """int32 ``[rows, ceil(n * bits / 32)]``."""
    packed = pack_bits(codes, bits)
    return F.pad(packed, (0, -packed.shape[1] % 4)).contiguous().view(torch.int32)


def quantization_config(schemes: dict[str, dict[str, Any]], linears: list[str]) -> dict[str, Any]:
    """The ``quantization_config`` of ``config.json``.

    Args:
        schemes: Layer name to what :func:`scheme_of` says.
        linears: All linear layers of the model; those without a scheme are listed as ignored.
    """
    from compressed_tensors import __version__

    distinct: dict[str, list[str]] = defaultdict(list)
    for name, scheme in schemes.items():
        distinct[repr(scheme)].append(name)
    groups = {}
    for i, names in enumerate(distinct.values()):
        groups[f"group_{i}"] = {
            "targets": ["Linear"] if len(distinct) == 1 else names, "weights": schemes[names[0]], "input_activations": None,
            "output_activations": None, "format": _FORMAT,
        }  # fmt: skip
    return {
        "quant_method": "compressed-tensors", "format": _FORMAT, "quantization_status": "compressed", "config_groups": groups,
        "ignore": [name for name in linears if name not in schemes], "kv_cache_scheme": None, "global_compression_ratio": None,
        "sparsity_config": {}, "transform_config": {}, "version": __version__,
    }  # fmt: skip


def _title(scheme: dict[str, Any]) -> str:
    where = f"group {scheme['group_size']}" if scheme["group_size"] else "channel"
    return f"int{scheme['num_bits']} {'' if scheme['symmetric'] else 'asym '}{where}"


def _fusion_notes(schemes: dict[str, dict[str, Any]], linears: list[str]) -> list[str]:
    parents = dict.fromkeys(name.rpartition(".")[0] for name in linears)
    fused = [(parent, members) for parent in parents for members in _FUSED if all(f"{parent}.{member}" in linears for member in members)]
    split = [
        f"{parent}.{'/'.join(members)}" for parent, members in fused
        if len({repr(schemes.get(f"{parent}.{member}")) for member in members}) > 1
    ]  # fmt: skip
    text = f"vLLM fuses layers that have different schemes here and refuses them: {_some(split)}; transformers does not mind"
    return [text] if split else []


def _width_notes(schemes: dict[str, dict[str, Any]]) -> list[str]:
    odd = sorted({scheme["num_bits"] for scheme in schemes.values()} - {4, 8})
    return [f"layers of {', '.join(map(str, odd))} bits load in transformers; vLLM's fast kernels are for 4 and 8 bits"] if odd else []


def _some(names: list[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
