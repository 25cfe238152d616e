"""Sparsity-informed adaptive pruning against lottery tickets and one shot: what is left at the accuracy of the dense network."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.information import pq_index
from tersor.papers import vision
from tersor.papers.frame import Paper, Result, Row, measured
from tersor.training import SAP, Compression, LotteryTicket, stored_bytes, to_sparse
from tersor.training.rounds import PruningRounds

PAPER = Paper(
    key="sap",
    claim="After as many trainings, pruning by what the PQ index allows leaves fewer weights at an accuracy within a point of the dense "
    "network than lottery tickets and than pruning in one shot, the options of each chosen on validation data.",
    where="tersor.training.SAP, tersor.training.LotteryTicket, tersor.information.pq_index",
)

SEEDS = (0, 1, 2)
OURS, PUBLISHED, LOTTERY, ONE_SHOT = "SAP", "SAP as published", "lottery ticket", "one shot"
# Of each method the first is the usual choice, which is what the quick run takes.
CANDIDATES: dict[str, list[dict[str, Any]]] = {
    OURS: [{"p": 1.0, "q": 2.0}, {"p": 0.5, "q": 1.0, "gamma": 3.0}, {"p": 0.5, "q": 1.0, "gamma": 5.0}],
    PUBLISHED: [{"p": 0.5, "q": 1.0}],
    LOTTERY: [{"fraction": 0.2}, {"fraction": 0.4}],
    ONE_SHOT: [{"fraction": 0.2, "ranking": "first"}, {"fraction": 0.4, "ranking": "first"}],
}
# Choices are made on a network that is not reported.
_PROBE = 100
# How far below the dense network a pruned one may be on validation data.
_TOLERANCE = 0.01


@dataclass(frozen=True)
class Task:
    """A network of two hidden layers, and how long a round of its training is.

    Attributes:
        images: Data.
        hidden: Widths.
        epochs: A round.
        batch: Images a step.
        rounds: Removals; one training more.
    """

    images: vision.Images
    hidden: tuple[int, int]
    epochs: int
    batch: int
    rounds: int


@dataclass(frozen=True)
class Round:
    """The network at the end of a round, before anything more is removed."""

    model: nn.Module
    kept: float
    index: float
    validation: float


def run(quick: bool) -> Result:
    """Choose options and, of every training, the last good round on validation data; then look at the test data."""
    small = Task(vision.digits(), (128, 128), 15, 125, 9 if quick else 14)
    tasks = [small] if quick else [small, Task(vision.mnist(), (128, 256), 6, 250, 13)]
    rows: list[Row] = []
    notes: list[str] = []
    for task in tasks:
        chosen = {method: candidates[0] if quick else _choice(candidates, task) for method, candidates in CANDIDATES.items()}
        own, curves = compared(task, chosen)
        rows += own
        notes += shapes(task, curves)
        if not quick:
            _draw(task, curves)
    margin, verdict = judge(rows)
    data = ["digits of scikit-learn", *([] if quick else ["mnist"])]
    return Result(rows, "lottery tickets and one shot", margin, SEEDS, margin > 0, data, [*verdict, *notes])


def compared(task: Task, chosen: Mapping[str, dict[str, Any]]) -> tuple[list[Row], dict[str, list[list[Round]]]]:
    """Every method with its ``chosen`` options from every seed: rows, and the rounds that they were taken from."""
    rows: list[Row] = []
    curves: dict[str, list[list[Round]]] = {}
    for method, options in chosen.items():
        for seed in SEEDS:
            curves.setdefault(method, []).append(list(_train(options, task, seed)))
            rows += measured([_row(method, options, task, seed, curves[method][-1])])
    return rows, curves


def _choice(candidates: list[dict[str, Any]], task: Task) -> dict[str, Any]:
    """The options that leave fewest weights at good accuracy, both by validation data."""
    if len(candidates) == 1:
        return candidates[0]
    return min(candidates, key=lambda own: _good(list(_train(own, task, _PROBE))).kept)


def judge(rows: list[Row]) -> tuple[float, list[str]]:
    """The smallest mean, over seeds, of the factor in weights by which SAP is ahead, less 1."""
    notes, margins = [], []
    for name in dict.fromkeys(row["data"] for row in rows):
        for baseline in (LOTTERY, ONE_SHOT):
            pairs = [_kept(rows, name, method) for method in (baseline, OURS)]
            logs = [math.log(theirs / ours) for theirs, ours in zip(*pairs, strict=True)]
            factor = math.exp(statistics.mean(logs))
            margins.append(factor - 1)
            ahead = sum(value > 0 for value in logs)
            notes.append(f"{name}: {baseline} keeps {factor:.2f} times the weights of {OURS}, ahead in {ahead} of {len(logs)} seeds")
    return min(margins), notes


def _kept(rows: list[Row], name: str, method: str) -> list[float]:
    return [row["kept"] for row in rows if (row["data"], row["method"]) == (name, method)]


class _Network(nn.Module):
    def __init__(self, inputs: int, hidden: tuple[int, int], classes: int, seed: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, hidden[0]), nn.Linear(*hidden)
        self.head = nn.Linear(hidden[1], classes)
        vision.initialize(self, seed)

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.second(torch.relu(self.first(pixels.flatten(1))))))
        return logits


def _train(options: dict[str, Any], task: Task, seed: int) -> Iterator[Round]:
    """All rounds, each with a learning rate that falls from its start to its end."""
    train = task.images.train
    model = _Network(train.pixels[0].numel(), task.hidden, task.images.classes, seed)
    kind: type[PruningRounds] = LotteryTicket if "fraction" in options else SAP
    method = kind(rounds=task.rounds, epochs=task.epochs, **options)
    compression = Compression(model, [method], seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    compression.attach(optimizer)
    generator = torch.Generator().manual_seed(seed)
    steps = task.epochs * (len(train.labels) // task.batch)
    for _ in range(task.rounds + 1):
        step = 0
        for epoch in range(1, task.epochs + 1):
            model.train()
            order = torch.randperm(len(train.labels), generator=generator)
            for index in order.split(task.batch)[: len(order) // task.batch]:
                optimizer.param_groups[0]["lr"] = 0.1 * 0.5 * (1 + math.cos(math.pi * step / steps))
                optimizer.zero_grad()
                F.cross_entropy(model(train.pixels[index]), train.labels[index]).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                step += 1
            if epoch == task.epochs:
                yield _seen(model, method, task)
            compression.epoch_end()


def _seen(model: nn.Module, method: PruningRounds, task: Task) -> Round:
    parameters = dict(model.named_parameters())
    kept = torch.cat([mask.flatten() for mask in method.masks.values()])
    weights = torch.cat([parameters[name].detach().flatten() for name in method.masks])
    accuracy = vision.accuracy(model, task.images.validation)
    return Round(copy.deepcopy(model), float(kept.float().mean()), float(pq_index(weights, mask=kept)), accuracy)


def _good(rounds: list[Round]) -> Round:
    """The one of fewest weights that validation data let pass."""
    return min((entry for entry in rounds if entry.validation >= rounds[0].validation - _TOLERANCE), key=lambda entry: entry.kept)


def _row(method: str, options: dict[str, Any], task: Task, seed: int, rounds: list[Round]) -> Row:
    """The smallest good network, and what it does on the test data."""
    dense, chosen = rounds[0], _good(rounds)
    return {
        "data": task.images.name, "method": method, "options": " ".join(f"{key}={value}" for key, value in options.items()), "seed": seed,
        "kept": chosen.kept, "trainings": rounds.index(chosen) + 1, "accuracy": vision.accuracy(chosen.model, task.images.test),
        "dense_accuracy": vision.accuracy(dense.model, task.images.test),
        "bytes": stored_bytes(to_sparse(copy.deepcopy(chosen.model))), "dense_bytes": stored_bytes(dense.model),
        "kept_in_the_end": rounds[-1].kept, "index_first": dense.index, "index_least": min(entry.index for entry in rounds),
        "index_last": rounds[-1].index,
    }  # fmt: skip


def shapes(task: Task, curves: dict[str, list[list[Round]]]) -> list[str]:
    """What the paper says of the curves, seed by seed."""
    shares = [[1 - after.kept / before.kept for before, after in pairwise(rounds[:6])] for rounds in curves[PUBLISHED]]
    slowing = [all(after < before for before, after in pairwise(own)) for own in shares]
    worst = max(rounds[0].validation - entry.validation for rounds in curves[OURS] for entry in rounds if entry.kept >= 0.12)
    dips = []
    for rounds in curves[LOTTERY]:
        least = min(range(len(rounds)), key=lambda place: rounds[place].index)
        dips.append(0 < least < len(rounds) - 1)
    name = task.images.name
    return [
        f"{name}: {PUBLISHED} removes a smaller share in each of the first five rounds in {sum(slowing)} of {len(slowing)} seeds",
        f"{name}: {OURS} is at most {worst:.4f} below dense on validation data while 12 % of the weights are left",
        f"{name}: the index of lottery tickets falls and rises again in {sum(dips)} of {len(dips)} seeds",
    ]


def _draw(task: Task, curves: dict[str, list[list[Round]]]) -> None:
    from tersor.papers.catalogue import results_folder
    from tersor.papers.plots import line_chart

    points: list[Row] = []
    for method, runs in curves.items():
        for place in zip(*runs, strict=True):
            test = [vision.accuracy(entry.model, task.images.test) for entry in place]
            kept = statistics.mean(entry.kept for entry in place)
            points.append({"method": method, "weights kept": kept, "test accuracy": statistics.mean(test)})
    file = results_folder() / f"sap-{task.images.name}.svg".lower()
    line_chart(points, "weights kept", "test accuracy", file, title=f"Pruning in rounds on {task.images.name}, mean of three seeds")
