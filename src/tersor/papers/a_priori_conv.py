"""A-priori compressed convolutions in a surrogate of a wave simulator, against dense, narrower and pruned networks."""

from __future__ import annotations

import copy
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.papers import vision
from tersor.papers.frame import Paper, Result, Row, measured
from tersor.papers.waves import Waves, waves
from tersor.training import APrioriConv, Compression, GradualPruning, Method, export_onnx, stored_bytes, to_sparse

PAPER = Paper(
    key="a-priori-conv",
    claim="With at most 35 % of the weights of its convolutions, a wave surrogate of 1-way filters chosen before training has at most "
    "twice the error of the dense one.",
    where="tersor.training.APrioriConv, tersor.papers.waves",
)

SEEDS = (0, 1, 2)
RATES = (3e-3, 1e-2)
DENSE, OURS, CP, PER_KERNEL = "dense", "1-way, sequential", "1-way, cp", "1-way, per kernel"
NARROW, PRUNED = "narrower dense", "gradual pruning"
METHODS = (DENSE, OURS, CP, PER_KERNEL, NARROW, PRUNED)
# Choices are made with a network and waves that are not reported.
_PROBE = 100
_KEEP = 0.35
_BOUND = 2.0
_BATCH = 16


@dataclass(frozen=True)
class Effort:
    """How large the network is and how long it is trained.

    Attributes:
        ways: 2: convolutions over the nodes, moments are channels of the last one; 3: over nodes and moments.
        methods: What is compared, the dense network first.
        width: Channels of the dense network.
        kernel: Size of its three convolutions.
        epochs: Over the training waves.
        sizes: Waves to train on, to choose by and to report.
    """

    ways: int
    methods: tuple[str, ...]
    width: int
    kernel: int
    epochs: int
    sizes: tuple[int, int, int]


EFFORT = {False: Effort(2, METHODS, 24, 5, 100, (160, 32, 64)), True: Effort(2, METHODS, 16, 5, 40, (96, 16, 32))}


class Surrogate(nn.Module):
    """From where a source is and how it swings to what is seen: 16 moments on 16 x 16 nodes.

    Args:
        ways: Axes of the three convolutions: 2, the moments being channels of the last one, or 3, the first being the moments.
        width: Channels.
        kernel: Size of the three convolutions.
        seed: Of the initial weights.
    """

    def __init__(self, ways: int, width: int, kernel: int, seed: int) -> None:
        super().__init__()
        self.start = (width, *[4] * ways)
        convolution = nn.Conv2d if ways == 2 else nn.Conv3d
        self.spread = nn.Linear(3, math.prod(self.start))
        for index in (1, 2, 3):
            self.add_module(f"conv{index}", convolution(width, width, kernel, padding=kernel // 2))
        self.moments = convolution(width, 16 if ways == 2 else 1, 1)
        vision.initialize(self, seed)

    def forward(self, parameters: Tensor) -> Tensor:
        """Fields ``[n, 16, 16, 16]`` of ``parameters [n, 3]``."""
        hidden = torch.relu(self.spread(parameters)).unflatten(1, self.start)
        mode = "bilinear" if len(self.start) == 3 else "trilinear"
        for index in (1, 2, 3):
            hidden = torch.relu(self.get_submodule(f"conv{index}")(hidden))
            if index < 3:
                hidden = F.interpolate(hidden, scale_factor=2.0, mode=mode)
        fields: Tensor = self.moments(hidden)
        return fields if len(self.start) == 3 else fields.squeeze(1)


def run(quick: bool) -> Result:
    """Choose a learning rate for every method on validation waves, then train every method and seed."""
    effort = EFFORT[quick]
    rates = dict.fromkeys(METHODS, 3e-3) if quick else _rates(effort)
    rows = list(measured(rows_of(effort, rates)))
    margin, notes = judge(rows)
    notes.append("learning rates, chosen on validation waves: " + ", ".join(f"{name} {rate:g}" for name, rate in rates.items()))
    sizes = " / ".join(map(str, effort.sizes))
    data = [f"2D wave equation by finite elements, {sizes} waves to train / choose / report"]
    return Result(rows, "the dense surrogate", margin, SEEDS, margin > 0, data, notes)


def rows_of(effort: Effort, rates: Mapping[str, float]) -> Iterator[Row]:
    """Every method from every seed, each seed with waves of its own."""
    for seed in SEEDS:
        train, _, test = _waves(effort, seed)
        for method in effort.methods:
            yield _row(method, rates[method], effort, seed, train, test)


def judge(rows: list[Row]) -> tuple[float, list[str]]:
    """By how much the worst seed stays below twice the error of dense; negative if it has too many weights."""
    error = {(row["method"], row["seed"]): row["relative_error"] for row in rows}

    def ratios(method: str, beside: str) -> list[float]:
        return [error[method, seed] / error[beside, seed] for seed in SEEDS]

    share = max(row["conv_weights"] for row in rows if row["method"] == OURS) / max(
        row["conv_weights"] for row in rows if row["method"] == DENSE
    )
    methods = list(dict.fromkeys(row["method"] for row in rows))
    notes = [
        f"{method}: {_mean(ratios(method, DENSE)):.2f} times the error of dense" for method in methods if method != DENSE
    ] + [
        f"{OURS} has {_mean(own):.2f} times the error of {beside} at as many weights, less in {sum(value < 1 for value in own)} of "
        f"{len(own)} seeds" for beside in (NARROW, PRUNED) if beside in methods for own in [ratios(OURS, beside)]
    ]  # fmt: skip
    margin = _BOUND - max(ratios(OURS, DENSE))
    return (margin if share <= _KEEP + 1e-9 else min(margin, _KEEP - share)), notes


def _mean(ratios: list[float]) -> float:
    return math.exp(statistics.mean(map(math.log, ratios)))


def _waves(effort: Effort, seed: int) -> list[Waves]:
    return waves(sum(effort.sizes), seed).split(*effort.sizes)


def _rates(effort: Effort) -> dict[str, float]:
    """The learning rate of least validation error for every method, after a third of the training."""
    train, validation, _ = _waves(effort, _PROBE)
    found = {}
    for method in effort.methods:
        errors = {}
        for rate in RATES:
            model, _ = _trained(method, rate, effort, effort.epochs // 3, _PROBE, train)
            errors[rate] = _error(model, validation)
        found[method] = min(errors, key=lambda rate: errors[rate])
    return found


def _row(method: str, rate: float, effort: Effort, seed: int, train: Waves, test: Waves) -> Row:
    began = time.perf_counter()
    model, conv_weights = _trained(method, rate, effort, effort.epochs, seed, train)
    seconds = time.perf_counter() - began
    one, milliseconds = test.parameters[:1], None
    if seed == SEEDS[0]:
        # The same for every seed: the shapes are.
        with tempfile.TemporaryDirectory() as folder:
            export_onnx(model, (test.parameters[:2],), Path(folder) / "model.onnx")
            milliseconds = vision.latency(Path(folder) / "model.onnx", one)
    return {
        "method": method, "seed": seed, "conv_weights": conv_weights, "relative_error": _error(model, test),
        "train_error": _error(model, train), "bytes": stored_bytes(to_sparse(copy.deepcopy(model))),
        "products": vision.products(model, one), "milliseconds": milliseconds, "training_seconds": seconds,
    }  # fmt: skip


@torch.no_grad()
def _error(model: nn.Module, part: Waves) -> float:
    """Mean squared error beside the mean square of the fields."""
    return float((model.eval()(part.parameters) - part.fields).square().mean() / part.fields.square().mean())


def _network(method: str, effort: Effort, seed: int) -> tuple[Surrogate, list[Method]]:
    """The network to build and what compresses it; narrower and pruned ones get as many weights as the sequential form."""
    layers = [f"conv{index}" for index in (1, 2, 3)]
    ours = APrioriConv("sequential", keep=_KEEP, targets=layers)
    Compression(Surrogate(effort.ways, effort.width, effort.kernel, seed), [ours])
    count = ours.report()
    width = effort.width
    methods: list[Method] = []
    if method == OURS:
        methods = [APrioriConv("sequential", keep=_KEEP, targets=layers)]
    elif method == CP:
        methods = [APrioriConv("cp", keep=_KEEP, targets=layers)]
    elif method == PER_KERNEL:
        # One outer product a kernel is the fewest that there are: 2 / kernel of the weights.
        methods = [APrioriConv("per_kernel", rank=1, targets=layers)]
    elif method == NARROW:
        # Not fewer weights than ours: it is the baseline that gets the benefit.
        width = math.ceil(math.sqrt(count["weights"] / len(layers) / effort.kernel**effort.ways))
    elif method == PRUNED:
        methods = [GradualPruning(1 - count["weights"] / count["dense"], begin=0.2, end=0.7, frequency=10, targets=layers)]
    return Surrogate(effort.ways, width, effort.kernel, seed), methods


def _trained(method: str, rate: float, effort: Effort, epochs: int, seed: int, train: Waves) -> tuple[nn.Module, int]:
    """A network after ``epochs`` of Adam with a cosine schedule, and the weights, biases not counted, that its three convolutions have."""
    model, methods = _network(method, effort, seed)
    steps = epochs * (len(train.fields) // _BATCH)
    compression = Compression(model, methods, total_steps=steps, seed=seed) if methods else None
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    if compression is not None:
        compression.attach(optimizer)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(train.fields), generator=generator)
        for index in order.split(_BATCH)[: len(order) // _BATCH]:
            loss = (model(train.parameters[index]) - train.fields[index]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    if compression is not None:
        compression.finalize()
    return model.eval(), sum(_weights(model.get_submodule(f"conv{index}")) for index in (1, 2, 3))


def _weights(layer: Any) -> int:
    return sum(int((parameter != 0).sum()) for parameter in layer.parameters() if parameter.ndim > 1)
