"""Reading the native format back: nothing is trusted, nothing is made dense that was saved small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import CorruptFile, InvalidArgument
from tersor.models.huggingface import first_line, load_tokenizer, read_config, skeleton
from tersor.models.model import Model, is_linear, keep_ties
from tersor.models.storage import CONFIG, DESCRIPTION, FORMAT, TENSORS, description_checksum
from tersor.models.tensorfile import file_sha256, read_header
from tersor.weights.base import CompressedWeight, check_state, weight_from_config
from tersor.weights.modules import CompressedEmbedding, CompressedLinear, compressed_layer, dense_shape


def load_native(path: Path, name: str | None = None) -> Model:
    """A model that :func:`tersor.models.storage.save` wrote, bit for bit; what was not compressed comes back in float32.

    What is stored as it is used stays in the mapped file: replacing or deleting the file does no harm to the model, writing into it does.

    Args:
        path: The folder.
        name: What reports call the model; the name it was saved under without it.

    Raises:
        CorruptFile: If a file is missing, truncated, changed since it was written, or contradicts another.
        InvalidArgument: If the folder was written by a newer tersor.
    """
    description = read_description(path)
    config = read_config(path)
    try:
        module = skeleton(config, description["architecture"])
    except CorruptFile as error:
        raise CorruptFile(f"{path / CONFIG}: {error}") from None
    tensors = _read_tensors(path)
    tied = dict(description["tied"])
    _share(tensors, tied, description["weights"], path)
    _put_compressed(module, description["weights"], tensors, path)
    _put_dense(module, tied, tensors, path)
    _fill_buffers(module)
    _read_generation_config(module, path)
    model = Model(module, load_tokenizer(path), name or description["name"])
    model.provenance = description["provenance"]
    return model


def read_description(path: Path) -> dict[str, Any]:
    """``tersor.json`` of a folder, after checking it and the files that it vouches for.

    Raises:
        CorruptFile: If a file is missing or its checksum differs.
        InvalidArgument: If the format is newer than this version reads.
    """
    try:
        description = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
        version = description["format"]
    except (OSError, ValueError, KeyError, TypeError):
        raise CorruptFile(f"{path / DESCRIPTION} is damaged; save the model again") from None
    if type(version) is int and version > FORMAT:
        raise InvalidArgument(
            f"{path} was written by tersor {description.get('tersor')} in format {version}; this version reads up to {FORMAT}"
        )
    expected = {"name": str, "architecture": str, "weights": dict, "tied": dict, "provenance": dict, "sha256": dict}
    whole = all(isinstance(description.get(key), kind) for key, kind in expected.items())
    if not whole or description.get("checksum") != description_checksum(description):
        raise CorruptFile(f"{path / DESCRIPTION} was changed or damaged after it was written; save the model again")
    for file in (CONFIG, TENSORS):
        if not (path / file).is_file():
            raise CorruptFile(f"{path} lacks {file}; save the model again")
    read_header(path / TENSORS)
    for file in (CONFIG, TENSORS):
        if file_sha256(path / file) != description["sha256"].get(file):
            raise CorruptFile(f"{path / file} was changed or damaged after it was written: its SHA-256 is not the one in {DESCRIPTION}")
    return description


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(path / TENSORS, framework="pt") as file:
        views = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    # Views of the mapped file (copied on write): read when they are used, resident once. tersor writes tensors by falling item size,
    # so they are aligned; a file in another order is checked as well, because kernels read memory by address.
    return {name: view if view.data_ptr() % view.element_size() == 0 else view.clone() for name, view in views.items()}


def _share(tensors: dict[str, Tensor], tied: dict[str, Any], weights: dict[str, Any], path: Path) -> None:
    """Give tensors that several compressed weights hold, such as a dictionary, all their names; takes them out of ``tied``."""
    compressed = tuple(f"{name}.weight." for name in weights)
    for alias in [alias for alias in tied if alias.startswith(compressed)]:
        source = str(tied.pop(alias))
        if alias in tensors or source not in tensors or not source.startswith(compressed):
            raise CorruptFile(f"{path}: {alias} cannot be tied to {source!r}")
        tensors[alias] = tensors[source]


def _put_compressed(module: nn.Module, weights: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> None:
    put: dict[str, CompressedWeight] = {}
    for name, config in weights.items():
        layer = _layer(module, name, path)
        if not isinstance(config, dict):
            raise CorruptFile(f"{path}: the description of layer {name} is damaged")
        if "tied_to" in config:
            source = put.get(str(config["tied_to"]))
            if source is None or source.shape != dense_shape(layer):
                raise CorruptFile(f"{path}: layer {name} is tied to {config['tied_to']!r}, which holds no weight of its shape")
            weight = source
            keep_ties(module)
        else:
            with torch.device("meta"):
                weight = weight_from_config(config)
            if weight.shape != dense_shape(layer):
                raise CorruptFile(f"{path}: layer {name} of shape {dense_shape(layer)} cannot hold a stored weight of {weight.shape}")
            prefix = f"{name}.weight."
            own = {key.removeprefix(prefix): tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}
            check_state(weight, own, name)
            weight.load_state_dict(own, assign=True)
        put[name] = weight
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, compressed_layer(layer, weight))


def _layer(module: nn.Module, name: str, path: Path) -> nn.Module:
    try:
        layer = module.get_submodule(name)
    except AttributeError:
        layer = module
    if not (is_linear(layer) or isinstance(layer, nn.Embedding)):
        raise CorruptFile(f"{path}: the stored weight {name} belongs to no layer of {type(module).__name__}")
    return layer


def _put_dense(module: nn.Module, tied: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> None:
    compressed = tuple(
        f"{name}.weight." for name, part in module.named_modules() if isinstance(part, (CompressedLinear, CompressedEmbedding))
    )
    expected = {key: value for key, value in module.state_dict().items() if not key.startswith(compressed) and key not in tied}
    if missing := sorted(expected.keys() - tensors.keys()):
        raise CorruptFile(f"{path / TENSORS} lacks {len(missing)} tensors, the first is {missing[0]}")
    if superfluous := sorted(tensors.keys() - expected.keys()):
        raise CorruptFile(f"{path / TENSORS} holds {len(superfluous)} tensors that belong to no layer, the first is {superfluous[0]}")
    values = {}
    for key, promised in expected.items():
        stored = tensors[key]
        if stored.shape != promised.shape or stored.is_floating_point() != promised.is_floating_point():
            raise CorruptFile(
                f"{path / TENSORS}: tensor {key} has shape {list(stored.shape)}, the configuration asks for {list(promised.shape)}"
            )
        values[key] = stored.float() if stored.is_floating_point() else stored
    module.load_state_dict(values, strict=False, assign=True)
    for alias, source in tied.items():
        _tie(module, alias, source, path)


def _tie(module: nn.Module, alias: str, source: Any, path: Path) -> None:
    known = module.state_dict(keep_vars=True)
    if alias not in known or source not in known or known[alias].shape != known[source].shape or known[source].is_meta:
        raise CorruptFile(f"{path}: {alias} cannot be tied to {source!r}")
    parent, _, child = alias.rpartition(".")
    setattr(module.get_submodule(parent), child, known[source])


def _fill_buffers(module: nn.Module) -> None:
    """Compute the tables that are not stored, such as rotary frequencies, on the modules that the meta device left without."""
    for tensor in module.state_dict(keep_vars=True).values():
        # How transformers marks what its initialisation must leave alone.
        tensor._is_hf_initialized = True
    for part in module.modules():
        empty = {key: buffer for key, buffer in part._buffers.items() if buffer is not None and buffer.is_meta}
        for key, buffer in empty.items():
            part._buffers[key] = torch.empty_like(buffer, device="cpu")
        if empty:
            module._init_weights(part)  # type: ignore[operator]


def _read_generation_config(module: nn.Module, path: Path) -> None:
    if not (path / "generation_config.json").is_file():
        return
    from transformers import GenerationConfig

    try:
        module.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
    except Exception as error:
        raise CorruptFile(f"{path / 'generation_config.json'} cannot be read: {first_line(error)}") from None
