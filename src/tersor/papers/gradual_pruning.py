"""Gradual pruning against pruning at once, pruning before training, and small dense networks with as many non-zeros."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tersor.papers import characters, vision
from tersor.papers.frame import Paper, Result, Row, measured
from tersor.training import GradualPruning, equal_nonzero_width, prunable, stored_bytes, to_sparse

PAPER = Paper(
    key="gradual-pruning",
    claim="At equal numbers of non-zeros, a network that is pruned gradually while it is trained beats a small dense one, a trained one "
    "that is pruned at once, and one that is pruned before training, on pictures as on text.",
    where="tersor.training.GradualPruning, tersor.training.equal_nonzero_width",
)

SEEDS = (0, 1, 2)
GRADUAL, LATE, ONCE, BEFORE, SMALL = "gradual", "at once in training", "at once after training", "before training", "small and dense"
RIVALS = (SMALL, ONCE, BEFORE)
# Sparsities that are asked for; the nearest width of a dense network then sets the exact one.
SPARSITIES = {"pictures": (0.85, 0.93, 0.97), "text": (0.9,)}


@dataclass(frozen=True)
class Task:
    """What is trained, and how its loss is told.

    Attributes:
        name: For the record.
        factory: A network of a width and a seed.
        train: Trains a network with methods on board, from a seed, in place.
        loss: Error rate, or bits a character, on the test data.
        width: Of the network that is pruned.
        steps: Of a training.
        ignore: Layers that are not pruned.
    """

    name: str
    factory: Callable[[int, int], nn.Module]
    train: Callable[[nn.Module, Sequence[GradualPruning], int], object]
    loss: Callable[[nn.Module], float]
    width: int
    steps: int
    ignore: tuple[str, ...]

    def pruning(self, sparsity: float, begin: float | int = 0.15, end: float | int = 0.7) -> GradualPruning:
        """Removals over more than half of the training, the rest to recover; fixed beforehand, chosen on nothing."""
        return GradualPruning(sparsity, begin=begin, end=end, frequency=max(self.steps // 24, 1), ignore=self.ignore)


def run(quick: bool) -> Result:
    """Train networks of three seeds on pictures and on text, at several sparsities."""
    pictures, text = _pictures(quick), _text(quick)
    sparsities = {"pictures": SPARSITIES["pictures"][1:] if quick else SPARSITIES["pictures"], "text": SPARSITIES["text"]}
    rows = list(measured(row for task in (pictures, text) for seed in SEEDS for row in _rows(task, seed, sparsities[task.name])))
    margins = {
        (task.name, width): min(_margin(rows, task.name, width, rival) for rival in RIVALS)
        for task in (pictures, text) for width in dict.fromkeys(row["rival_width"] for row in rows if row["task"] == task.name)
        if width is not None
    }  # fmt: skip
    margin = min(margins.values())
    data = ("digits", "python-docs") if quick else ("CIFAR-10 (JPEG)", "TinyShakespeare")
    return Result(
        rows, "the best of a small dense network with as many non-zeros, pruning after training and pruning before it", margin, SEEDS,
        margin > 0, data, [_note(rows, task, width) for task, width in margins],
    )  # fmt: skip


def _pictures(quick: bool) -> Task:
    images = vision.digits() if quick else vision.cifar(6000, 1000, 5000)
    plan = vision.Plan(epochs=20, flip=False) if quick else vision.Plan(epochs=5)
    channels = images.train.pixels.shape[1]

    def train(model: nn.Module, methods: Sequence[GradualPruning], seed: int) -> object:
        return vision.fit(model, images, plan, seed=seed, methods=methods)

    return Task(
        "pictures", lambda width, seed: vision.SmallConvNet(channels, images.classes, width, seed), train,
        lambda model: 1 - vision.accuracy(model, images.test), 8 if quick else 16, plan.steps(images), ("conv1",),
    )  # fmt: skip


def _text(quick: bool) -> Task:
    text = characters.load("python-docs" if quick else "tinyshakespeare", 100_000 if quick else 1_000_000)
    plan = characters.Plan(steps=250, batch=16, length=32) if quick else characters.Plan(steps=1000)
    return Task(
        "text", lambda width, seed: characters.CharacterLSTM(len(text.alphabet), width, seed=seed),
        lambda model, methods, seed: characters.fit(model, text, plan, seed=seed, methods=methods),
        lambda model: characters.bits_per_character(model, text.test), 48 if quick else 96, plan.steps, (),
    )  # fmt: skip


def _rows(task: Task, seed: int, sparsities: Sequence[float]) -> Iterator[Row]:
    make = partial(task.factory, task.width, seed)
    dense = make()
    task.train(dense, [], seed)
    yield _row(task, dense, "dense", seed)
    weights = sum(weight.numel() for weight in prunable(dense, ignore=task.ignore).values())
    rest = sum(parameter.numel() for parameter in dense.parameters()) - weights
    for asked in sparsities:
        width = equal_nonzero_width(lambda size: task.factory(size, 0), rest + round(weights * (1 - asked)))
        small = task.factory(width, seed)
        # The pruned ones get exactly as many non-zeros as the small one has.
        sparsity = 1 - (sum(parameter.numel() for parameter in small.parameters()) - rest) / weights
        task.train(small, [], seed)
        yield _row(task, small, SMALL, seed, width)
        moments = {GRADUAL: (0.15, 0.7), LATE: (0.7, 0.7), BEFORE: (1, 1)}
        for label, (begin, end) in moments.items():
            model = make()
            task.train(model, [task.pruning(sparsity, begin, end)], seed)
            yield _row(task, model, label, seed, width)
        yield _row(task, _pruned(copy.deepcopy(dense), task, sparsity), ONCE, seed, width)


def _pruned(model: nn.Module, task: Task, sparsity: float) -> nn.Module:
    from tersor.training import magnitude_mask

    with torch.no_grad():
        for weight in prunable(model, ignore=task.ignore).values():
            weight.mul_(magnitude_mask(weight, sparsity))
    return model


def _row(task: Task, model: nn.Module, method: str, seed: int, rival_width: int | None = None) -> Row:
    nonzero = sum(int(parameter.count_nonzero()) for parameter in model.parameters())
    row: Row = {
        "task": task.name, "method": method, "rival_width": rival_width, "seed": seed, "loss": task.loss(model), "nonzero": nonzero,
        **_bytes(list(model.state_dict().values())),
    }  # fmt: skip
    if task.name == "pictures":
        row["stored"] = stored_bytes(to_sparse(copy.deepcopy(model)))
    return row


def _bytes(tensors: list[Tensor]) -> Row:
    """Bytes in float32: dense; with a bit a position; as compressed rows with 16-bit columns. Each tensor is dense where that is less."""
    total = {"dense": 0, "bitmask": 0, "csr": 0}
    for tensor in tensors:
        size, nonzero = tensor.element_size(), int(tensor.count_nonzero())
        dense = tensor.numel() * size
        total["dense"] += dense
        total["bitmask"] += min(dense, nonzero * size + -(-tensor.numel() // 8))
        rows = len(tensor) if tensor.ndim else 1
        total["csr"] += min(dense, nonzero * (size + 2) + 4 * (rows + 1))
    return total


def _mean(rows: list[Row], task: str, width: int, method: str, key: str = "loss") -> float:
    values: list[Any] = [row[key] for row in rows if (row["task"], row["rival_width"], row["method"]) == (task, width, method)]
    return float(sum(values) / len(values))


def _margin(rows: list[Row], task: str, width: int, rival: str) -> float:
    """Share of the rival's error rate or bits that gradual pruning takes off, in the mean over seeds."""
    return 1 - _mean(rows, task, width, GRADUAL) / _mean(rows, task, width, rival)


def _note(rows: list[Row], task: str, width: int) -> str:
    nonzero = _mean(rows, task, width, GRADUAL, "nonzero")
    told = ", ".join(f"{method} {_mean(rows, task, width, method):.3f}" for method in (GRADUAL, LATE, SMALL, ONCE, BEFORE))
    dense = [row["loss"] for row in rows if row["task"] == task and row["method"] == "dense"]
    unit = "error rate" if task == "pictures" else "bits a character"
    return f"{task}, {nonzero:,.0f} non-zeros, {unit}: {told}; dense and unpruned {sum(dense) / len(dense):.3f}"
