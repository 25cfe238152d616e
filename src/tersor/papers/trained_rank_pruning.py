"""Trained rank pruning against cutting an ordinarily trained network to the same ranks, with and without fine-tuning."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from tersor.papers import vision
from tersor.papers.frame import Paper, Result, Row, measured
from tersor.training import TrainedRankPruning, export_onnx, factor_model, stored_bytes

PAPER = Paper(
    key="trained-rank-pruning",
    claim="At equal products, a network whose weights are cut to a low rank again and again in training is better than an ordinarily "
    "trained one that is cut to the same ranks, without fine-tuning and with it.",
    where="tersor.training.TrainedRankPruning, tersor.training.factor_layer",
)

SEEDS = (0, 1, 2)
SETTINGS: tuple[tuple[Any, float], ...] = (("channel", 0.98), ("channel", 0.9), ("spatial", 0.98), ("spatial", 0.9))
QUICK_SETTINGS: tuple[tuple[Any, float], ...] = (("channel", 0.8), ("spatial", 0.8))
TRAINED, AFTER, PLAIN = "cut in training", "cut after training", "not cut"


@dataclass(frozen=True)
class Bench:
    """Pictures and how networks are trained on them.

    Attributes:
        images: The task.
        width: Of the network.
        plan: Of the training.
        tuning: Of the fine-tuning, at a fifth of the peak rate.
    """

    images: vision.Images
    width: int
    plan: vision.Plan
    tuning: vision.Plan

    def network(self, seed: int) -> nn.Module:
        """A fresh network."""
        return vision.SmallConvNet(self.images.train.pixels.shape[1], self.images.classes, self.width, seed)

    def method(self, scheme: Any, energy: float) -> TrainedRankPruning:
        """A truncation every five steps, as the authors do; the first layer and the classifier are left alone, as with them."""
        return TrainedRankPruning(energy, period=5, scheme=scheme, ignore=["conv1", "head"])

    def row(self, model: nn.Module, method: str, seed: int, **extra: Any) -> Row:
        """Judge a network on the test pictures, with its sizes."""
        pixels = self.images.test.pixels[:1]
        return {
            "method": method, "seed": seed, **extra, "accuracy": vision.accuracy(model, self.images.test),
            "products": vision.products(model, pixels), "bytes": stored_bytes(model),
            "latency_ms": _latency(model, pixels) if seed == SEEDS[0] and not extra.get("tuned") else None,
        }  # fmt: skip


def run(quick: bool) -> Result:
    """Train networks of three seeds with and without truncations, and cut them to the same ranks."""
    if quick:
        plan = vision.Plan(epochs=20, flip=False)
        bench = Bench(vision.digits(), 16, plan, replace(plan, epochs=2, rate=plan.rate / 5))
    else:
        plan = vision.Plan(epochs=5)
        bench = Bench(vision.cifar(6000, 1000, 5000), 16, plan, replace(plan, epochs=1, rate=plan.rate / 5))
    settings = QUICK_SETTINGS if quick else SETTINGS
    rows = list(measured(row for seed in SEEDS for row in _rows(bench, seed, settings)))
    # Where the factors would save nothing there is nothing to compare.
    settings = tuple(setting for setting in settings if len(_of(rows, TRAINED, setting, False)) == len(SEEDS))
    margin = min(_margin(rows, setting, tuned) for setting in settings for tuned in (False, True))
    notes = [_note(rows, setting) for setting in settings]
    return Result(
        rows, "singular value decomposition of an ordinarily trained network at the same ranks, batch norms estimated anew", margin, SEEDS,
        margin > 0, (bench.images.name,), notes,
    )  # fmt: skip


def _rows(bench: Bench, seed: int, settings: tuple[tuple[Any, float], ...]) -> Iterator[Row]:
    dense = vision.fit(bench.network(seed), bench.images, bench.plan, seed=seed).model
    yield bench.row(dense, PLAIN, seed)
    for scheme, energy in settings:
        method = bench.method(scheme, energy)
        trained = vision.fit(bench.network(seed), bench.images, bench.plan, seed=seed, methods=[method], finalize=False)
        whole = vision.accuracy(trained.model, bench.images.test)
        assert trained.compression is not None
        trained.compression.finalize()
        report = method.report()
        ranks = {name: report["ranks"][name] for name in report["smaller"]}
        extra = {"scheme": scheme, "energy": energy, "ranks": "+".join(str(rank) for rank in report["ranks"].values())}
        if not ranks:
            continue
        afterwards = copy.deepcopy(dense)
        factor_model(afterwards, ranks, scheme)
        for label, model, before in ((TRAINED, trained.model, whole), (AFTER, afterwards, vision.accuracy(dense, bench.images.test))):
            vision.recalibrate(model, bench.images.train.pixels[:1000])
            yield bench.row(model, label, seed, **extra, tuned=False, before_the_cut=before)
            vision.fit(model, bench.images, bench.tuning, seed=seed + 100)
            yield bench.row(model, label, seed, **extra, tuned=True)


def _latency(model: nn.Module, pixels: Any) -> float:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(model, (pixels,), path)
        return vision.latency(path, pixels)


def _of(rows: list[Row], method: str, setting: tuple[Any, float], tuned: bool) -> list[Row]:
    return [
        row for row in rows if row["method"] == method and (row.get("scheme"), row.get("energy")) == setting and row.get("tuned") == tuned
    ]


def _mean(rows: list[Row], key: str = "accuracy") -> float:
    return float(sum(row[key] for row in rows)) / max(len(rows), 1)


def _margin(rows: list[Row], setting: tuple[Any, float], tuned: bool) -> float:
    """Accuracy gained by truncations in training over the cut afterwards, in the mean over seeds."""
    return _mean(_of(rows, TRAINED, setting, tuned)) - _mean(_of(rows, AFTER, setting, tuned))


def _note(rows: list[Row], setting: tuple[Any, float]) -> str:
    scheme, energy = setting
    dense = [row for row in rows if row["method"] == PLAIN]
    first = _of(rows, TRAINED, setting, False)
    saved = _mean(dense, "products") / max(_mean(first, "products"), 1)
    told = ", ".join(
        f"{method} {_mean(_of(rows, method, setting, False)):.3f}, fine-tuned {_mean(_of(rows, method, setting, True)):.3f}"
        for method in (TRAINED, AFTER)
    )
    lost = _mean(first, "before_the_cut") - _mean(first)
    return (
        f"{scheme}, energy {energy:g}, {saved:.2f} times fewer products: {told}; the last cut takes {lost:.3f} from the former; "
        f"not cut {_mean(dense):.3f}"
    )
