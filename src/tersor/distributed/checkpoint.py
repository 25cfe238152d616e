"""Checkpoints of the exchange: a shard a worker, and the way to another number of workers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tersor import checkpoints
from tersor.distributed import rules
from tersor.distributed.rules import Memory
from tersor.distributed.state import ErrorFeedbackState, check_settings
from tersor.errors import CorruptFile, InvalidArgument
from tersor.files import write_json

_INDEX = "exchange.json"
_SHARED = "exchange-shared.safetensors"


def save_checkpoint(state: ErrorFeedbackState, folder: str | Path) -> None:
    """Write what all workers remember; call it on every worker, at the same step. The model and the optimizer are saved as ever.

    Every worker writes its shard, the first one also what all share and, once everybody is done, the index: a checkpoint without an
    index was not finished. Use a new folder for each checkpoint.

    Args:
        state: The state of this worker.
        folder: Where all workers write; made if need be.

    Raises:
        TersorError: If the folder cannot be written, or another worker is gone.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored = state.state_dict()
    facts = {"step": stored["step"]}
    rank = state.wire.rank
    checkpoints.write(folder / _shard(rank), _flat(stored["local"]), facts)
    if rank == 0:
        checkpoints.write(folder / _SHARED, _flat(stored["shared"]), facts)
    state.wire.barrier()
    if rank == 0:
        write_json(folder / _INDEX, {key: value for key, value in stored.items() if key not in ("local", "shared")})
    state.wire.barrier()


def load_checkpoint(state: ErrorFeedbackState, folder: str | Path, device: str | torch.device = "cpu") -> None:
    """Continue from :func:`save_checkpoint`: bit-identically with as many workers as wrote it.

    With another number, every worker starts from the mean of the errors and momenta and from what the replicas know, which leaves the mean
    error, and with it the sequence that error feedback follows, as it was.

    Args:
        state: A state with the settings that were stored; replaced memory and step.
        folder: The checkpoint, readable by every worker.
        device: Where the gradients are.

    Raises:
        InvalidArgument: If there is no finished checkpoint, or its settings are not those of ``state``.
        CorruptFile: If a shard is missing, damaged or of another step.
    """
    folder = Path(folder)
    index = _read_index(folder)
    check_settings(state, index)
    step, wrote = index["step"], index["world_size"]
    shared = _nested(_read_tensors(folder / _SHARED, step, device))
    if wrote == state.wire.world_size:
        local = _nested(_read_tensors(folder / _shard(state.wire.rank), step, device))
    else:
        local = for_other_world([_nested(_read_tensors(folder / _shard(rank), step, device)) for rank in range(wrote)], shared)
    state.load_state_dict({**index, "world_size": state.wire.world_size, "local": local, "shared": shared})


def for_other_world(locals_: Sequence[Mapping[str, Memory]], shared: Mapping[str, Memory]) -> dict[str, Memory]:
    """The memory that each worker of a world of another size starts from.

    Args:
        locals_: ``local`` of every worker of the old world, tensors ``[1, numel]``.
        shared: What all shared; its ``server`` becomes what every worker is believed to have.

    Returns:
        ``local`` for every worker of the new world.
    """
    merged: dict[str, Memory] = {}
    for name in locals_[0]:
        merged[name] = {}
        for key in locals_[0][name]:
            mean = torch.stack([local[name][key] for local in locals_]).mean(0)
            server = shared.get(name, {}).get(rules.SERVER)
            merged[name][key] = server[None].expand_as(mean).clone() if key == rules.TRACKED and server is not None else mean
    return merged


def _shard(rank: int) -> str:
    return f"exchange-{rank:05d}.safetensors"


def _flat(memories: Mapping[str, Memory]) -> dict[str, Tensor]:
    return {f"{name}/{key}": tensor for name, memory in memories.items() for key, tensor in memory.items()}


def _nested(flat: Mapping[str, Tensor]) -> dict[str, Memory]:
    memories: dict[str, Memory] = {}
    for path, tensor in flat.items():
        name, _, key = path.rpartition("/")
        memories.setdefault(name, {})[key] = tensor
    return memories


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / _INDEX
    if not path.is_file():
        raise InvalidArgument(f"{folder} holds no finished checkpoint of an exchange ({_INDEX} is missing); name one that does")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(index, dict) or not isinstance(index["settings"], dict):
            raise ValueError("not an object")
        if type(index["step"]) is not int or type(index["world_size"]) is not int or index["world_size"] < 1:
            raise ValueError("step and world_size must be whole numbers")
    except (ValueError, KeyError) as error:
        raise CorruptFile(f"{path} is damaged: {error}") from None
    return index


def _read_tensors(path: Path, step: int, device: str | torch.device) -> dict[str, Tensor]:
    found = checkpoints.read(path)
    if found is None:
        raise CorruptFile(f"{path} is missing from the checkpoint; copy the shards of all workers into one folder")
    tensors, facts = found
    if facts.get("step") != step:
        raise CorruptFile(f"{path} is of step {facts.get('step')} and the checkpoint of step {step}; two checkpoints were mixed")
    return {name: tensor.to(device) for name, tensor in tensors.items()}
