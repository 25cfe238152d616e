"""What a finished run says about itself: the record that the command line prints and the HTML page shows."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import Field, JsonValue, TypeAdapter, ValidationError

from tersor.errors import CorruptFile, InvalidArgument

Number = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class ReportRow:
    """One model of the comparison.

    Attributes:
        name: ``original``, ``uniform``, ``searched`` or ``compressed``, ``tuned``.
        nbytes: Bytes of its tensor file.
        bits_per_weight: Bits of the file for each parameter.
        perplexity: On the evaluation text; ``None`` if it was not measured or is not finite.
        kl: Divergence of its predictions from the original's, nats a token.
        kl_stderr: Standard error of ``kl`` over windows.
        top1: Fraction of positions where both predict the same token.
        perplexity_stderr: Standard error of ``perplexity`` over windows.
        layer_error: Sum of the held-out errors of its layers, to compare with ``kl``.
        certified: What its loss on text like this is at most, nats a token, with a probability of 95 %, if it was not fitted to the text.
        occam: The same from its bytes too, which holds even if it was fitted to the text. See
            :func:`tersor.limits.generalization.certify` for both.
    """

    name: str
    nbytes: Count
    bits_per_weight: NotNegative
    perplexity: NotNegative | None = None
    kl: NotNegative | None = None
    kl_stderr: NotNegative | None = None
    top1: Share | None = None
    perplexity_stderr: NotNegative | None = None
    layer_error: NotNegative | None = None
    certified: NotNegative | None = None
    occam: NotNegative | None = None


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
    block: Count | None
    role: str
    method: str
    options: dict[str, JsonValue]
    bits: NotNegative
    nbytes: Count
    error: NotNegative
    held_out_error: NotNegative | None = None
    damping: NotNegative | None = None
    tokens: Count = 0


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
        search: One row a generation: ``generation``, ``fitness``, ``evaluations`` and whatever else the search recorded.
        warnings: What the user should know.
        seconds: Wall time of each stage.
        predicted: The pre-flight prediction.
        counters: Candidates and tokens judged, blocks run and saved by prefix reuse.
        finetuning: Losses, changed codes, held-out divergence and the step that was kept, if the result was tuned.
    """

    model: str
    created: str
    command: str
    versions: dict[str, str]
    budget: Count | None
    texts: dict[str, str]
    rows: list[ReportRow]
    layers: list[LayerRow]
    search: list[dict[str, str | bool | int | Number | None]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, NotNegative] = field(default_factory=dict)
    predicted: dict[str, JsonValue] = field(default_factory=dict)
    counters: dict[str, Count] = field(default_factory=dict)
    finetuning: dict[str, JsonValue] = field(default_factory=dict)

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
            content = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise InvalidArgument(f"{path} is not the folder of a finished run: it has no report.json") from None
        except (OSError, UnicodeDecodeError) as error:
            raise CorruptFile(f"the report {file} cannot be read: {error}") from None
        return cls.parse(content, f"the report {file}")

    @classmethod
    def parse(cls, content: str, where: str = "the report") -> RunReport:
        """The report in the JSON text ``content``; types, ranges and keys are those of this class or it is refused.

        Args:
            content: What ``json.dumps(report.to_dict())`` gives.
            where: What messages call it.

        Raises:
            CorruptFile: Naming the first thing that is wrong.
        """
        try:
            # Twice: the first pass refuses NaN and infinity anywhere, the second knows the types.
            json.loads(content, parse_constant=_refuse)
            report: RunReport = TypeAdapter(cls).validate_json(content, strict=True, extra="forbid")
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise CorruptFile(f"{where} is damaged at {place or 'its top'}: {first['msg']}") from None
        except (ValueError, RecursionError) as error:
            raise CorruptFile(f"{where} cannot be read: {error}") from None
        return report

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
        shown = [
            "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))])
            for line in lines
        ]
        return "\n".join([*shown, *(f"warning: {warning}" for warning in self.warnings)])


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"it holds {constant}, which is no JSON number")
