"""Maestro: ordered factors find known decompositions, and are cut at any rank for less than a trained network is."""

from __future__ import annotations

import copy
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.papers import vision
from tersor.papers.frame import Paper, Result, Row, measured
from tersor.training import Compression, Maestro, OrderedLayer, cut_ranks, export_onnx, stored_bytes

PAPER = Paper(
    key="maestro",
    claim="Factors trained at ranks drawn anew for each step recover the truncated singular value decomposition of a linear map at every "
    "rank; cut to a quarter of their ranks they leave a network more accurate than a plainly trained one cut by singular values, and a "
    "stronger lasso leaves lower ranks.",
    where="tersor.training.Maestro, tersor.training.cut_ranks",
)

SEEDS = (0, 1, 2)
PLAIN, ONE_PASS, TWO_PASSES = "trained plainly, cut by SVD", "Maestro", "Maestro, two passes"
FRACTIONS = (1.0, 0.5, 0.25, 0.125)
CLAIMED = 0.25
# Of the largest singular value: how far a prefix may be from the best matrix of its rank.
NEAR, FAR = 0.03, 0.2
SINGULAR = (9.5, 6.9, 3.7)
# These stay dense: the first layer, as in the paper, and the classifier.
IGNORED = ("conv1", "head")
LASSOS = (1e-3, 5e-3, 1e-2)
THRESHOLD = 0.02


@dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        images: The pictures.
        plan: How networks are trained; the same for all.
        width: Of the network.
    """

    images: vision.Images
    plan: vision.Plan
    width: int

    def network(self, seed: int) -> nn.Module:
        """A fresh network."""
        return vision.SmallConvNet(self.images.train.pixels.shape[1], self.images.classes, self.width, seed)


class TwoPasses(nn.Module):
    """A network whose training pass gives logits at full rank and at the drawn one, ``[2, n, classes]``.

    Args:
        network: With the layers of ``maestro`` in it, once that is attached.
        maestro: Which draws.
    """

    def __init__(self, network: nn.Module, maestro: Maestro) -> None:
        super().__init__()
        self.network = network
        # In a tuple: the method is no module, and holds layers of this one.
        self._maestro = (maestro,)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits."""
        if not self.training:
            logits: Tensor = self.network(pixels)
            return logits
        with self._maestro[0].full_rank():
            full = self.network(pixels)
        return torch.stack([full, self.network(pixels)])


def run(quick: bool) -> Result:
    """Recover a decomposition, cut networks of three seeds at several ranks, and sweep the lasso."""
    linear = list(measured(row for seed in SEEDS for row in _linear(seed)))
    digits = _digits()
    task = digits if quick else _photographs()
    cuts = list(measured(row for seed in SEEDS for row in _cuts(task, seed)))
    sweep = list(measured(row for seed in SEEDS for row in _sweep(digits, seed)))
    margins = [_margin(cuts, seed, ONE_PASS, CLAIMED) for seed in SEEDS]
    recovered = all(row["worst_prefix"] <= NEAR if row["method"] == ONE_PASS else row["worst_prefix"] >= FAR for row in linear)
    falls = all(_falls([row["total_rank"] for row in sweep if row["seed"] == seed]) for seed in SEEDS)
    return Result(
        [*linear, *cuts, *sweep], f"singular values of the same network trained plainly, at {CLAIMED:g} of the ranks", min(margins), SEEDS,
        min(margins) > 0 and recovered and falls, list(dict.fromkeys(["planted matrices of rank 3", task.images.name, digits.images.name])),
        [*_linear_notes(linear), *_cut_notes(cuts), *_sweep_notes(sweep, falls)],
    )  # fmt: skip


def _digits() -> Task:
    return Task(vision.digits(), vision.Plan(epochs=20, flip=False), 8)


def _photographs() -> Task:
    return Task(vision.cifar(5000, 1000, 5000), vision.Plan(epochs=4), 16)


def _linear(seed: int) -> Iterator[Row]:
    """Gradient descent on a planted 6 x 9 matrix of rank 3, which uniform inputs of a linear map amount to."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(size, 3, generator=generator)).Q for size in (6, 9))
    target = left @ torch.diag(torch.tensor(SINGULAR)) @ right.T
    start = torch.randn(6, 9, generator=generator) / 3
    for label, sampler in ((ONE_PASS, "one_layer"), ("factors, no ranks drawn", "none")):
        model = nn.Sequential(nn.Linear(9, 6, bias=False))
        model[0].weight.data = start.clone()
        compression = Compression(model, [Maestro(sampler, group_lasso=0.0)], seed=seed)  # type: ignore[arg-type]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        compression.attach(optimizer)
        for _ in range(2000):
            optimizer.zero_grad()
            F.mse_loss(model(torch.eye(9)), target.T).backward()
            optimizer.step()
        layer = model[0]
        assert isinstance(layer, OrderedLayer)
        errors = _prefix_errors(layer, target)
        yield {
            "task": "planted matrix", "method": label, "seed": seed, "worst_prefix": max(errors), "whole": errors[-1],
            "importance": " ".join(f"{value:.3g}" for value in layer.importance().tolist()),
        }  # fmt: skip


@torch.no_grad()
def _prefix_errors(layer: OrderedLayer, target: Tensor) -> list[float]:
    """Distance of each prefix from the best matrix of its rank, in parts of the largest singular value."""
    u, s, vh = torch.linalg.svd(target, full_matrices=False)
    best = [u[:, :rank] * s[:rank] @ vh[:rank] for rank in range(1, len(s) + 1)]
    return [float(torch.linalg.matrix_norm(layer.matrix(rank) - part, 2) / s[0]) for rank, part in enumerate(best, 1)]


def _cuts(task: Task, seed: int) -> Iterator[Row]:
    """One training each way, cut at every fraction of the ranks; what a cut does to batch norms is estimated anew for all."""
    trained = {
        PLAIN: vision.fit(task.network(seed), task.images, task.plan, seed=seed),
        ONE_PASS: vision.fit(task.network(seed), task.images, task.plan, seed=seed, methods=[_maestro()], finalize=False),
        TWO_PASSES: _two_passes(task, seed),
    }
    # The same factors and the same cut: those of a decomposition that was just made are its truncation.
    Compression(trained[PLAIN].model, [_maestro()])
    for label, result in trained.items():
        for fraction in FRACTIONS:
            model = cut_ranks(copy.deepcopy(result.model), fraction).eval()
            vision.recalibrate(model, task.images.train.pixels[:1000])
            yield {
                "task": task.images.name, "method": label, "seed": seed, "rank_kept": fraction,
                "accuracy": vision.accuracy(model, task.images.test), "seconds": round(result.seconds, 1), **_cost(model, task),
                **(_latency(model, task) if (label, seed) == (ONE_PASS, SEEDS[0]) else {}),
            }  # fmt: skip


def _maestro(lasso: float = 0.0, threshold: float = 0.0) -> Maestro:
    return Maestro(group_lasso=lasso, threshold=threshold, ignore=IGNORED)


def _two_passes(task: Task, seed: int) -> vision.Trained:
    """The paper's loss: at full rank against labels, at the drawn rank against what the full rank says."""
    maestro = Maestro(group_lasso=0.0, threshold=0.0, ignore=[f"network.{name}" for name in IGNORED])
    wrapped = TwoPasses(task.network(seed), maestro)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits[0], labels) + F.cross_entropy(logits[1], logits[0].detach().softmax(1))

    trained = vision.fit(wrapped, task.images, task.plan, seed=seed, methods=[maestro], loss=loss, finalize=False)
    return vision.Trained(wrapped.network, trained.compression, trained.seconds, trained.validation)


def _sweep(task: Task, seed: int) -> Iterator[Row]:
    """Ranks that are left by lassos of growing weight, cut as training goes on."""
    for lasso in LASSOS:
        maestro = _maestro(lasso, THRESHOLD)
        trained = vision.fit(task.network(seed), task.images, task.plan, seed=seed, methods=[maestro])
        vision.recalibrate(trained.model, task.images.train.pixels[:1000])
        report: Mapping[str, Any] = maestro.report()
        yield {
            "task": task.images.name, "method": "Maestro, lasso", "seed": seed, "group_lasso": lasso,
            "total_rank": sum(report["ranks"].values()), "accuracy": vision.accuracy(trained.model, task.images.test),
            "ranks": " ".join(str(rank) for rank in report["ranks"].values()), "seconds": round(trained.seconds, 1),
            **_cost(trained.model, task),
        }  # fmt: skip


def _cost(model: nn.Module, task: Task) -> Row:
    return {"bytes": stored_bytes(model), "products": vision.products(model, task.images.test.pixels[:1])}


def _latency(model: nn.Module, task: Task) -> Row:
    """Of 16 pictures in onnxruntime; shapes decide it, not values, so that one method and seed tell it for all."""
    pixels = task.images.test.pixels[:16]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(model, (pixels,), path)
        return {"milliseconds": vision.latency(path, pixels)}


def _accuracy(cuts: Sequence[Row], seed: int, method: str, fraction: float) -> float:
    return float(next(row["accuracy"] for row in cuts if (row["seed"], row["method"], row["rank_kept"]) == (seed, method, fraction)))


def _margin(cuts: Sequence[Row], seed: int, method: str, fraction: float) -> float:
    return _accuracy(cuts, seed, method, fraction) - _accuracy(cuts, seed, PLAIN, fraction)


def _falls(values: Sequence[int]) -> bool:
    return all(after <= before for before, after in pairwise(values)) and values[-1] < values[0]


def _linear_notes(rows: Sequence[Row]) -> Iterator[str]:
    for method in dict.fromkeys(row["method"] for row in rows):
        worst = [row["worst_prefix"] for row in rows if row["method"] == method]
        yield f"planted matrix, {method}: the worst prefix is {min(worst):.2g} to {max(worst):.2g} of the largest singular value away"


def _cut_notes(cuts: Sequence[Row]) -> Iterator[str]:
    for fraction in FRACTIONS:
        labels = (PLAIN, ONE_PASS, TWO_PASSES)
        means = {label: statistics.mean(_accuracy(cuts, seed, label, fraction) for seed in SEEDS) for label in labels}
        told = ", ".join(f"{label} {mean:.3f}" for label, mean in means.items())
        one, two = (min(_margin(cuts, seed, label, fraction) for seed in SEEDS) for label in (ONE_PASS, TWO_PASSES))
        yield f"{fraction:g} of the ranks, mean accuracy: {told}; worst seed against the plain one {one:+.3f} and {two:+.3f}"


def _sweep_notes(sweep: Sequence[Row], falls: bool) -> Iterator[str]:
    for lasso in dict.fromkeys(row["group_lasso"] for row in sweep):
        own = [row for row in sweep if row["group_lasso"] == lasso]
        ranks, accuracies = [row["total_rank"] for row in own], [row["accuracy"] for row in own]
        yield f"lasso {lasso:g}: total rank {min(ranks)} to {max(ranks)}, accuracy {min(accuracies):.3f} to {max(accuracies):.3f}"
    yield "a stronger lasso never leaves a higher rank" if falls else "a stronger lasso does not always leave a lower rank"
