"""What a finished run says about itself: the record that the command line prints and the HTML page shows."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tersor.errors import CorruptFile, InvalidArgument


@dataclass(frozen=True)
class ReportRow:
    """One model of the comparison.

    Attributes:
        name: ``original``, ``uniform`` or ``searched``.
        nbytes: Bytes of its tensor file.
        bits_per_weight: Bits of the file for each parameter.
        perplexity: On the evaluation text; ``None`` if it was not measured or is not finite.
        kl: Divergence of its predictions from the original's, nats a token.
        kl_stderr: Standard error of ``kl`` over windows.
        top1: Fraction of positions where both predict the same token.
    """

    name: str
    nbytes: int
    bits_per_weight: float
    perplexity: float | None = None
    kl: float | None = None
    kl_stderr: float | None = None
    top1: float | None = None


@dataclass(frozen=True)
class LayerRow:
    """One layer of the compressed model.

    Attributes:
        name: Dotted name.
        block: Number of its block, ``None`` outside the blocks.
        role: Last part of its name, such as ``q_proj``.
        method: Method of its level.
        options: Options of its level.
        bits: Bits a weight, everything counted.
        nbytes: Bytes on disk.
        error: Relative squared output error on the calibration tokens.
        held_out_error: The same on tokens it was not fitted to.
        damping: Damping of its hessian, where there was one.
        tokens: Calibration tokens it was fitted on.
    """

    name: str
    block: int | None
    role: str
    method: str
    options: dict[str, Any]
    bits: float
    nbytes: int
    error: float
    held_out_error: float | None = None
    damping: float | None = None
    tokens: int = 0


@dataclass(frozen=True)
class RunReport:
    """The record of a run.

    Attributes:
        model: Name of the original.
        created: ISO date and time.
        command: Command or call that made it.
        versions: Package versions.
        budget: Bytes asked for, if any.
        texts: What each of calibration, held_out, search and evaluation text was.
        rows: The comparison.
        layers: Every compressed layer.
        search: One row a generation.
        warnings: What the user should know.
        seconds: Wall time of each stage.
        predicted: The pre-flight prediction.
        counters: Candidates and tokens judged, blocks run and saved by prefix reuse.
    """

    model: str
    created: str
    command: str
    versions: dict[str, str]
    budget: int | None
    texts: dict[str, str]
    rows: list[ReportRow]
    layers: list[LayerRow]
    search: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    predicted: dict[str, Any] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def read(cls, path: str | Path) -> RunReport:
        """Read ``report.json``, or that of the run folder ``path``.

        Raises:
            InvalidArgument: If there is none.
            CorruptFile: If it is not a report.
        """
        file = Path(path) / "report.json" if Path(path).is_dir() else Path(path)
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InvalidArgument(f"{path} is not the folder of a finished run: it has no report.json") from None
        except (OSError, ValueError) as error:
            raise CorruptFile(f"the report {file} cannot be read: {error}") from None
        try:
            return TypeAdapter(cls).validate_python(data, extra="forbid")
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise CorruptFile(f"the report {file} is damaged at {where or 'its top'}: {first['msg']}") from None

    def table(self) -> str:
        """The comparison as aligned text."""
        head = ("", "bytes", "bits/param", "perplexity", "KL to original", "same top-1")
        lines = [head]
        for row in self.rows:
            divergence = "" if row.kl is None else f"{row.kl:.4f}" + (f" ± {row.kl_stderr:.4f}" if row.kl_stderr else "")
            lines.append((
                row.name, f"{row.nbytes:,}", f"{row.bits_per_weight:.2f}", "" if row.perplexity is None else f"{row.perplexity:.2f}",
                divergence, "" if row.top1 is None else f"{100 * row.top1:.1f} %",
            ))  # fmt: skip
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        text = "\n".join("  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(line, widths, strict=True))) for line in lines)
        return "\n".join([text, *(f"warning: {warning}" for warning in self.warnings)])
