"""The level database: for each layer its compressed candidates, on disk, one file a layer."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tersor.errors import CorruptFile
from tersor.files import write_atomically
from tersor.weights import CompressedWeight, weight_from_config
from tersor.weights.base import check_state


@dataclass(frozen=True)
class Level:
    """One choice for one layer.

    Attributes:
        method: Name of the layerwise method.
        options: Its options.
        nbytes: What it costs on disk.
        error: Relative squared output error on the calibration tokens.
        held_out_error: The same on tokens that no layer was fitted to; ``None`` where none were set aside.
        seconds: Time the method took.
        report: What the method reported: damping used, dead inputs, fall-backs.
    """

    method: str
    options: dict[str, Any]
    nbytes: int
    error: float
    held_out_error: float | None = None
    seconds: float = 0.0
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Short name for tables, such as ``gptq bits=3``."""
        shown = ("bits", "sparsity", "keep_n", "of_m", "rank", "keep")
        return " ".join([self.method, *(f"{key}={self.options[key]}" for key in shown if self.options.get(key) is not None)])


class LevelDatabase:
    """Compressed candidates of every layer under ``folder``.

    A layer is present if its file is: files are written whole and renamed, so a killed run leaves only
    complete layers. Weights are read from disk when they are asked for, never all at once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._headers: dict[str, tuple[dict[str, Any], int]] = {}

    def _path(self, layer: str) -> Path:
        return self.folder / f"{layer}.safetensors"

    def __contains__(self, layer: str) -> bool:
        return self._path(layer).is_file()

    def layers(self) -> list[str]:
        """Names of the complete layers."""
        return sorted(path.name.removesuffix(".safetensors") for path in self.folder.glob("*.safetensors"))

    def write(self, layer: str, levels: Iterable[tuple[Level, CompressedWeight]]) -> None:
        """Store every level of ``layer`` in one file."""
        from safetensors.torch import save

        tensors: dict[str, Tensor] = {}
        records = []
        for index, (level, weight) in enumerate(levels):
            # Copies: levels may share tensors, as the heights of one stack do, which the format does not know.
            stored = weight.state_dict().items()
            tensors |= {f"{index}/{name}": buffer.clone(memory_format=torch.contiguous_format) for name, buffer in stored}
            records.append({"level": asdict(level), "config": weight.config})
        write_atomically(self._path(layer), save(tensors, metadata={"levels": json.dumps(records)}))

    def _header(self, layer: str) -> tuple[list[dict[str, Any]], dict[str, Any], int]:
        if layer not in self._headers:
            path = self._path(layer)
            try:
                with path.open("rb") as file:
                    length = struct.unpack("<Q", file.read(8))[0]
                    if length > path.stat().st_size:
                        raise CorruptFile(f"level file {path.name} of the run is truncated; delete it and resume")
                    header = json.loads(file.read(length))
                records = json.loads(header.pop("__metadata__")["levels"])
            except (OSError, struct.error, ValueError, KeyError) as error:
                raise CorruptFile(f"level file {path.name} of the run cannot be read ({error}); delete it and resume") from None
            self._headers[layer] = ({"records": records, "tensors": header}, 8 + length)
        content, offset = self._headers[layer]
        return content["records"], content["tensors"], offset

    def levels(self, layer: str) -> list[Level]:
        """The levels of ``layer``, in the order they were written."""
        return [Level(**record["level"]) for record in self._header(layer)[0]]

    def header_bytes(self, layer: str, index: int, digits: int) -> int:
        """Bytes that a level takes in the header of a safetensors file whose offsets have up to ``digits`` digits."""
        prefix = f"{index}/"
        offsets = [10**digits - 1] * 2
        entries = {
            f"{layer}.weight.{name.removeprefix(prefix)}": {"dtype": tensor["dtype"], "shape": tensor["shape"], "data_offsets": offsets}
            for name, tensor in self._header(layer)[1].items()
            if name.startswith(prefix)
        }
        return len(json.dumps(entries, separators=(",", ":"))) - 1 if entries else 0  # the braces are the file's, a comma is ours

    def weight(self, layer: str, index: int) -> CompressedWeight:
        """The compressed weight of one level, read from disk.

        Raises:
            CorruptFile: If the file does not hold what it says.
        """
        from safetensors import SafetensorError, safe_open

        records, names, _ = self._header(layer)
        prefix = f"{index}/"
        try:
            with safe_open(self._path(layer), "pt") as file:
                state = {name.removeprefix(prefix): file.get_tensor(name) for name in names if name.startswith(prefix)}
        except (SafetensorError, OSError) as error:
            raise CorruptFile(f"level file {layer} of the run cannot be read ({error}); delete it and resume") from None
        with torch.device("meta"):
            weight = weight_from_config(records[index]["config"])
        check_state(weight, state, layer)
        weight.load_state_dict(state, assign=True)
        weight.report = records[index]["level"]["report"]
        return weight
