"""QuEST: small language models trained from nothing with few bits in weights and activations, against the usual estimators."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.papers.frame import Paper, Result, Row, measured

PAPER = Paper(
    key="quest",
    claim="Trained from nothing, models lose more the fewer bits they have, all of them train, and at 2 and at 1 bit in weights and "
    "activations QuEST ends with a lower held-out loss than straight-through rounding without a rotation and than learned step sizes.",
    where="tersor.training.quest, tersor.training.lsq",
)

SEEDS = (0, 1, 2)
RATES = (1e-3, 4e-3)
FLOAT, OURS, STRAIGHT, LEARNED = "float32", "quest", "straight-through, no rotation", "learned steps"


@dataclass(frozen=True)
class Effort:
    """The model and how long it is trained."""

    width: int
    layers: int
    length: int
    batch: int
    steps: int
    probe: int  # steps in which a learning rate is chosen
    real: bool  # whether the rotation is tried on the activations of the real model


EFFORT = {False: Effort(128, 2, 128, 8, 240, 60, True), True: Effort(64, 2, 64, 8, 130, 30, False)}


def run(quick: bool) -> Result:
    """Choose a learning rate for every method on validation windows, then train every method, number of bits and seed."""
    from tersor.papers.catalogue import results_folder
    from tersor.papers.plots import line_chart

    effort = EFFORT[quick]
    parts = _texts(effort)
    rates = {method: _rate(method, effort, parts) for method in (FLOAT, OURS, STRAIGHT, LEARNED)}
    plan = [(FLOAT, 32), *((OURS, bits) for bits in (4, 2, 1)), *((method, bits) for method in (STRAIGHT, LEARNED) for bits in (2, 1))]
    rows: list[Row] = []
    curves: list[Row] = []
    for row, curve in _trainings(plan, rates, effort, parts):
        rows += measured([row])
        curves += curve
    if effort.real:
        rows += measured(_real_activations())
        title = "Training loss of small Llamas on Shakespeare, seed 0"
        line_chart(curves, "step", "training loss (nats a byte)", results_folder() / "quest-curves.svg", title=title)
    margin, notes = _judge(rows)
    notes.append("learning rates, chosen at 2 bits on validation windows: " + ", ".join(f"{name} {rate:g}" for name, rate in rates.items()))
    data = ["tinyshakespeare", *(["smollm2-135m", "wikitext2.test"] if effort.real else [])]
    return Result(rows, "straight-through rounding without a rotation; learned step sizes", margin, SEEDS, margin > 0, data, notes)


def _judge(rows: list[Row]) -> tuple[float, list[str]]:
    """The smallest gap, in nats, by which the claim holds: between methods at 2 and 1 bits, and between numbers of bits."""
    trained = [row for row in rows if row.get("seed") is not None]
    cells = {(row["method"], row["bits"]) for row in trained}
    mean = {
        cell: statistics.mean(row["held_out_loss"] for row in trained if (row["method"], row["bits"]) == cell) for cell in cells
    }  # fmt: skip
    order = [mean[FLOAT, 32], *(mean[OURS, bits] for bits in (4, 2, 1))]
    gaps = [after - before for before, after in pairwise(order)]
    wins = [mean[method, bits] - mean[OURS, bits] for method in (STRAIGHT, LEARNED) for bits in (2, 1)]
    finite = all(math.isfinite(value) for value in mean.values())
    notes = [
        f"more loss with fewer bits (float, 4, 2, 1): {', '.join(f'{value:.3f}' for value in order)} nats a byte",
        "QuEST is lower by " + ", ".join(
            f"{mean[method, bits] - mean[OURS, bits]:.3f} ({method}, {bits} bit)" for method in (STRAIGHT, LEARNED) for bits in (2, 1)
        ),
    ]  # fmt: skip
    return (min([*gaps, *wins]) if finite else -math.inf), notes


def _texts(effort: Effort) -> dict[str, Tensor]:
    """Windows of bytes to train on, to choose by and to report, cut in this order out of the text."""
    from tersor import data

    raw = torch.tensor(list(data.text("tinyshakespeare").encode()))
    train, validation, test = raw[: len(raw) * 8 // 10], raw[len(raw) * 8 // 10 : len(raw) * 9 // 10], raw[len(raw) * 9 // 10 :]
    cut = {"train": train, "validation": validation, "test": test}
    windows = {name: data.windows(part, effort.length + 1) for name, part in cut.items()}
    return {name: part if name == "train" else part[:128] for name, part in windows.items()}


def _model(method: str, bits: int, effort: Effort, seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    from tersor.training import Quantizer, lsq, quest

    config = LlamaConfig(
        vocab_size=256, hidden_size=effort.width, intermediate_size=effort.width * 8 // 3 // 8 * 8, num_hidden_layers=effort.layers,
        num_attention_heads=4, max_position_embeddings=effort.length, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():  # what transformers draws is drawn again below, from a seed
        module = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            # The published 0.02 is for widths from 640; narrower models need larger weights to start equally well.
            parameter.data.normal_(0.0, 0.02 * (640 / effort.width) ** 0.5, generator=generator)
    if method == OURS:
        quest(module, weights=bits, activations=bits)
    elif method == STRAIGHT:
        plain = Quantizer(bits, hadamard=1, mask="straight_through")
        quest(module, weights=plain, activations=plain)
    elif method == LEARNED:
        lsq(module, weight_bits=bits, activation_bits=bits)
    return module


def _train(module: nn.Module, rate: float, steps: int, effort: Effort, windows: Tensor, seed: int) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    matrices = [parameter for parameter in module.parameters() if parameter.ndim > 1]
    rest = [parameter for parameter in module.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _schedule(steps))
    losses = []
    for _ in range(steps):
        loss = _loss(module, windows[torch.randint(windows.shape[0], (effort.batch,), generator=generator)])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def _schedule(steps: int) -> Callable[[int], float]:
    """A tenth of the steps up, then a cosine down."""
    warm = max(steps // 10, 1)
    return lambda step: (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


def _loss(module: Any, windows: Tensor) -> Tensor:
    logits = module(windows[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


@torch.no_grad()
def _held_out(module: nn.Module, windows: Tensor) -> float:
    return float(torch.stack([_loss(module, part) for part in windows.split(32)]).mean())


def _rate(method: str, effort: Effort, parts: Mapping[str, Tensor]) -> float:
    """The learning rate of lower validation loss at 2 bits, on a seed of its own."""
    found = {}
    for rate in RATES:
        module = _model(method, 2, effort, seed=100)
        _train(module, rate, effort.probe, effort, parts["train"], seed=100)
        found[rate] = _held_out(module, parts["validation"])
    return min(found, key=lambda rate: found[rate])


def _trainings(
    plan: list[tuple[str, int]], rates: Mapping[str, float], effort: Effort, parts: Mapping[str, Tensor]
) -> Iterator[tuple[Row, list[Row]]]:
    for method, bits in plan:
        for seed in SEEDS:
            module = _model(method, bits, effort, seed)
            losses = _train(module, rates[method], effort.steps, effort, parts["train"], seed)
            tested = _held_out(module, parts["test"])
            row = {"method": method, "bits": bits, "seed": seed, "held_out_loss": tested, "train_loss": losses[-1]}
            label = method if method == FLOAT else f"{method}, {bits} bit"
            points = range(0, len(losses), max(len(losses) // 60, 1)) if seed == 0 else ()
            yield row, [{"method": label, "step": step, "training loss (nats a byte)": losses[step]} for step in points]


@torch.no_grad()
def _real_activations() -> Iterator[Row]:
    """What rounding alone does to a trained model of outlier activations, with and without the rotation; nothing is trained."""
    from tersor import data
    from tersor.models import load
    from tersor.training import Quantizer, quest

    model = load("smollm2-135m")
    windows = data.windows(model.encode(data.text("wikitext2.test")), 257)[:2]
    for bits, hadamard in ((32, 0), (8, 128), (8, 1), (4, 128), (4, 1)):
        twin = model.copy()
        if bits < 32:
            quantizer = Quantizer(bits, hadamard=hadamard)
            quest(twin.module, weights=quantizer, activations=quantizer)
        label = "float32" if bits == 32 else "rotated" if hadamard > 1 else "not rotated"
        yield {"method": f"SmolLM2 untrained, {label}", "bits": bits, "held_out_loss": float(_loss(twin.module, windows))}
