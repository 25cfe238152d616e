"""What an export wrote: every layer's type, bytes and loss, how it was verified, how to serve it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class LayerRow:
    """One matrix of the exported model.

    Attributes:
        name: Dotted name in the model.
        stored_as: Type in the output, such as ``"Q4_0"`` or ``"int4 group 64"``.
        nbytes: Bytes that it takes there.
        bits_per_weight: Its true rate, scales included.
        error: Relative root-mean-square difference between what is stored and the weight of the model; 0 for an exact copy.
    """

    name: str
    stored_as: str
    nbytes: int
    bits_per_weight: float
    error: float


@dataclass(frozen=True)
class ExportReport:
    """The outcome of :func:`tersor.models.export.export_model`.

    Attributes:
        path: What was written.
        format: ``"gguf"``, ``"compressed-tensors"`` or ``"safetensors"``.
        nbytes: Bytes of the file, or of all files of the model in the folder.
        bits_per_weight: Bits of all tensors over the parameters of the model.
        layers: One row a matrix.
        notes: What the user should know: layers that had to be stored otherwise, runtimes that will refuse.
        serve_command: The shell command that serves the result.
        verified: What was loaded, compared and found, or ``None`` if verification was switched off.
    """

    path: Path
    format: str
    nbytes: int
    bits_per_weight: float
    layers: list[LayerRow] = field(repr=False)
    notes: list[str] = field(repr=False)
    serve_command: str
    verified: dict[str, Any] | None = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "path": str(self.path)}

    def table(self) -> str:
        """One line a layer."""
        width = max((len(row.name) for row in self.layers), default=0)
        lines = [f"{'layer':<{width}}  {'stored as':<20} {'bytes':>12} {'bits/weight':>11} {'error':>9}"]
        for row in self.layers:
            lines.append(f"{row.name:<{width}}  {row.stored_as:<20} {row.nbytes:>12,} {row.bits_per_weight:>11.3f} {row.error:>9.2e}")
        return "\n".join(lines)

    def summary(self) -> str:
        """One line a storage type."""
        groups: dict[str, list[LayerRow]] = defaultdict(list)
        for row in self.layers:
            groups[row.stored_as].append(row)
        lines = [f"{'stored as':<20} {'layers':>6} {'bytes':>14} {'bits/weight':>11} {'worst error':>11}"]
        for stored_as, rows in groups.items():
            nbytes = sum(row.nbytes for row in rows)
            weights = sum(8 * row.nbytes / row.bits_per_weight for row in rows)
            worst = max(row.error for row in rows)
            lines.append(f"{stored_as:<20} {len(rows):>6} {nbytes:>14,} {8 * nbytes / weights:>11.3f} {worst:>11.2e}")
        return "\n".join(lines)

    def __str__(self) -> str:
        head = f"{self.path}: {self.format}, {self.nbytes:,} bytes, {self.bits_per_weight:.3f} bits per weight"
        if self.verified is None:
            check = "not verified"
        else:
            check = "verified: " + ", ".join(f"{key.replace('_', ' ')} {_shown(value)}" for key, value in self.verified.items())
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join([head, self.summary(), *notes, check, f"serve with: {self.serve_command}"])


def _shown(value: Any) -> str:
    return f"{value:.2e}" if isinstance(value, float) else str(value)
