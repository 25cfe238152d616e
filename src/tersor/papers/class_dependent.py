"""Class-dependent compression: how many examples of a class pruned networks miss, with and without a loss that minds them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tersor.papers import vision
from tersor.papers.frame import Paper, Result, Row, measured
from tersor.training import ClassAwareLottery, ClassDependentLoss, Compression, decision_threshold, stored_bytes, to_sparse

PAPER = Paper(
    key="class-dependent",
    claim="Lottery tickets drawn with a class-dependent loss miss at least a quarter fewer examples of the class than class-agnostic ones, "
    "at a thirtieth of the weights, and lose no more than 0.005 of AUC; false alarms may rise.",
    where="tersor.training.ClassAwareLottery, tersor.training.ClassDependentLoss",
)

SEEDS = (0, 1, 2)
AGNOSTIC, WEIGHTED, OURS, CONTROLLED = "class-agnostic ticket", "weight 5", "weight 5 and ranking", "weight by control"
_TOLERANCE = 0.1  # of misses on validation data, for the controlled ticket
_ALARMS = 0.05  # share of the others at which misses are compared beside


@dataclass(frozen=True)
class Task:
    """One class against the rest.

    Attributes:
        images: With labels 0 and 1.
        net: A fresh network of one logit, from a seed.
        epochs: Of a round.
        batch: Pictures a step.
        rounds: Of halving.
        rate: Peak learning rate of each round.
        methods: What is compared.
    """

    images: vision.Images
    net: Callable[[int], nn.Module]
    epochs: int
    batch: int
    rounds: int
    rate: float
    methods: tuple[str, ...]


class Perceptron(nn.Module):
    """Two hidden layers of 128 and one logit.

    Args:
        inputs: Pixels of a picture.
        seed: Of the initial weights.
    """

    def __init__(self, inputs: int, seed: int) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(inputs, 128), nn.Linear(128, 128), nn.Linear(128, 1)
        vision.initialize(self, seed)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits ``[n, 1]``."""
        logits: Tensor = self.head(torch.relu(self.second(torch.relu(self.first(pixels.flatten(1))))))
        return logits


def run(quick: bool) -> Result:
    """Every loss, in rounds of halving; epochs and weights are chosen on validation data, test data is only counted on."""
    every = (AGNOSTIC, WEIGHTED, OURS, CONTROLLED)
    digits = _against(vision.digits(), 8, noise=1.0)
    tasks = [Task(digits, lambda seed: Perceptron(64, seed), 12, 100, 6, 0.1, every)]
    if not quick:
        mnist = _against(vision.mnist(4000, 1000), 8, noise=1.5)
        tasks.append(Task(mnist, lambda seed: Perceptron(784, seed), 5, 100, 6, 0.1, every))
        photographs = _against(vision.cifar(2500, 1000), 8, noise=0.0)
        net = lambda seed: vision.SmallConvNet(classes=1, width=12, seed=seed)  # noqa: E731 - as short as the others
        tasks.append(Task(photographs, net, 4, 100, 5, 0.1, every[:3]))
    rows = list(measured(row for task in tasks for seed in SEEDS for method in task.methods for row in _rows(task, method, seed)))
    margin, notes = _judge(rows)
    return Result(rows, "class-agnostic lottery tickets", margin, SEEDS, margin > 0, [task.images.name for task in tasks], notes)


def _against(images: vision.Images, positive: int, noise: float) -> vision.Images:
    """Label 1 for ``positive``, 0 for the rest, and pictures under noise that is the same whenever they are seen."""
    generator = torch.Generator().manual_seed(0)

    def part(own: vision.Part) -> vision.Part:
        return vision.Part(own.pixels + noise * torch.randn(own.pixels.shape, generator=generator), (own.labels == positive).long())

    name = f"{images.name}, {positive} against the rest" + (f", noise {noise:g}" if noise else "")
    return vision.Images(name, part(images.train), part(images.validation), part(images.test))


def _rows(task: Task, method: str, seed: int) -> Iterator[Row]:
    """The dense network and those from the first round on that leaves a twentieth of the weights at most."""
    if method == CONTROLLED:
        loss = ClassDependentLoss(1, weight=2.0, ranking=1.0)
    else:
        loss = ClassDependentLoss(1, weight=1.0 if method == AGNOSTIC else 5.0, ranking=1.0 if method == OURS else 0.0)
    net = task.net(seed)
    ticket = ClassAwareLottery(
        rounds=task.rounds, epochs=task.epochs, loss=loss, tolerance=_TOLERANCE if method == CONTROLLED else None,
        on_round=lambda model: _counts(model, task.images),
    )  # fmt: skip
    _train(net, ticket, loss, task, seed)
    report = ticket.report()
    for number, entry in enumerate(report["by_round"]):
        if number == 0 or entry["kept"] <= 0.05:
            last = number == task.rounds
            yield {
                "data": task.images.name, "method": method, "seed": seed, "round": number, "kept": entry["kept"],
                **{key: entry[key] for key in ("false_negatives", "false_positives", "auc", "missed_at_5_percent_alarms")},
                "weight": entry["weight"], "bytes": stored_bytes(to_sparse(net)) if last else None,
                "within_tolerance": str(report["within_tolerance"]) if last and "within_tolerance" in report else None,
            }  # fmt: skip


def _train(net: nn.Module, ticket: ClassAwareLottery, loss: ClassDependentLoss, task: Task, seed: int) -> None:
    """All rounds, each with a learning rate that falls from its start to its end."""
    train = task.images.train
    compression = Compression(net, [ticket], seed=seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=task.rate, momentum=0.9, weight_decay=5e-4)
    compression.attach(optimizer)
    generator = torch.Generator().manual_seed(seed)
    steps = task.epochs * (len(train.labels) // task.batch)
    for _ in range(task.rounds + 1):
        step = 0
        for _ in range(task.epochs):
            net.train()
            order = torch.randperm(len(train.labels), generator=generator)
            for index in order.split(task.batch)[: len(order) // task.batch]:
                optimizer.param_groups[0]["lr"] = task.rate * 0.5 * (1 + math.cos(math.pi * step / steps))
                optimizer.zero_grad()
                loss(net(train.pixels[index]), train.labels[index]).backward()
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                step += 1
            scores, positive = _scores(net.eval(), task.images.validation)
            compression.epoch_end({"auc": _auc(scores, positive), "false_negatives": int((scores[positive] <= 0).sum())})
    compression.finalize()


@torch.no_grad()
def _scores(net: nn.Module, part: vision.Part) -> tuple[Tensor, Tensor]:
    scores = torch.cat([net(pixels).reshape(-1) for pixels in part.pixels.split(500)])
    return scores, part.labels == 1


def _auc(scores: Tensor, positive: Tensor) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive.numpy(), scores.numpy()))


def _counts(net: nn.Module, images: vision.Images) -> dict[str, Any]:
    """Mistakes on the test data at the threshold of training, and misses at one that validation data sets for a share of alarms."""
    scores, positive = _scores(net, images.test)
    checked, wanted = _scores(net, images.validation)
    # The threshold that alarms for this share of the others: as many of their negated scores lie below it.
    others = int((~wanted).sum())
    threshold = -decision_threshold(-checked, ~wanted, min(int(_ALARMS * others), others - 1))
    return {
        "false_negatives": int((scores[positive] <= 0).sum()), "false_positives": int((scores[~positive] > 0).sum()),
        "auc": _auc(scores, positive), "missed_at_5_percent_alarms": int((scores[positive] <= threshold).sum()),
    }  # fmt: skip


def _judge(rows: Sequence[Row]) -> tuple[float, list[str]]:
    """By how much the share of misses saved exceeds a quarter, on the worst task; AUC that is lost beyond 0.005 makes it negative."""
    margins, notes = [], []
    for name in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == name]
        number = min(row["round"] for row in own if row["round"] > 0)
        dense = _mean(own, AGNOSTIC, 0)
        plain, ours = _mean(own, AGNOSTIC, number), _mean(own, OURS, number)
        saved = 1 - ours["false_negatives"] / plain["false_negatives"] if plain["false_negatives"] else 0.0
        loss = plain["auc"] - ours["auc"]
        margins.append(min(saved - 0.25, 0.005 - loss) if loss > 0.005 else saved - 0.25)
        cells = [f"dense {_text(dense)}"]
        cells += [f"{method} {_text(_mean(own, method, number))}" for method in dict.fromkeys(row["method"] for row in own)]
        notes.append(f"{name}, {plain['kept']:.1%} of the weights (misses / alarms / AUC / misses at 5 % alarms): {'; '.join(cells)}")
        held = [row["within_tolerance"] for row in own if row["within_tolerance"] is not None]
        if held:
            notes.append(f"{name}: control ends within its tolerance of validation misses in {held.count('True')} of {len(held)} seeds")
    return min(margins), notes


def _mean(rows: Sequence[Row], method: str, number: int) -> Mapping[str, float]:
    own = [row for row in rows if row["method"] == method and row["round"] == number]
    keys = ("kept", "false_negatives", "false_positives", "auc", "missed_at_5_percent_alarms")
    return {key: statistics.mean(row[key] for row in own) for key in keys}


def _text(mean: Mapping[str, float]) -> str:
    counts = f"{mean['false_negatives']:.1f} / {mean['false_positives']:.1f}"
    return f"{counts} / {mean['auc']:.3f} / {mean['missed_at_5_percent_alarms']:.1f}"
