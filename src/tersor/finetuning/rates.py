"""Rates of PV-tuning, chosen by short tunings: those that suit one model make another worse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from tersor import checkpoints
from tersor.errors import InvalidArgument
from tersor.finetuning.pv_tuning import Mode, Progress, PVConfig, pv_tuning
from tersor.layerwise.checking import check_integer
from tersor.models import Model

Rates = Mapping[str, float]

# From cautious to bold, values and codes together.
CANDIDATES: dict[Mode, tuple[Rates, ...]] = {
    "p": ({"learning_rate": 3e-4}, {"learning_rate": 1e-3}, {"learning_rate": 3e-3}),
    "pv": (
        {"learning_rate": 3e-4, "code_learning_rate": 1e-2, "max_code_change": 0.003, "trust_ratio": 0.003},
        {"learning_rate": 1e-3, "code_learning_rate": 1e-2, "max_code_change": 0.01, "trust_ratio": 0.01},
        {"learning_rate": 3e-3, "code_learning_rate": 3e-2, "max_code_change": 0.03, "trust_ratio": 0.03},
    ),
    "straight_through": (
        {"learning_rate": 3e-4, "code_learning_rate": 3e-3},
        {"learning_rate": 1e-3, "code_learning_rate": 1e-2},
        {"learning_rate": 3e-3, "code_learning_rate": 3e-2},
    ),
}


@dataclass(frozen=True)
class ChosenRates:
    """What :func:`choose_rates` found.

    Attributes:
        rates: The chosen candidate.
        config: The configuration that was given, with these rates.
        losses: Held-out divergence after the last step of each candidate, in nats a token; infinite where it is NaN.
    """

    rates: Rates
    config: PVConfig
    losses: tuple[float, ...]

    def __str__(self) -> str:
        chosen = ", ".join(f"{name} {value:g}" for name, value in self.rates.items())
        return f"rates: {chosen}; nats of the candidates: {', '.join(f'{loss:.4g}' for loss in self.losses)}"


def choose_rates(
    model: Model, teacher: Model, windows: Tensor, held_out: Tensor, config: PVConfig | None = None, *, steps: int = 20,
    candidates: Sequence[Rates] | None = None, checkpoint: str | Path | None = None, progress: Progress | None = None,
) -> ChosenRates:  # fmt: skip
    """Tune ``steps`` steps with each of several rates and take those whose last step is closest to ``teacher``, the first if none is.

    Args:
        model: Compressed; left as it is.
        teacher: The original, in float32.
        windows: Tokens ``[n, length]`` to train on.
        held_out: Windows to choose by; never those that the result is reported on.
        config: Everything but the rates.
        steps: Of each short tuning; no more than those of ``config``.
        candidates: Fields of :class:`PVConfig` to replace; :data:`CANDIDATES` of the mode without it.
        checkpoint: File of the tuning that follows: the chosen short tuning is left there for :func:`pv_tuning` to go on from, and what
            was chosen beside it, so that a killed choice goes on too.
        progress: Called with the step, the number of steps, of all candidates together, and the loss.

    Raises:
        InvalidArgument: If ``steps`` is out of range, there is no candidate, one names what is no field of :class:`PVConfig`, or
            :func:`pv_tuning` refuses one.

    Reference:
        The algorithm is of Malinovskii et al. (2024); choosing its rates on each model is not part of it.
    """
    config = config or PVConfig()
    check_integer("steps", steps, 1)
    if steps > config.steps:
        raise InvalidArgument(f"short tunings of {steps} steps do not fit before one of {config.steps}; take fewer for the choice of rates")
    candidates = CANDIDATES[config.mode] if candidates is None else candidates
    _check_candidates(candidates)
    job = {"steps": steps, "candidates": [dict(rates) for rates in candidates], "seed": config.seed, **checkpoints.tokens(windows)}
    record = _Record(None if checkpoint is None else Path(checkpoint), job)
    for place in range(len(record.losses), len(candidates)):
        short = replace(config, steps=steps, **candidates[place])  # type: ignore[arg-type]

        def advance(step: int, _: int, loss: float, before: int = place * steps) -> None:
            if progress is not None:
                progress(before + step, len(candidates) * steps, loss)

        tuned = pv_tuning(model, teacher, windows, short, held_out=held_out, checkpoint=record.unfinished, progress=advance)
        record.take(tuned.held_out[-1][1])
    rates = candidates[record.losses.index(min(record.losses))]
    return ChosenRates(rates, replace(config, **rates), tuple(record.losses))  # type: ignore[arg-type]


def default_steps(steps: int) -> int:
    """Steps of each short tuning before one of ``steps``: a fifth; 0, which is none, where that is less than a step."""
    return steps // 5


def rates_beside(checkpoint: Path) -> Path:
    """Where :func:`choose_rates` notes what it found for the tuning of ``checkpoint``; of no use once that is done."""
    return checkpoint.with_name(f"{checkpoint.name}.rates")


class _Record:
    """Losses of the candidates so far; on disk beside the tuning that follows, where there is one."""

    def __init__(self, following: Path | None, job: Mapping[str, Any]) -> None:
        self.following, self.job = following, job
        self.unfinished = following and following.with_name(f"{following.name}.candidate")
        self.path = following and rates_beside(following)
        found = None if self.path is None else checkpoints.read(self.path, job)
        self.losses: list[float] = [] if found is None else found[1]["losses"]

    def take(self, loss: float) -> None:
        """Note the next candidate's loss, infinite where it is NaN; its tuning stays if it is the best so far."""
        loss = loss if math.isfinite(loss) else math.inf
        if self.following is not None and self.unfinished is not None and self.path is not None:
            # In this order: a kill in between repeats the candidate, which ends at the same bits.
            if loss < min(self.losses, default=math.inf):
                self.unfinished.replace(self.following)
            else:
                self.unfinished.unlink()
            checkpoints.write(self.path, {}, {"losses": [*self.losses, loss]}, self.job)
        self.losses.append(loss)


def _check_candidates(candidates: Sequence[Rates]) -> None:
    known = PVConfig.__dataclass_fields__
    unknown = sorted({name for rates in candidates for name in rates if name not in known})
    if not candidates or unknown:
        raise InvalidArgument(f"candidates must be one or more sets of fields of PVConfig, got {', '.join(unknown) or 'none'}")
