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
from tersor.models.export.grids import IntegerGrid, quantized_view, symmetric_view
from tersor.models.export.report import LayerRow
from tersor.models.model import Model
from tersor.models.tensorfile import Promise
from tersor.weights.base import CompressedWeight
from tersor.weights.quantized import QuantizedWeight

_FORMAT = "pack-quantized"
# Layers that vLLM computes as one, which therefore must share a scheme.
_FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
_Scheme = dict[str, Any]


def write_compressed_tensors(model: Model, folder: Path, dense_dtype: str) -> tuple[list[LayerRow], list[str], int]:
    """Write ``model``, its column scales folded, to an existing ``folder``.

    Returns:
        A row a matrix, notes, and the bytes of all tensors.
    """
    promises, kinds = uncompressed_promises(model, dense_dtype), layer_kinds(model)
    grids, notes = choose_grids(model.weights(), kinds)
    rows: dict[str, LayerRow] = {}
    for name, weight in model.weights().items():
        if name in grids:
            rows[name] = _add_packed(name, grids[name], promises)
        else:
            promise = promises[f"{name}.weight"] = decompressed(name, weight, dense_dtype, kinds[name])
            rows[name] = dense_row(name, weight.dense(), promise)
    layers = model.embeddings() | model.linears()
    for name in layers.keys() - rows.keys():
        rows[name] = dense_row(name, model.matrix(name), promises[f"{name}.weight"])
    schemes = {name: scheme_of(grid) for name, grid in grids.items()}
    linears = [name for name, kind in kinds.items() if kind == "Linear"]
    write_folder(model, folder, promises, quantization_config(schemes, linears) if schemes else None)
    notes += _fusion_notes(schemes, linears) + _width_notes(schemes)
    return [rows[name] for name in layers], notes, sum(promise.nbytes for promise in promises.values())


def choose_grids(weights: dict[str, CompressedWeight], kinds: dict[str, str]) -> tuple[dict[str, QuantizedWeight], list[str]]:
    """The grid that is stored for each layer that the format has a place for, and notes on the others.

    Args:
        weights: By layer name.
        kinds: Class name of each layer in transformers.
    """
    grids: dict[str, QuantizedWeight] = {}
    refused: dict[str, list[str]] = defaultdict(list)
    for name, weight in weights.items():
        grid = quantized_view(weight)
        reason = f"the format has no {weight.kind} weights" if grid is None else _obstacle(kinds[name], grid)
        if grid is None or reason:
            refused[reason].append(name)
        else:
            grids[name] = grid
    notes = []
    asymmetric = [name for name, grid in grids.items() if grid.scheme == "asymmetric"]
    if asymmetric and len({repr(scheme_of(grid)) for grid in grids.values()}) > 1:
        # Releases up to 0.20 load packed zero points only where one scheme holds for the whole model.
        for name in asymmetric:
            if (view := symmetric_view(grids.pop(name))) is not None:
                grids[name] = view
            else:
                refused["zero points of 8 bits beside other schemes"].append(name)
        notes.append(
            f"{len(asymmetric)} layers with zero points, such as {asymmetric[0]}, are stored without them, in one more bit with the same "
            "values, because transformers cannot load zero points in a model of several schemes"
        )
    return grids, notes + [f"{reason}: {_some(names)} stored dense" for reason, names in refused.items()]


def _obstacle(kind: str, grid: QuantizedWeight) -> str:
    """Why a grid cannot be stored in a layer of this kind, ``""`` if it can."""
    if "Embedding" in kind:
        return "runtimes look up embeddings in dense tables"
    if kind != "Linear":
        return f"the format knows linear layers, not {kind}"
    if grid.scheme == "float_min":
        return "the format has integer zero points, no float minimum"
    return "" if grid.input_scale is None else "column scales that do not fold into the layer before"


def _add_packed(name: str, grid: QuantizedWeight, promises: dict[str, Promise]) -> LayerRow:
    own = {f"{name}.{key}": Promise(tensor.dtype, tuple(tensor.shape), tensor) for key, tensor in packed_tensors(grid).items()}
    promises |= own
    nbytes = sum(promise.nbytes for promise in own.values())
    scheme = scheme_of(grid)
    where = f"group {scheme['group_size']}" if scheme["group_size"] else "channel"
    title = f"int{scheme['num_bits']} {'' if scheme['symmetric'] else 'asym '}{where}"
    return LayerRow(name, title, nbytes, 8 * nbytes / (grid.shape[0] * grid.shape[1]), 0.0)


def scheme_of(weight: QuantizedWeight) -> _Scheme:
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
    tensors = {"weight_packed": _words(codes, bits), "weight_scale": weight.scale, "weight_shape": torch.tensor(weight.shape)}
    if weight.scheme == "asymmetric":
        # Zero points are packed down the rows, so that a shard of rows is a shard of words.
        tensors["weight_zero_point"] = _words(weight.unpacked_zero().to(torch.uint8).T.contiguous(), bits).T.contiguous()
    return tensors


def _words(codes: Tensor, bits: int) -> Tensor:
    """int32 ``[rows, ceil(n * bits / 32)]``."""
    packed = pack_bits(codes, bits)
    return F.pad(packed, (0, -packed.shape[1] % 4)).reshape(-1).view(torch.int32).reshape(len(packed), -1)


def quantization_config(schemes: dict[str, _Scheme], linears: list[str]) -> dict[str, Any]:
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
        # Without this, releases up to 0.20 expect zero points unpacked and then try to unpack them.
        "dequantize": not all(scheme["symmetric"] for scheme in schemes.values()),
    }  # fmt: skip


def _fusion_notes(schemes: dict[str, _Scheme], linears: list[str]) -> list[str]:
    parents = dict.fromkeys(name.rpartition(".")[0] for name in linears)
    fused = [(parent, members) for parent in parents for members in _FUSED if all(f"{parent}.{member}" in linears for member in members)]
    split = [
        f"{parent}.{'/'.join(members)}" for parent, members in fused
        if len({repr(schemes.get(f"{parent}.{member}")) for member in members}) > 1
    ]  # fmt: skip
    text = f"vLLM fuses layers that have different schemes here and refuses them: {_some(split)}; transformers does not mind"
    return [text] if split else []


def _width_notes(schemes: dict[str, _Scheme]) -> list[str]:
    odd = sorted({scheme["num_bits"] for scheme in schemes.values()} - {4, 8})
    return [f"layers of {', '.join(map(str, odd))} bits load in transformers; vLLM's fast kernels are for 4 and 8 bits"] if odd else []


def _some(names: list[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
