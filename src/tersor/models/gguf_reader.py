"""GGUF files looked at with suspicion: every count, length, size and offset against the file, before anything is allocated."""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tersor.errors import CorruptFile, InvalidArgument

_STRING, _ARRAY = 8, 9
# Type number of the format -> how struct reads it.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_MIN_PAIR, _MIN_TENSOR = 13, 32  # bytes of the smallest metadata pair and tensor description that the format allows
_MAX_STRING = 1 << 26


@dataclass(frozen=True)
class GGUFTensorInfo:
    """One tensor of a file.

    Attributes:
        name: As the file spells it.
        shape: ``(rows, columns)`` order, the reverse of the file's.
        type: A ``gguf.GGMLQuantizationType``.
        start: First byte in the file.
        nbytes: Bytes in the file.
    """

    name: str
    shape: tuple[int, ...]
    type: Any
    start: int
    nbytes: int


@dataclass(frozen=True)
class GGUFHeader:
    """What a GGUF file says about itself, checked.

    Attributes:
        path: The file.
        version: Of the format.
        metadata: Key to number, string, truth value, or list of them.
        types: Key to the format's type number, and that of the elements for lists.
        tensors: In file order.
    """

    path: Path
    version: int
    metadata: dict[str, Any]
    types: dict[str, tuple[int, int]] = field(repr=False)
    tensors: list[GGUFTensorInfo] = field(repr=False)

    @property
    def architecture(self) -> str:
        """Such as ``"llama"``."""
        return str(self.metadata["general.architecture"])

    def raw(self, tensor: GGUFTensorInfo) -> np.ndarray:
        """The stored bytes of a tensor, memory-mapped, ``[rows, bytes a row]``."""
        data = np.memmap(self.path, np.uint8, "r", tensor.start, (tensor.nbytes,))
        # As a plain array: every slice of a memmap object costs microseconds of bookkeeping.
        return np.asarray(data).view(np.ndarray).reshape(math.prod(tensor.shape[:-1]), -1)


def read_gguf(path: Path) -> GGUFHeader:
    """Read and check the header of a GGUF file.

    Raises:
        CorruptFile: If a count, length, offset or size in it cannot be true of this file.
        InvalidArgument: If the file is of a version or byte order that is not supported.
    """
    if path.stat().st_size < 24:
        raise CorruptFile(f"{path} is too short to be a GGUF file: {path.stat().st_size} bytes")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _Cursor(path, data).header()


class _Cursor:
    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size, self.at = path, data, len(data), 0

    def header(self) -> GGUFHeader:
        if self.data[:4] != b"GGUF":
            raise CorruptFile(f"{self.path} is not a GGUF file: it does not begin with the letters GGUF")
        self.at = 4
        version, n_tensors, n_pairs = self.unpack("IQQ", "the counts")
        if version not in _VERSIONS:
            raise InvalidArgument(f"{self.path} is GGUF version {version}; little-endian 2 and 3 are read, convert it with llama.cpp")
        self.check_count(n_pairs, _MIN_PAIR, "metadata entries")
        self.check_count(n_tensors, _MIN_TENSOR, "tensors")
        metadata, types = self.metadata(n_pairs)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
            raise CorruptFile(f"{self.path} has the alignment {alignment!r}, which must be a power of two")
        descriptions = [self.description() for _ in range(n_tensors)]
        start = -(-self.at // alignment) * alignment
        tensors = [self.locate(start, alignment, *description) for description in descriptions]
        self.check_overlap(tensors)
        if not isinstance(metadata.get("general.architecture"), str):
            raise CorruptFile(f"{self.path} does not name its architecture")
        return GGUFHeader(self.path, version, metadata, types, tensors)

    def metadata(self, n_pairs: int) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
        metadata: dict[str, Any] = {}
        types: dict[str, tuple[int, int]] = {}
        for _ in range(n_pairs):
            key = self.string("a metadata key")
            if key in metadata:
                raise CorruptFile(f"{self.path} has the metadata key {key} twice")
            (kind,) = self.unpack("I", key)
            element = kind
            if kind == _ARRAY:
                element, count = self.unpack("IQ", key)
                metadata[key] = self.array(element, count, key)
            else:
                metadata[key] = self.scalar(kind, key)
            types[key] = (kind, element)
        return metadata, types

    def scalar(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self.string(key)
        if kind not in _SCALARS:
            raise CorruptFile(f"{self.path}: the metadata entry {key} is of the unknown type {kind}")
        return self.unpack(_SCALARS[kind], key)[0]

    def array(self, kind: int, count: int, key: str) -> list[Any]:
        if kind == _STRING:
            self.check_count(count, 8, f"strings in {key}")
            return [self.string(key) for _ in range(count)]
        if kind not in _SCALARS:
            raise CorruptFile(f"{self.path}: the metadata entry {key} is a list of the unsupported type {kind}")
        self.check_count(count, struct.calcsize(_SCALARS[kind]), f"numbers in {key}")
        return list(self.unpack(f"{count}{_SCALARS[kind]}", key))

    def description(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.string("a tensor name")
        (n_dimensions,) = self.unpack("I", name)
        if not 1 <= n_dimensions <= _MAX_DIMENSIONS:
            raise CorruptFile(f"{self.path}: tensor {name} has {n_dimensions} dimensions, 1 to {_MAX_DIMENSIONS} are possible")
        sizes = self.unpack(f"{n_dimensions}Q", name)
        kind, offset = self.unpack("IQ", name)
        return name, tuple(reversed(sizes)), kind, offset

    def locate(self, start: int, alignment: int, name: str, shape: tuple[int, ...], kind: int, offset: int) -> GGUFTensorInfo:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise CorruptFile(f"{self.path}: tensor {name} is of the type {kind}, which the installed gguf package does not know") from None
        if min(shape) < 1 or shape[-1] % block:
            raise CorruptFile(f"{self.path}: tensor {name} of shape {list(shape)} cannot be stored in blocks of {block}")
        nbytes = math.prod(shape) // block * block_bytes
        if offset % alignment or start + offset + nbytes > self.size:
            raise CorruptFile(
                f"{self.path}: tensor {name} of shape {list(shape)} would take {nbytes} bytes from offset {offset}, "
                f"the file has {self.size}; it is truncated or damaged"
            )
        return GGUFTensorInfo(name, shape, GGMLQuantizationType(kind), start + offset, nbytes)

    def check_overlap(self, tensors: list[GGUFTensorInfo]) -> None:
        names = {tensor.name for tensor in tensors}
        if len(names) != len(tensors):
            raise CorruptFile(f"{self.path} names a tensor twice")
        ordered = sorted(tensors, key=lambda tensor: tensor.start)
        for first, second in pairwise(ordered):
            if first.start + first.nbytes > second.start:
                raise CorruptFile(f"{self.path}: tensors {first.name} and {second.name} overlap")

    def unpack(self, form: str, what: str) -> tuple[Any, ...]:
        length = struct.calcsize("<" + form)
        if self.at + length > self.size:
            raise CorruptFile(f"{self.path} ends inside {what}; it is truncated or damaged")
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += length
        return values

    def string(self, what: str) -> str:
        (length,) = self.unpack("Q", what)
        if length > min(self.size - self.at, _MAX_STRING):
            raise CorruptFile(f"{self.path}: {what} claims {length} bytes, the file has {self.size - self.at} left")
        text = self.data[self.at : self.at + length]
        self.at += length
        # Vocabularies of byte-level tokenizers hold pieces of characters.
        return text.decode("utf-8", "replace")

    def check_count(self, count: int, smallest: int, what: str) -> None:
        if count * smallest > self.size - self.at:
            raise CorruptFile(f"{self.path} claims {count} {what}, more than its {self.size} bytes can hold")
