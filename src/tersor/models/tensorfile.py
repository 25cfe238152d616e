"""Safetensors files looked at with suspicion: header against file size, before anything is mapped or allocated."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tersor.errors import CorruptFile

# The limit of the reference implementation; a larger header is a damaged length field.
_MAX_HEADER = 100_000_000
_ITEM_SIZE = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
TYPE_NAMES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.uint16: "U16", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.int32: "I32", torch.uint32: "U32", torch.float32: "F32", torch.int64: "I64", torch.float64: "F64",
}  # fmt: skip

_ORDER = ("BOOL", "U8", "I8", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "F64", "I64")


@dataclass(frozen=True)
class StoredTensor:
    """Type and shape of a tensor in a file, as its header gives them."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors that a safetensors file holds, after checking that they are really there.

    Args:
        path: The file; only its header is read.

    Raises:
        CorruptFile: If the file is shorter or longer than its header says, tensors overlap or leave holes, or sizes contradict shapes.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(size - 8, _MAX_HEADER):
            raise CorruptFile(f"{path} is not a whole safetensors file: it has {size} bytes, fewer than its header needs")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise CorruptFile(f"the header of {path} is damaged; fetch or write the file again") from None
    if not isinstance(header, dict):
        raise CorruptFile(f"the header of {path} is not a table of tensors")
    header.pop("__metadata__", None)
    spans = []
    tensors = {}
    for name, entry in header.items():
        tensors[name], start = _entry(path, name, entry)
        spans.append((start, start + tensors[name].nbytes, name))
    _check_spans(path, sorted(spans), size - 8 - length)
    return tensors


def _entry(path: Path, name: str, entry: Any) -> tuple[StoredTensor, int]:
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, start, end))
        nbytes = math.prod(shape) * _ITEM_SIZE[dtype] if whole else -1
    except (KeyError, TypeError, ValueError):
        raise CorruptFile(f"{path}: the header entry of tensor {name} is damaged") from None
    if nbytes != end - start:
        raise CorruptFile(f"{path}: tensor {name} of type {dtype} and shape {list(shape)} does not take the bytes {start} to {end}")
    return StoredTensor(dtype, shape, nbytes), start


def _check_spans(path: Path, spans: list[tuple[int, int, str]], available: int) -> None:
    position = 0
    for start, end, name in spans:
        if start != position:
            raise CorruptFile(f"{path}: tensor {name} begins at byte {start} of the data, expected {position}")
        position = end
    if position != available:
        raise CorruptFile(f"{path} is truncated or damaged: its header promises {position} bytes of tensors, the file has {available}")


@dataclass(frozen=True)
class Promise:
    """A tensor to be written: its type and shape now, its values when their turn comes.

    Attributes:
        dtype: As it will be stored.
        shape: Its sizes.
        source: The tensor, in any type that converts.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    source: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def layout(tensors: Mapping[str, Promise]) -> tuple[bytes, list[str]]:
    """The first bytes of the safetensors file that holds ``tensors``, up to its data, and the order of the data.

    The order is the reference implementation's, so that the file equals the one that it would write, byte for byte.
    """
    order = sorted(tensors, key=lambda name: (-_ORDER.index(TYPE_NAMES[tensors[name].dtype]), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in order:
        promise = tensors[name]
        span = [position, position + promise.nbytes]
        header[name] = {"dtype": TYPE_NAMES[promise.dtype], "shape": list(promise.shape), "data_offsets": span}
        position = span[1]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


def file_size(tensors: Mapping[str, Promise]) -> int:
    """Exact bytes of the file that :func:`write_tensors` would write, header included."""
    return len(layout(tensors)[0]) + sum(promise.nbytes for promise in tensors.values())


def write_tensors(path: Path, tensors: Mapping[str, Promise]) -> str:
    """Write a safetensors file, one tensor converted at a time, and flush it to the disk.

    Returns:
        The SHA-256 of the file.

    Raises:
        OSError: If the disk is full or the file cannot be written.
    """
    head, order = layout(tensors)
    digest = hashlib.sha256(head)
    with open(path, "wb") as file:
        file.write(head)
        for name in order:
            values = tensors[name].source.detach().cpu().to(tensors[name].dtype).contiguous()
            data = values.reshape(-1).view(torch.uint8).numpy().data
            digest.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read piece by piece."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
