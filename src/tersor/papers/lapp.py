"""LAPP: learned widths with bypasses against filters removed evenly, narrower networks, and each half of the idea alone."""

from __future__ import annotations

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
from tersor.training import LAPP, BypassConv2d, Compression, Method, export_onnx, remove_filters, stored_bytes

PAPER = Paper(
    key="lapp",
    claim="At equal products a network whose widths LAPP learns while it trains from scratch is more accurate than one that loses the "
    "same share of every layer's smallest filters, and than a narrower dense one; the products fall gradually and meet the budget.",
    where="tersor.training.LAPP",
)

SEEDS = (0, 1, 2)
OURS, PLAIN, EVEN, NARROW, EVEN_BYPASS, DENSE = (
    "LAPP", "LAPP, no bypass", "even removal by L1", "narrower dense", "even widths with bypass", "dense",
)  # fmt: skip
METHODS = (OURS, PLAIN, EVEN, NARROW, EVEN_BYPASS)
END = 0.5  # share of the training after which filters are cut, by LAPP and by even removal


class ChainNet(nn.Module):
    """Five convolutions with norms one after the other, halving the picture after the first and third, and a classifier.

    Args:
        channels: Of the input.
        widths: Of the convolutions.
        filters: Where given, filters that are left beside a bypass, by convolution after the first.
        seed: Of the initial weights.
    """

    def __init__(self, channels: int, widths: Sequence[int], seed: int, filters: Sequence[int] | None = None) -> None:
        super().__init__()
        for index, (before, after) in enumerate(pairwise([channels, *widths]), 1):
            conv: nn.Module = nn.Conv2d(before, after, 3, padding=1, bias=False)
            norm: nn.Module = nn.BatchNorm2d(after)
            if filters is not None and index > 1:
                conv, norm = BypassConv2d(before, after, filters[index - 2], (3, 3), padding=(1, 1)), nn.Identity()
            self.add_module(f"conv{index}", conv)
            self.add_module(f"norm{index}", norm)
        self.head = nn.Linear(widths[-1], 10)
        vision.initialize(self, seed)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits ``[n, 10]`` of ``pixels``."""
        for index in range(1, 6):
            convolution, norm = self.get_submodule(f"conv{index}"), self.get_submodule(f"norm{index}")
            pixels = torch.relu(norm(convolution(pixels)))
            if index in (1, 3) and min(pixels.shape[2:]) > 4:
                pixels = F.max_pool2d(pixels, 2)
        logits: Tensor = self.head(pixels.mean((2, 3)))
        return logits


@dataclass(frozen=True)
class Effort:
    """The task and how long networks are trained."""

    images: vision.Images
    widths: tuple[int, ...]
    plan: vision.Plan
    shares: tuple[float, ...]

    @property
    def pixels(self) -> Tensor:
        """One picture, to count products on."""
        return self.images.train.pixels[:1]

    def net(self, seed: int, widths: Sequence[int] | None = None, filters: Sequence[int] | None = None) -> ChainNet:
        """A fresh network."""
        return ChainNet(self.pixels.shape[1], widths or self.widths, seed, filters)


class EvenRemoval(Method):
    """Cut, once, the filters of smallest absolute sum out of every convolution but the first, to given widths."""

    name = "even_removal"

    def __init__(self, widths: Sequence[int]) -> None:
        self.widths = widths

    def attach(self, compression: Compression) -> None:
        """See :class:`Method`."""
        self._compression = compression

    def after_step(self, step: int) -> None:
        """See :class:`Method`."""
        if step != self._compression.resolve(END):
            return
        kept = {}
        for index, width in enumerate(self.widths[1:], 2):
            weight = self._compression.model.get_submodule(f"conv{index}").weight
            assert isinstance(weight, Tensor)
            kept[f"conv{index}"] = weight.abs().flatten(1).sum(1).topk(width).indices
        assert self._compression.example_inputs is not None
        remove_filters(self._compression.model, kept, self._compression.example_inputs, self._compression)


def run(quick: bool) -> Result:
    """Train every network at every share of the products; validation chooses LAPP's variant alone."""
    if quick:
        effort = Effort(vision.digits(), (24,) * 5, vision.Plan(epochs=8, batch=100, flip=False), (0.25,))
    else:
        images = vision.cifar(n_train=2000, n_validation=1000)
        effort = Effort(images, (8, 24, 24, 48, 48), vision.Plan(epochs=10, rate=0.05, batch=64), (0.2,))
    rows = list(measured(rows_of(effort)))
    margin, notes = judge(rows, effort)
    data = [effort.images.name]
    return Result(rows, "even removal of filters by L1; a narrower dense network", margin, SEEDS, margin > 0, data, notes)


def rows_of(effort: Effort) -> Iterator[Row]:
    """The dense network of every seed, and every method at every share of its products."""
    dense = vision.products(effort.net(0), effort.pixels)
    for seed in SEEDS:
        yield _train(effort, seed, DENSE, 1.0, dense)
        for share in effort.shares:
            for method in METHODS:
                yield _train(effort, seed, method, share, dense)


def _train(effort: Effort, seed: int, method: str, share: float, dense: int) -> Row:
    budget = share * dense
    methods: list[Method] = []
    net = effort.net(seed)
    if method in (OURS, PLAIN):
        methods = [LAPP(share, bypass=method == OURS, end=END)]
    elif method == EVEN:
        methods = [EvenRemoval(_even(effort, budget, EVEN))]
    elif method == NARROW:
        net = effort.net(seed, _even(effort, budget, NARROW))
    elif method == EVEN_BYPASS:
        net = effort.net(seed, filters=_even(effort, budget, EVEN_BYPASS)[1:])
    trained = vision.fit(net, effort.images, effort.plan, seed=seed, methods=methods)
    report: Mapping[str, Any] = trained.compression.report().get("lapp", {}) if trained.compression is not None else {}
    whole = [1.0, *report.get("history", [])]
    return {
        "method": method, "budget": share, "seed": seed, "accuracy": vision.accuracy(trained.model, effort.images.test),
        "validation": trained.validation[-1], "products": vision.products(trained.model, effort.pixels) / dense,
        "bytes": stored_bytes(trained.model), "filters": " ".join(str(count) for count in report["kept"].values()) if report else None,
        "largest_drop": max(before - after for before, after in pairwise(whole)) if report else None,
        "latency_ms": _latency(trained.model, effort.images.test.pixels[:32]) if seed == SEEDS[0] else None, "seconds": trained.seconds,
    }  # fmt: skip


def _even(effort: Effort, budget: float, method: str) -> list[int]:
    """Widths that are the same share of every layer, as near below ``budget`` products as whole filters allow.

    The first layer is cut in narrow networks alone, since no other method touches it.
    """

    def fits(widths: list[int]) -> bool:
        net = effort.net(0, filters=widths[1:]) if method == EVEN_BYPASS else effort.net(0, widths)
        return vision.products(net, effort.pixels) <= budget

    finest, least = 4 * max(effort.widths), 0 if method == EVEN_BYPASS else 1
    first = 0 if method == NARROW else 1
    for numerator in range(finest, -1, -1):
        cut = [max(width * numerator // finest, least) for width in effort.widths]
        widths = [*effort.widths[:first], *cut[first:]]
        if fits(widths):
            break
    for index in range(first, len(widths)):
        wider = [width + (place == index) for place, width in enumerate(widths)]
        widths = wider if fits(wider) else widths
    return widths


def _latency(model: nn.Module, pixels: Tensor) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(model, (pixels,), path)
        return vision.latency(path, pixels)


def judge(rows: Sequence[Row], effort: Effort) -> tuple[float, list[str]]:
    """The smallest lead of LAPP, over the budgets, to the better of the two baselines, in accuracy averaged over seeds.

    Whether LAPP has a bypass is chosen by validation accuracy, budget by budget.
    """

    def mean(method: str, share: float, column: str = "accuracy") -> float:
        return statistics.mean(row[column] for row in rows if row["method"] == method and row["budget"] == share)

    leads, notes = [], [f"dense: accuracy {mean(DENSE, 1.0):.3f}"]
    for share in effort.shares:
        chosen = max((OURS, PLAIN), key=lambda method: mean(method, share, "validation"))
        leads.append(mean(chosen, share) - max(mean(EVEN, share), mean(NARROW, share)))
        others = ", ".join(f"{method} {mean(method, share):.3f}" for method in METHODS)
        notes.append(f"at {share:.0%} of the products, validation chooses {chosen!r}; test accuracies: {others}")
    cuts = [row for row in rows if row["filters"] is not None]
    over = max(row["products"] - row["budget"] for row in cuts)
    drop = max(row["largest_drop"] for row in cuts)
    alike = sum(len(set(row["filters"].split())) == 1 for row in cuts)
    notes += [
        f"products less the budget: at most {over:.2g}; the largest fall within one epoch is {drop:.3f} of the dense products",
        f"networks whose layers all kept the same number of filters: {alike} of {len(cuts)}",
    ]
    return min(leads) if over <= 0 else -over, notes
