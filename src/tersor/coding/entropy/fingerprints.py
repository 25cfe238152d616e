"""What a file says about the model and the arithmetic that wrote it, so that a decoder that would go wrong stops instead."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tersor.coding.errors import ModelMismatch, NumericsMismatch


def fingerprint(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """SHA-256, in hex, over names, types, shapes and bytes of ``tensors``, sorted by name, and over ``config``."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def numerics_profile(**shape: int) -> dict[str, Any]:
    """What may change the rounding of a float computation: torch, threads, instruction set, and the ``shape`` of the work."""
    return {
        "torch": torch.__version__, "threads": torch.get_num_threads(), "cpu": torch.backends.cpu.get_cpu_capability(),
        "matmul": torch.get_float32_matmul_precision(), **shape,
    }  # fmt: skip


def check_model(stored: object, given: str) -> None:
    """Refuse to decode with another model than the one that encoded.

    Raises:
        ModelMismatch: If the fingerprints differ.
    """
    if stored != given:
        raise ModelMismatch(f"the file was written with the model {str(stored)[:16]}, not with {given[:16]}; pass the model that wrote it")


def check_numerics(stored: object, current: Mapping[str, Any], force: bool = False) -> None:
    """Refuse to decode where floats may round differently from where the file was written.

    Raises:
        NumericsMismatch: Naming what differs, unless ``force``.
    """
    if force or stored == current:
        return
    known = stored if isinstance(stored, dict) else {}
    differing = [f"{key} {known.get(key)!r} instead of {value!r}" for key, value in current.items() if known.get(key) != value]
    raise NumericsMismatch(
        f"the file was written with {', '.join(differing) or 'another profile'}; floats may round differently there: decode under the same "
        "conditions, or with force (--force), which still checks the result"
    )
