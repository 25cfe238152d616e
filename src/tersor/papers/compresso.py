"""Compresso: which heads, units and width a small language model can spare, learned or chosen by magnitude or by chance."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from tersor.models import Model
from tersor.papers.frame import Paper, Result, Row, measured
from tersor.training import (
    COLLABORATIVE_PROMPT,
    Compresso,
    Decoder,
    Masks,
    Pruned,
    Schedule,
    Shape,
    compresso,
    language_loss,
    magnitude_scores,
    masks_of,
)

PAPER = Paper(
    key="compresso",
    claim="At equal numbers of parameters and of healing steps, a model whose heads, units and width were chosen by learned gates has a "
    "lower held-out perplexity than one cut by magnitude or at random and healed by the same adapters; the steps of the gates come on top.",
    where="tersor.training.compresso, tersor.training.Compresso, tersor.training.slice_decoder",
)

# Seeds 0 to 2 were looked at while the method was made.
SEEDS = (10, 11, 12)
OURS, MAGNITUDE, RANDOM = "compresso", "magnitude, the same shape", "random, the same shape"
LONGER = "magnitude, as many steps in all"
# What is left out, or for the prompt put in, at one size.
NO_ADAPTERS, NO_LAGRANGIAN, PROMPTED = "compresso, no adapters", "compresso, no Lagrangian", "compresso, with the prompt"
ABLATED_AT = 0.7
RIVALS = (MAGNITUDE, RANDOM)
CONTEXT, BATCH = 64, 8
# Shares of the steps of a training with gates; the second half heals.
BEGIN, END, FIX = 0.05, 0.35, 0.5


@dataclass(frozen=True)
class Effort:
    """What is cut, and how much is done.

    Attributes:
        keeps: Sizes that are tried.
        steps: Of healing, and as many for the gates.
        pilot: Steps that choose a rate.
        windows: Of a measurement.
        ablations: Whether parts of the method are left out in turn.
        model: Its name.
        text: To train on, to choose by and to report, in parts.
        rates: Of the adapters, of which one is chosen.
    """

    keeps: tuple[float, ...]
    steps: int
    pilot: int
    windows: int
    ablations: bool
    model: str = "stories260k"
    text: str = "tinystories"
    rates: tuple[float, ...] = (2e-3, 8e-3)


FULL = Effort((0.85, 0.7, 0.55), 80, 20, 64, True)
QUICK = Effort((0.7,), 30, 10, 32, False)


@dataclass(frozen=True)
class Texts:
    """Windows to train on, to choose the rate and the best step by, and to report."""

    train: Tensor
    chosen_by: Tensor
    test: Tensor


def run(quick: bool) -> Result:
    """Prune a model of children's stories to several sizes by every method, on stories, and measure it on others."""
    return compared(QUICK if quick else FULL)


def compared(effort: Effort) -> Result:
    """Every method at every size of ``effort``."""
    from tersor.models import load

    model = load(effort.model)
    texts = _texts(model, effort)
    rate = _rate(model, texts, effort)
    dense = _perplexity(model.module, texts.test)
    rows: list[Row] = [{"method": "original", "parameters": model.n_parameters, "perplexity": dense}]
    for keep in effort.keeps:
        for seed in SEEDS:
            rows += measured(_compare(model, texts, effort.steps, rate, keep, seed))
    if effort.ablations:
        rows += [row for seed in SEEDS for row in measured(_ablated(model, texts, effort.steps, rate, seed))]

    def loss(method: str, keep: float) -> float:
        return fmean(math.log(row["perplexity"]) for row in rows if row["method"] == method and row.get("keep") == keep)

    gaps = {keep: min(loss(rival, keep) for rival in RIVALS) - loss(OURS, keep) for keep in effort.keeps}
    longer = {keep: loss(LONGER, keep) - loss(OURS, keep) for keep in effort.keeps}
    worst = max(abs(row["cut_minus_masked"]) for row in rows if "seed" in row)
    notes = [
        *(f"keep {keep:g}: {gap:.4f} nats a token below the best baseline of equal healing, mean over seeds" for keep, gap in gaps.items()),
        *(f"keep {keep:g}: {gap:.4f} below magnitude if that also heals in the steps that the gates took" for keep, gap in longer.items()),
        f"the cut changed the loss of the masked model by at most {worst:.2g} nats a token",
        f"the rate of all adapters, {rate:g}, was chosen on validation windows for the cut by magnitude",
        *(
            f"{name} at keep {ABLATED_AT:g}: {loss(name, ABLATED_AT) - loss(OURS, ABLATED_AT):+.4f} nats a token against compresso"
            for name in (NO_ADAPTERS, NO_LAGRANGIAN, PROMPTED) if effort.ablations
        ),
        "the prompt stands in front of every window of its row, in training and in the test; elsewhere there is none",
    ]  # fmt: skip
    margin = min(gaps.values())
    baseline = f"{', '.join(RIVALS)}; each with the same adapters and healing steps"
    return Result(rows, baseline, margin, SEEDS, margin > 0, (effort.model, effort.text), notes)


def _texts(model: Model, effort: Effort) -> Texts:
    from tersor import data

    windows = data.windows(model.encode(data.text(effort.text)), CONTEXT)
    first, second = len(windows) * 8 // 10, len(windows) * 9 // 10
    return Texts(windows[:first], windows[first:second][: effort.windows], windows[second:][: effort.windows])


@torch.no_grad()
def _perplexity(module: Any, windows: Tensor, prompt: Tensor | None = None) -> float:
    return math.exp(torch.stack([language_loss(module, part, prompt) for part in windows.split(32)]).mean().item())


def _rate(model: Model, texts: Texts, effort: Effort) -> float:
    """The rate of the adapters that heals a cut by magnitude best in a short training with a seed of its own."""
    masks = _cut(model, MAGNITUDE, _even(model, effort.keeps[0]), len(SEEDS))
    losses = {rate: _trained(model, texts, Compresso(masks=masks), effort.pilot, rate, len(SEEDS)).held_out[-1][1] for rate in effort.rates}
    return min(effort.rates, key=lambda rate: losses[rate])


def _trained(
    model: Model, texts: Texts, method: Compresso, steps: int, rate: float, seed: int, prompt: Tensor | None = None
) -> Pruned:  # fmt: skip
    schedule = Schedule(steps=steps, batch=BATCH, learning_rate=rate, check_every=max(steps // 4, 1), seed=seed)
    return compresso(model.module, texts.train, method, schedule, held_out=texts.chosen_by, prompt=prompt)


def _even(model: Model, keep: float) -> Shape:
    """All heads, the whole width, and as many units in every layer as ``keep`` of the parameters allow."""
    decoder = Decoder(model.module)
    full, layers = decoder.shape, len(decoder.layers)
    units = next(
        count for count in range(full.units[0], 0, -1)
        if decoder.count_of(Shape(full.groups, (count,) * layers, full.width)) <= keep * decoder.parameters
    )  # fmt: skip
    return Shape(full.groups, (units,) * layers, full.width)


def _cut(model: Model, method: str, shape: Shape, seed: int) -> Masks:
    """Masks of ``shape`` by magnitude, or at random."""
    scores = magnitude_scores(Decoder(model.module))
    if method == RANDOM:
        generator = torch.Generator().manual_seed(seed)
        scores = {kind: torch.rand(score.shape, generator=generator) for kind, score in scores.items()}
    return masks_of(shape, **scores)


def _compare(model: Model, texts: Texts, steps: int, rate: float, keep: float, seed: int) -> Iterator[Row]:
    def given(name: str, shape: Shape, healing: int) -> Row:
        began = time.process_time()
        pruned = _trained(model, texts, Compresso(masks=_cut(model, name, shape, seed)), healing, rate, seed)
        return _row(name, keep, seed, pruned, texts, time.process_time() - began)

    began = time.process_time()
    pruned = _trained(model, texts, Compresso(keep, begin=BEGIN, end=END, fix=FIX), 2 * steps, rate, seed)
    shape = pruned.masks.shape
    # Before the gates were settled, which meets the size whatever the multiplier reached.
    expected = pruned.expected_keep[round(2 * steps * FIX) - 2]
    yield _row(OURS, keep, seed, pruned, texts, time.process_time() - began) | {"expected_keep": expected}
    yield given(MAGNITUDE, shape, steps)
    yield given(RANDOM, shape, steps)
    yield given(LONGER, shape, 2 * steps)


def _ablated(model: Model, texts: Texts, steps: int, rate: float, seed: int) -> Iterator[Row]:
    """Compresso without one of its parts, and with the prompt that the paper adds."""
    variants: tuple[tuple[str, dict[str, Any], Tensor | None], ...] = (
        (NO_ADAPTERS, {"adapted": ()}, None), (NO_LAGRANGIAN, {"lagrangian": False}, None),
        (PROMPTED, {}, model.encode(COLLABORATIVE_PROMPT)),
    )  # fmt: skip
    for name, options, prompt in variants:
        began = time.process_time()
        method = Compresso(ABLATED_AT, begin=BEGIN, end=END, fix=FIX, **options)
        pruned = _trained(model, texts, method, 2 * steps, rate, seed, prompt)
        yield _row(name, ABLATED_AT, seed, pruned, texts, time.process_time() - began, prompt)


def _row(
    name: str, keep: float, seed: int, pruned: Pruned, texts: Texts, seconds: float, prompt: Tensor | None = None
) -> Row:  # fmt: skip
    shape = pruned.masks.shape
    assert pruned.masked_loss is not None
    assert pruned.sliced_loss is not None
    return {
        "method": name, "keep": keep, "seed": seed, "parameters": pruned.parameters, "heads": shape.groups[0], "units": shape.units[0],
        "width": shape.width, "perplexity": _perplexity(pruned.model, texts.test, prompt), "expected_keep": None,
        "cut_minus_masked": pruned.sliced_loss - pruned.masked_loss, "cpu_seconds": seconds,
    }  # fmt: skip
