"""Parameter sharing against pruning before and after training, small networks and plain hashing, at equal numbers of stored values."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import nn

from tersor.papers import vision
from tersor.papers.frame import Paper, Result, Row, measured
from tersor.training import GradualPruning, Method, ParameterSharing, magnitude_mask, prunable, stored_bytes, to_sparse

PAPER = Paper(
    key="parameter-sharing",
    claim="From ten weights a stored value on, a network that reads its weights from one shared memory is more accurate than one pruned "
    "before training to as many values, and at one weight a value its training is dense training, whatever the memory starts from.",
    where="tersor.training.ParameterSharing, tersor.weights.HashedWeight",
)

SEEDS = (0, 1, 2)
FOLD, HASH = "shared, folded (STABLE-RPS)", "shared, hashed, scaled gradients"
SUMMED, PLAIN, TILE = "shared, folded, summed gradients", "shared, hashed (HashedNet)", "shared, tiles (ROAST)"
BEFORE, AFTER, SMALL, DENSE = "pruned before training", "pruned after training", "small and dense", "dense"
# What the published ROAST starts from, whatever the layers do.
SMALL_DEVIATION = 0.04
SHARED: dict[str, dict[str, Any]] = {
    FOLD: {},
    SUMMED: {"scale_gradient": False},
    HASH: {"mapping": "hash"},
    PLAIN: {"mapping": "hash", "scope": "layer", "scale_gradient": False},
    TILE: {"mapping": "tile", "scale_gradient": False},
}


@dataclass(frozen=True)
class Task:
    """What is trained and at which budgets.

    Attributes:
        images: The pictures.
        plan: How networks are trained.
        factory: A network of a width and a seed.
        width: Of the network that shares.
        compressions: Weights a stored value.
        shared: Kinds of sharing.
    """

    images: vision.Images
    plan: vision.Plan
    factory: Callable[[int, int], nn.Module]
    width: int
    compressions: Sequence[float]
    shared: Sequence[str]

    def train(self, model: nn.Module, seed: int, methods: Sequence[Method] = ()) -> nn.Module:
        """``model`` trained; the plan is the same for every method, fixed beforehand."""
        return vision.fit(model, self.images, self.plan, seed=seed, methods=methods).model


def run(quick: bool) -> Result:
    """Train networks of three seeds on digits and on photographs at several budgets, and at one weight a value."""
    tasks = [_digits((10, 50) if quick else (2, 10, 20, 50, 100)), *([] if quick else [_photographs()])]
    rows = list(measured(row for task in tasks for seed in SEEDS for row in _rows(task, seed)))
    rows += list(measured(row for seed in SEEDS for row in _unshared(tasks[0], seed)))
    margin = min(_differences(rows, BEFORE))
    drift = max(row["difference"] for row in rows if row["method"] == FOLD and "difference" in row)
    baseline = "the same network pruned before training to as many values, positions not counted"
    holds = margin > 0 and drift < 0.02
    return Result(rows, baseline, margin, SEEDS, holds, [task.images.name for task in tasks], list(_notes(rows, tasks)))


def _digits(compressions: Sequence[float]) -> Task:
    def factory(width: int, seed: int) -> nn.Module:
        return vision.initialize(nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10)), seed)

    return Task(vision.digits(), vision.Plan(epochs=60, flip=False), factory, 64, compressions, tuple(SHARED))


def _photographs() -> Task:
    images = vision.cifar(5000, 1000, 5000)

    def factory(width: int, seed: int) -> nn.Module:
        return vision.SmallConvNet(3, images.classes, width, seed)

    return Task(images, vision.Plan(epochs=4), factory, 16, (10, 50), (FOLD, SUMMED, PLAIN))


def _rows(task: Task, seed: int) -> Iterator[Row]:
    dense = task.train(task.factory(task.width, seed), seed)
    weights = _weights(dense)
    yield _row(task, dense, DENSE, seed, 1.0, weights)
    for compression in task.compressions:
        for label in task.shared:
            method = ParameterSharing(compression, seed=seed, **SHARED[label])
            model = task.train(task.factory(task.width, seed), seed, [method])
            yield _row(task, model, label, seed, compression, method.report()["values"])
        sparsity = 1 - 1 / compression
        model = task.train(task.factory(task.width, seed), seed, [GradualPruning(sparsity, begin=1, end=1, frequency=1)])
        yield _row(task, model, BEFORE, seed, compression, _nonzero(model))
        model = _pruned(copy.deepcopy(dense), sparsity, task.images)
        yield _row(task, model, AFTER, seed, compression, _nonzero(model))
        # The narrowest one that has at least as many weights, which favours it.
        width = next(width for width in count(1) if _weights(task.factory(width, seed)) >= weights / compression)
        model = task.train(task.factory(width, seed), seed)
        yield _row(task, model, SMALL, seed, compression, _weights(model))


def _unshared(task: Task, seed: int) -> Iterator[Row]:
    """One weight a value: folded memory of any deviation against dense training, and ROAST as published."""
    dense = task.train(task.factory(task.width, seed), seed)
    settings: list[tuple[str, float | None]] = [(FOLD, None), (FOLD, SMALL_DEVIATION), (TILE, None), (TILE, SMALL_DEVIATION)]
    for label, deviation in settings:
        method = ParameterSharing(1.0, seed=seed, deviation=deviation, finish="dense", **SHARED[label])
        model = task.train(task.factory(task.width, seed), seed, [method])
        row = _row(task, model, label, seed, 1.0, method.report()["values"])
        pairs = zip(model.parameters(), dense.parameters(), strict=True)
        difference = max(float(((ours - theirs).norm() / theirs.norm()).detach()) for ours, theirs in pairs)
        told = difference if math.isfinite(difference) else None
        yield {**row, "deviation": deviation or "that of the weights", "difference": told}


def _row(task: Task, model: nn.Module, method: str, seed: int, compression: float, values: int) -> Row:
    return {
        "task": task.images.name, "compression": compression, "method": method, "seed": seed, "values": values,
        "accuracy": vision.accuracy(model, task.images.test), "bytes": stored_bytes(to_sparse(copy.deepcopy(model))),
        "products": vision.products(model, task.images.test.pixels[:1]),
    }  # fmt: skip


def _weights(model: nn.Module) -> int:
    return sum(weight.numel() for weight in prunable(model).values())


def _nonzero(model: nn.Module) -> int:
    return sum(int(weight.count_nonzero()) for weight in prunable(model).values())


@torch.no_grad()
def _pruned(model: nn.Module, sparsity: float, images: vision.Images) -> nn.Module:
    for weight in prunable(model).values():
        weight.mul_(magnitude_mask(weight, sparsity))
    vision.recalibrate(model, images.train.pixels)
    return model


def _accuracy(rows: Sequence[Row], row: Row, method: str) -> float:
    keys = ("task", "compression", "seed")
    same = (other for other in rows if other["method"] == method and all(other[key] == row[key] for key in keys))
    return float(next(same)["accuracy"])


def _differences(rows: Sequence[Row], rival: str, least: float = 10) -> list[float]:
    """By how much folded sharing is more accurate than ``rival``, for each task, budget and seed."""
    ours = [row for row in rows if row["method"] == FOLD and row["compression"] >= least]
    return [row["accuracy"] - _accuracy(rows, row, rival) for row in ours]


def _notes(rows: Sequence[Row], tasks: Sequence[Task]) -> Iterator[str]:
    for task in tasks:
        own = [row for row in rows if row["task"] == task.images.name]
        for compression in task.compressions:
            here = [row for row in own if row["compression"] == compression]
            methods = dict.fromkeys(row["method"] for row in here)
            means = {method: statistics.mean(row["accuracy"] for row in here if row["method"] == method) for method in methods}
            told = ", ".join(f"{method} {mean:.3f}" for method, mean in means.items())
            yield f"{task.images.name}, {compression:g} weights a value, mean accuracy of {len(SEEDS)} seeds: {told}"
    for rival in (AFTER, SMALL, PLAIN, SUMMED):
        differences = _differences(rows, rival)
        wins = sum(difference > 0 for difference in differences)
        yield f"against '{rival}' folded sharing wins {wins} of {len(differences)}, worst {min(differences):+.3f}"
    single = [row for row in rows if "difference" in row]
    for method in (FOLD, TILE):
        own = [row for row in single if row["method"] == method]
        worst = max(math.inf if row["difference"] is None else row["difference"] for row in own)
        least = min(row["accuracy"] for row in own)
        yield f"one weight a value, {method}: weights end within {worst:.2g} of dense training relatively, accuracy at least {least:.3f}"
    yield "sharing saves memory and no product; bytes of pruned networks include where values are, which the comparison does not charge"
