"""Bounds on the true error: worlds in which none is tight, and what compression makes of the one that counts bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tersor import layerwise
from tersor.limits import generalization as gen
from tersor.papers.frame import Paper, Result, Row, measured

PAPER = Paper(
    key="generalization-measures",
    claim="No estimate of the true error from sample and hypothesis alone is closer on average than the twin worlds allow, a hold-out set "
    "is; and on real digits only real compression makes the bound that counts bits say more than guessing, without ever being too low.",
    where="tersor.limits.generalization",
)

SEEDS = (0, 1, 2)
GUESSING = 0.9
DELTA = 0.05
# How much more training error still counts as the same.
SAME = 0.01


@dataclass(frozen=True)
class Size:
    """How much work the experiment spends."""

    trials: int
    hidden: int
    epochs: int
    bits: tuple[int, ...]


FULL, QUICK = Size(2000, 48, 8, (8, 5, 4, 3, 2)), Size(300, 12, 40, (8, 4, 3, 2))


def run(quick: bool) -> Result:
    """Audit bounds on twins, then train, compress and bound digit classifiers, with true and with random labels."""
    size = QUICK if quick else FULL
    rows = list(measured(_audits(size)))
    for seed in SEEDS:
        data = _small_digits(seed) if quick else _digits(seed)
        rows += measured(_classifiers(data, size, seed))
    twins = [row for row in rows if row["experiment"] == "twin"]
    # Four standard errors of a mean of numbers in [0, 1] are left to chance.
    chance = 4 * 0.5 / (2 * size.trials * len(SEEDS)) ** 0.5
    beaten = min(row["mean_error"] - row["gap"] for row in twins if row["bound"] != "hold-out")
    hold_out = max(row["mean_error"] - row["gap"] for row in twins if row["bound"] == "hold-out")
    digits = [row for row in rows if row["experiment"] == "digits"]
    too_low = max(row["error"] - row["occam"] for row in digits)
    whole = min(row["occam"] for row in digits if row["stored"] == "float32" and row["labels"] == "true")
    best = max(min(row["occam"] for row in digits if row["seed"] == seed and row["labels"] == "true") for seed in SEEDS)
    bayes = max(row["pac_bayes"] for row in digits if row["stored"] == "float32" and row["labels"] == "true")
    margin = GUESSING - best
    notes = [
        f"estimates from sample and hypothesis: off by the gap and at least {beaten:+.4f} (chance {chance:.4f}); hold-out {hold_out:+.4f}",
        f"the bound of the uncompressed classifiers is {whole:.3f} at best, of the compressed ones {best:.3f} at worst of the seeds",
        _monotone(digits),
        f"without compression the PAC-Bayes bound is {bayes:.3f} at worst: bits are not the only way below guessing",
        "the twins concern bounds that must be tight for every distribution; they do not say that bounds fail on data we meet",
        "path norm and spectral complexity are measures with constants of 1, shown to compare and not as bounds",
    ]
    holds = beaten >= -chance and hold_out < 0 and too_low <= 0 and whole >= GUESSING and margin > 0
    data_names = ["scikit-learn digits"] if quick else ["images/mnist.npz"]
    return Result(rows, "guessing, which the bound of the uncompressed model does not get below", margin, SEEDS, holds, data_names, notes)


def _audits(size: Size) -> Iterator[Row]:
    """Every estimator on every twin, over all seeds together."""
    bounds: dict[str, gen.Estimator] = {
        "training error": lambda draw: draw.wrong / len(draw.labels),
        "half of guessing": lambda draw: (1 - 1 / draw.labels_count) / 2,
        "occam": lambda draw: gen.occam_bound(
            bits=len(draw.hypothesis) * float(np.log2(draw.labels_count)), examples=len(draw.labels), errors=draw.wrong
        ),
        "share of non-zero entries": lambda draw: float(np.count_nonzero(draw.hypothesis)) / len(draw.hypothesis),
        "hold-out": lambda draw: draw.held_out,
    }
    twins: dict[str, gen.Twin] = {"shattered, D=40, n=20": gen.ShatteredTwin(40, 20)}
    twins |= {f"linear over F_{field}": gen.FieldTwin(field, 8, 24) for field in (2, 31)}
    audits = [gen.audit(bounds, twins, trials=size.trials, seed=seed) for seed in SEEDS]
    for runs in zip(*audits, strict=True):
        row: Row = {"experiment": "twin", "bound": runs[0].bound, "pair": runs[0].pair, "gap": runs[0].gap}
        for name in ("mean_error", "worst_error", "violated", "vacuous"):
            row[name] = float(np.mean([getattr(one, name) for one in runs]))
        yield row


@dataclass(frozen=True)
class _Data:
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def _digits(seed: int) -> _Data:
    """MNIST at half its resolution; the test images are never trained on."""
    from tersor import data

    with np.load(data.folder("images") / "mnist.npz") as stored:
        arrays = {name: torch.from_numpy(stored[name]) for name in ("x_train", "y_train", "x_test", "y_test")}
    small = {name: nn.functional.avg_pool2d(arrays[name].float()[:, None] / 255, 2).flatten(1) for name in ("x_train", "x_test")}
    return _Data(small["x_train"], arrays["y_train"].long(), small["x_test"], arrays["y_test"].long())


def _small_digits(seed: int) -> _Data:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    x, y = torch.from_numpy(images).float()[order] / 16, torch.from_numpy(labels).long()[order]
    return _Data(x[:1400], y[:1400], x[1400:], y[1400:])


def _classifiers(data: _Data, size: Size, seed: int) -> Iterator[Row]:
    random = torch.Generator().manual_seed(seed)
    shuffled = data.y[torch.randperm(len(data.y), generator=random)]
    for name, labels in (("true", data.y), ("random", shuffled)):
        first, second, start = _trained(data.x, labels, size, random)
        for stored, small, nbytes in _compressions(first, second, data.x, size.bits):
            wrong = int((_predict(small, data.x) != labels).sum())
            error = _error(_predict(small, data.x_test), data.y_test, name == "random")
            # The description also says which of the ways of storing it is used: one code for all of them.
            occam = gen.occam_bound(bits=8.0 * nbytes + np.log2(len(size.bits) + 1), examples=len(labels), errors=wrong, delta=DELTA)
            row: Row = {
                "experiment": "digits", "seed": seed, "labels": name, "stored": stored, "bytes": nbytes, "train_error": wrong / len(labels),
                "error": error, "occam": occam,
            }  # fmt: skip
            if stored == "float32":
                row |= _others(small, start, data, labels, wrong)
            yield row


def _error(predicted: Tensor, truth: Tensor, shuffled: bool) -> float:
    """Error on test images; if their labels are shuffled too, its mean over all orders."""
    if not shuffled:
        return float((predicted != truth).double().mean())
    shares = [torch.bincount(labels, minlength=10).double() / len(labels) for labels in (predicted, truth)]
    return float(1 - shares[0] @ shares[1])


def _trained(x: Tensor, y: Tensor, size: Size, random: torch.Generator) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Matrices ``[out, in + 1]`` of a network of one hidden layer, biases as a last input, and where they started."""
    classes, width = 10, x.shape[1] + 1
    weights = [
        torch.randn(size.hidden, width, generator=random) * width**-0.5,
        torch.randn(classes, size.hidden + 1, generator=random) * size.hidden**-0.5,
    ]
    start = [weight.clone() for weight in weights]
    for weight in weights:
        weight.requires_grad_()
    optimizer = torch.optim.Adam(weights, lr=2e-3)
    x = _with_one(x)
    for _ in range(size.epochs):
        for rows in torch.randperm(len(x), generator=random).split(200):
            loss = nn.functional.cross_entropy(_with_one((x[rows] @ weights[0].T).relu()) @ weights[1].T, y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return weights[0].detach(), weights[1].detach(), start


def _with_one(x: Tensor) -> Tensor:
    return torch.cat((x, torch.ones_like(x[:, :1])), 1)


def _outputs(weights: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    return _with_one((_with_one(x) @ weights[0].T).relu()) @ weights[1].T


def _predict(weights: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    return _outputs(weights, x).argmax(1)


def _compressions(
    first: Tensor, second: Tensor, x: Tensor, bits: tuple[int, ...]
) -> Iterator[tuple[str, tuple[Tensor, Tensor], int]]:  # fmt: skip
    """The network as it is, and by GPTQ at every number of bits, the second layer fitted to what the first then puts out."""
    yield "float32", (first, second), 4 * (first.numel() + second.numel())
    inputs = _with_one(x)
    stats = layerwise.LayerStats.from_inputs(inputs)
    for count in bits:
        small = layerwise.gptq(first, stats, bits=count, group_size=-1, clip="mse")
        hidden = layerwise.LayerStats.from_inputs(_with_one((inputs @ small.dense().T).relu()))
        # The last layer is small and keeps four bits at least.
        last = layerwise.gptq(second, hidden, bits=max(count, 4), group_size=-1, clip="mse")
        yield f"gptq, {count} bits", (small.dense(), last.dense()), small.nbytes + last.nbytes


def _others(weights: tuple[Tensor, Tensor], start: list[Tensor], data: _Data, labels: Tensor, wrong: int) -> Row:
    """The rivals, on the network as it was trained."""
    outputs = _outputs(weights, data.x)
    own = outputs.gather(1, labels[:, None])[:, 0]
    margins = own - outputs.scatter(1, labels[:, None], -torch.inf).amax(1)
    margin = float(margins.quantile(0.1).clamp(min=1e-3))
    matrices = [weight.numpy() for weight in weights]
    held = int((_predict(weights, data.x_test) != data.y_test).sum())
    return {
        "hold_out": gen.holdout_bound(examples=len(data.y_test), errors=held, delta=DELTA),
        "pac_bayes": _pac_bayes(weights, start, data.x, labels),
        "spectral": gen.spectral_complexity(matrices, margin, len(labels)), "path_norm": gen.path_norm([matrices[0], matrices[1][:, :-1]]),
        "margin": margin,
    }  # fmt: skip


def _pac_bayes(weights: tuple[Tensor, Tensor], start: list[Tensor], x: Tensor, labels: Tensor) -> float:
    """The best over a grid of deviations, which the union over the grid pays for; the prior is the start of training."""
    random, best = torch.Generator().manual_seed(0), 1.0
    grid = (0.01, 0.03, 0.1, 0.3)
    for sigma in grid:
        losses = []
        for _ in range(5):
            noisy: Any = tuple(weight + sigma * torch.randn(weight.shape, generator=random) for weight in weights)
            losses.append(float((_predict(noisy, x) != labels).float().mean()))
        divergence = gen.gaussian_divergence([weight.numpy() for weight in weights], [weight.numpy() for weight in start], sigma)
        # The mean over the posterior is estimated from five draws; Hoeffding's slack for it is added.
        mean = min(1.0, float(np.mean(losses)) + (np.log(2 * len(grid) / DELTA) / (2 * 5 * len(labels))) ** 0.5)
        best = min(best, gen.pac_bayes_bound(divergence=divergence, examples=len(labels), loss=mean, delta=DELTA / (2 * len(grid))))
    return best


def _monotone(digits: list[Row]) -> str:
    """Whether fewer bytes at the same training error always meant a lower bound."""
    for seed in SEEDS:
        own = [row for row in digits if row["seed"] == seed and row["labels"] == "true"]
        same = sorted((row for row in own if row["train_error"] <= own[0]["train_error"] + SAME), key=lambda row: row["bytes"])
        bounds = [row["occam"] for row in same]
        if bounds != sorted(bounds):
            return f"seed {seed}: fewer bytes at the same training error did NOT always lower the bound: {bounds}"
    return f"at the same training error (within {SAME:g}) fewer bytes always lowered the bound"
