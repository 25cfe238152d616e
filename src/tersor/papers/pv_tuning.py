"""PV-tuning: moving few codes a bounded way trains a 2-bit model better than values alone or rounding everything after each step."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from tersor.papers.frame import Paper, Result, Row, measured
from tersor.papers.one_shot import OneShot, Size

PAPER = Paper(
    key="pv-tuning",
    claim="At about 2 bits codebooks tuned by PV are closer to the original on held-out text than 2-bit GPTQ of more bytes, than the same "
    "codebooks with their values tuned alone, and than straight-through tuning of as many steps from the same start.",
    where="tersor.finetuning.pv_tuning, tersor.layerwise.additive_codebooks, tersor.weights.CodebookWeight",
)

SEEDS = (0, 1, 2)
Rates = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """One model with what it is compressed to and how long it is tuned.

    Attributes:
        size: Model, texts and tokens.
        codebooks: Options of ``additive_codebooks``.
        grid: Options of ``gptq``.
        steps: Of every tuning.
        batch: Windows a step.
        length: Tokens of a training window.
        learning_rate: Of the continuous values, in every mode.
        seeds: Orders of the training windows.
    """

    size: Size
    codebooks: Mapping[str, Any]
    grid: Mapping[str, Any]
    steps: int
    batch: int
    length: int
    learning_rate: float
    seeds: tuple[int, ...]


SMALL = Setting(
    Size("stories260k", 8192, 4096, 256, "tinystories", "tinystories.tail"), {"bits": 5, "group_size": 4},
    {"bits": 2, "group_size": -1, "act_order": True}, 200, 8, 128, 3e-3, SEEDS,
)  # fmt: skip
LARGE = Setting(
    Size("smollm2-135m", 16384, 8192, 512, "wikitext2.valid", "wikitext2.test"), {},
    {"bits": 2, "group_size": 64, "act_order": True, "clip": "hessian"}, 60, 1, 256, 1e-3, SEEDS[:1],
)  # fmt: skip
QUICK_STEPS = 60
HELD_OUT = 16  # training windows kept back to choose rates and the best step by

# Rates of the codes to choose from, with the limits of a step: each is tried in full, as one that leads early may fall behind.
RATES: dict[str, tuple[Rates, ...]] = {
    "p": ({},),
    "pv": (
        {"code_learning_rate": 1e-2, "max_code_change": 0.003, "trust_ratio": 0.003},
        {"code_learning_rate": 1e-2, "max_code_change": 0.01, "trust_ratio": 0.01},
        {"code_learning_rate": 3e-2, "max_code_change": 0.03, "trust_ratio": 0.03},
    ),
    "straight_through": ({"code_learning_rate": 3e-3}, {"code_learning_rate": 1e-2}, {"code_learning_rate": 3e-2}),
}


def run(quick: bool) -> Result:
    """Compress, tune with every rate of every mode, and with the one that is best on windows kept back over seeds."""
    settings = (replace(SMALL, steps=QUICK_STEPS),) if quick else (SMALL, LARGE)
    chosen: dict[str, str] = {}
    rows = [row for setting in settings for row in measured(_rows(setting, chosen))]
    margins = {setting.size.model: _margin([row for row in rows if row["model"] == setting.size.model]) for setting in settings}
    notes = [f"{model}: margin {margin:.3f} against the best of the others" for model, margin in margins.items()]
    notes += [f"{what}: {how}" for what, how in chosen.items()]
    notes.append("rates were chosen on training windows kept back, by whole tunings with the first seed")
    data = [part for setting in settings for part in (setting.size.model, setting.size.text, setting.size.held_out)]
    return Result(
        rows, "GPTQ at 2 bits, values alone, straight-through", min(margins.values()), settings[0].seeds, min(margins.values()) > 0, data,
        notes,
    )  # fmt: skip


def _margin(rows: list[Row]) -> float:
    means = {method: statistics.mean(row["kl"] for row in rows if row["method"] == method) for method in {row["method"] for row in rows}}
    return 1 - means.pop("codebooks, pv") / min(means.values())


def _rows(setting: Setting, chosen: dict[str, str]) -> Iterator[Row]:
    """One-shot rows, then every mode over the seeds; the rates of each go into ``chosen``."""
    from tersor.models import load

    bench = OneShot.prepare(load(setting.size.model), setting.size)
    windows = _training_windows(bench, setting)
    held_out, windows = windows[:HELD_OUT], windows[HELD_OUT:]
    yield {"model": setting.size.model, **bench.row("gptq, 2 bits", bench.everywhere("gptq, 2 bits", "gptq", **setting.grid))}
    weights = bench.everywhere("codebooks", "additive_codebooks", **setting.codebooks)
    yield {"model": setting.size.model, **bench.row("codebooks", weights)}
    small = bench.assembled(weights)
    tune = partial(_tuned, small, bench, setting, windows=windows, held_out=held_out)
    for mode, candidates in RATES.items():
        tried = [tune(mode, rates, setting.seeds[0]) for rates in candidates]
        losses = [min(loss for _, loss in tuned.held_out) for tuned in tried]
        best = losses.index(min(losses))
        if len(candidates) > 1:
            rates = ", ".join(f"{key} {value:g}" for key, value in candidates[best].items())
            chosen[f"{setting.size.model}, {mode}"] = f"{rates} (of {', '.join(f'{loss:.3f}' for loss in losses)} nats)"
        for seed in setting.seeds:
            tuned = tried[best] if seed == setting.seeds[0] else tune(mode, candidates[best], seed)
            judged = bench.divergence(tuned.model)
            yield {
                "model": setting.size.model, "method": f"codebooks, {mode}", "seed": seed,
                "layer_bytes": sum(weight.nbytes for weight in tuned.model.weights().values()), "kl": judged.kl,
                "perplexity": judged.perplexity, "codes_changed": sum(tuned.changes), "best_step": tuned.best_step,
                "first_loss": tuned.losses[0], "last_loss": tuned.losses[-1],
            }  # fmt: skip


def _tuned(small: Any, bench: OneShot, setting: Setting, mode: Any, rates: Rates, seed: int, windows: Tensor, held_out: Tensor) -> Any:
    from tersor.finetuning import PVConfig, pv_tuning

    config = PVConfig(
        mode=mode, steps=setting.steps, batch=setting.batch, learning_rate=setting.learning_rate, seed=seed,
        check_every=setting.steps // 4, **rates,
    )  # fmt: skip
    return pv_tuning(small, bench.model, windows, config, held_out=held_out)


def _training_windows(bench: OneShot, setting: Setting) -> Tensor:
    from tersor import data
    from tersor.papers.workbench import split_texts

    fitted, _ = split_texts(setting.size.text, setting.size.held_out)
    return data.windows(bench.model.encode(fitted), setting.length)
