"""The native format: a folder that holds a model exactly, compressed layers as they are, every byte accounted for and checked.

``model.safetensors`` holds every distinct tensor once, ``tersor.json`` describes the compressed layers and the ties and carries
checksums, ``config.json`` and the tokenizer files are those of transformers.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tersor.errors import InvalidArgument, TersorError
from tersor.models.huggingface import skeleton
from tersor.models.model import Model
from tersor.models.tensorfile import Promise, file_sha256, file_size, write_tensors
from tersor.weights.modules import CompressedEmbedding, CompressedLinear

FORMAT = 1
TENSORS, DESCRIPTION, CONFIG = "model.safetensors", "tersor.json", "config.json"
# What tersor.compress keeps in its output folder while it works; the finished model goes beside it.
_RUN_STATE = Path("run", "job.json")
_PIECE = 1 << 20  # values looked at together
_DENSE_TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def save(model: Model, path: str | Path, dense_dtype: str = "auto") -> None:
    """Write ``model`` to a folder, whole or not at all.

    Args:
        model: Compressed or not.
        path: A folder that does not exist, is empty, or is tersor's own: an earlier model or a run directory.
        dense_dtype: Type of what is not compressed: ``"float32"``, ``"float16"``, ``"bfloat16"``, or ``"auto"``, for each tensor
            the smallest of them that holds it exactly. Loading gives float32 in every case.

    Raises:
        InvalidArgument: If the folder holds something else, a value does not fit the type, or the model was rebuilt into something
            that its configuration does not describe.
        TersorError: If the disk is full or the folder cannot be written; nothing is left behind.
    """
    target = Path(path)
    check_target(target)
    tensors = stored_tensors(model, dense_dtype)
    _check_structure(model)
    work = target.absolute().with_name(f".{target.name}.saving")
    try:
        # Left by a process that was killed while it saved.
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        _write_files(model, tensors, work)
        _move(work, target)
    except OSError as error:
        raise TersorError(f"cannot write {target}: {error.strerror or error}; nothing was left behind") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_target(target: Path) -> None:
    """Refuse an output folder that holds something which tersor did not write.

    Raises:
        InvalidArgument: If ``target`` is a file, or a non-empty folder that is neither a saved model nor a run directory.
    """
    if any((target / file).is_file() for file in (DESCRIPTION, _RUN_STATE)):
        return
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise InvalidArgument(f"{target} exists and was not written by tersor; name a new folder or empty it")


def tensor_bytes(model: Model, dense_dtype: str = "auto") -> int:
    """Bytes of all tensors in the file that :func:`save` would write."""
    return sum(promise.nbytes for promise in stored_tensors(model, dense_dtype).values())


def safetensors_size(model: Model, dense_dtype: str = "auto") -> int:
    """Exact size of the ``model.safetensors`` that :func:`save` would write, header included."""
    return file_size(stored_tensors(model, dense_dtype))


def stored_tensors(model: Model, dense_dtype: str = "auto") -> dict[str, Promise]:
    """What goes to disk: every distinct tensor of the model under its first name, in the type it is stored in.

    Raises:
        InvalidArgument: If ``dense_dtype`` is unknown or too small for a value.
    """
    if dense_dtype != "auto" and dense_dtype not in _DENSE_TYPES:
        raise InvalidArgument(f"dense_dtype must be auto, {', '.join(_DENSE_TYPES)}, got {dense_dtype!r}")
    aliases = tied_names(model)
    compressed = tuple(f"{name}.weight." for name in model.weights())
    promises = {}
    for name, tensor in model.module.state_dict().items():
        if name not in aliases:
            dtype = tensor.dtype if name.startswith(compressed) else _storage_type(name, tensor, dense_dtype)
            promises[name] = Promise(dtype, tuple(tensor.shape), tensor)
    return promises


def tied_names(model: Model) -> dict[str, str]:
    """For every tensor that is another one under a second name: that name, and the first."""
    first: dict[int, str] = {}
    aliases = {}
    for name, tensor in model.module.state_dict(keep_vars=True).items():
        if (known := first.setdefault(id(tensor), name)) != name:
            aliases[name] = known
    return aliases


def _check_structure(model: Model) -> None:
    """Refuse what loading would refuse: parameters that are not where the configuration puts them."""
    expected = skeleton(model.config, model.architecture).state_dict().keys()
    kinds = (CompressedLinear, CompressedEmbedding)
    compressed = {f"{name}.weight" for name, part in model.module.named_modules() if isinstance(part, kinds)}
    dense = {name for name in model.module.state_dict() if not name.startswith(tuple(f"{name}." for name in compressed))}
    if foreign := sorted((dense | compressed) - expected):
        raise InvalidArgument(
            f"model {model.name} cannot be saved: {foreign[0]} is no parameter of a {model.architecture}; put back the layers that were "
            "replaced, or save the module with tersor.training.save_module"
        )


def _storage_type(name: str, tensor: Tensor, dense_dtype: str) -> torch.dtype:
    if not tensor.is_floating_point():
        return tensor.dtype
    if dense_dtype == "auto":
        candidates = [dtype for dtype in (torch.float16, torch.bfloat16) if dtype.itemsize < tensor.dtype.itemsize]
        return next((dtype for dtype in candidates if _is_exact(tensor, dtype)), tensor.dtype)
    dtype = _DENSE_TYPES[dense_dtype]
    if dtype == torch.float16 and bool((tensor.abs() > torch.finfo(torch.float16).max).any()):
        raise InvalidArgument(f"tensor {name} holds values beyond float16; save with dense_dtype bfloat16 or auto")
    return dtype


def _is_exact(tensor: Tensor, dtype: torch.dtype) -> bool:
    # Piece by piece: most tensors betray themselves in the first, and a table is never there twice.
    return all(torch.equal(part.to(dtype).to(part.dtype), part) for part in tensor.detach().reshape(-1).split(_PIECE))


def _write_files(model: Model, tensors: dict[str, Promise], folder: Path) -> None:
    checksum = write_tensors(folder / TENSORS, tensors)
    model.config.save_pretrained(folder)
    if getattr(model.module, "generation_config", None) is not None:
        generation_config: Any = model.module.generation_config
        generation_config.save_pretrained(folder)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
    description = _description(model)
    description["sha256"] = {TENSORS: checksum, CONFIG: file_sha256(folder / CONFIG)}
    description["checksum"] = description_checksum(description)
    with open(folder / DESCRIPTION, "w", encoding="utf-8") as file:
        json.dump(description, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())


def _description(model: Model) -> dict[str, Any]:
    from tersor import __version__

    layers: dict[str, Any] = {}
    owner: dict[int, str] = {}
    for name, layer in model.module.named_modules():
        if isinstance(layer, (CompressedLinear, CompressedEmbedding)):
            known = owner.setdefault(id(layer.weight), name)
            layers[name] = layer.weight.config if known == name else {"tied_to": known}
    whole = tuple(f"{name}.weight." for name, config in layers.items() if "tied_to" in config)
    tied = {alias: name for alias, name in tied_names(model).items() if not alias.startswith(whole)}
    return {
        "format": FORMAT, "tersor": __version__, "name": model.name, "architecture": model.architecture,
        "weights": layers, "tied": tied, "provenance": model.provenance,
    }  # fmt: skip


def description_checksum(description: dict[str, Any]) -> str:
    """SHA-256 of a description without its own checksum: a flipped bit in a number that still makes sense must not pass."""
    content = {key: value for key, value in description.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _move(work: Path, target: Path) -> None:
    if not target.exists() or not any(target.iterdir()):
        work.replace(target)
        return
    # An earlier model: without its description it cannot be taken for a whole one while files are exchanged.
    (target / DESCRIPTION).unlink(missing_ok=True)
    for file in sorted(work.iterdir(), key=lambda file: file.name == DESCRIPTION):
        file.replace(target / file.name)
