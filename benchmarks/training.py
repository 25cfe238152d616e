"""Compression during training on one CIFAR task: accuracy against real bytes and against latency, and what a step costs.

Every method trains the same network from the same start on the same pictures, as long as the dense one; those that prune in rounds train
that long in each round. Baselines are narrower dense networks, and the dense network cut after its training.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import common

DENSE, SMALL, PRUNED, CUT = "dense", "small and dense", "pruned after training", "cut to ranks after training"
BASELINES = (DENSE, SMALL, PRUNED, CUT)
# What is left in memory is dense, or in other words runs faster than it was.
STRUCTURED = ("trained rank pruning", "Maestro", "LAPP", "1-way convolutions")


@dataclass(frozen=True)
class Scale:
    """How much work the benchmark spends.

    Attributes:
        pictures: Training, validation and test pictures.
        width: Of the network that is compressed.
        widths: Of the narrower ones.
        epochs: Of a training.
        rounds: Of the methods that prune in rounds.
        points: Settings of each method.
    """

    pictures: tuple[int, int, int]
    width: int
    widths: tuple[int, ...]
    epochs: int
    rounds: int
    points: int


FULL = Scale((5000, 1000, 5000), 16, (3, 6, 10), 5, 3, 2)
QUICK = Scale((768, 128, 256), 8, (4,), 1, 1, 1)


@dataclass
class Point:
    """A method at a setting, over the seeds.

    Attributes:
        method: Its name.
        setting: In words.
        make: Trains the network of a seed; returns it and the processor seconds of a step, ``None`` where none was taken.
    """

    method: str
    setting: str
    make: Callable[[int], tuple[Any, float | None]]
    accuracies: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    products: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)


@dataclass
class Task:
    """The pictures, and networks of each seed that several points start from.

    Attributes:
        scale: How much work.
        images: Of :func:`tersor.papers.vision.cifar`.
        dense: Plainly trained.
        ordered: Of Maestro before it is cut, and its seconds a step.
    """

    scale: Scale
    images: Any
    dense: dict[int, Any] = field(default_factory=dict)
    ordered: dict[int, tuple[Any, float]] = field(default_factory=dict)

    def network(self, seed: int, width: int | None = None) -> Any:
        """A fresh network."""
        from tersor.papers import vision

        return vision.SmallConvNet(classes=self.images.classes, width=width or self.scale.width, seed=seed)

    def fit(self, model: Any, seed: int, methods: tuple[Any, ...] = (), cycles: int = 1, **options: Any) -> tuple[Any, float]:
        """Train, and give the processor seconds of a step as well: unlike wall time they hardly depend on what else runs."""
        from tersor.papers import vision

        plan = vision.Plan(epochs=self.scale.epochs, cycles=cycles)
        began = time.process_time()
        trained = vision.fit(model, self.images, plan, seed=seed, methods=methods, **options)
        return trained.model, (time.process_time() - began) / plan.steps(self.images)

    def points(self) -> Iterator[Point]:
        """All that is measured, baselines first."""
        yield Point(DENSE, f"width {self.scale.width}", self._dense)
        for width in self.scale.widths:
            yield Point(SMALL, f"width {width}", lambda seed, width=width: (self.fit(self.network(seed, width), seed)[0], None))
        for sparsity in (0.8, 0.9)[: self.scale.points]:
            yield Point(PRUNED, f"sparsity {sparsity:g}", lambda seed, sparsity=sparsity: (self._pruned(seed, sparsity), None))
        for share in (0.5, 0.25)[: self.scale.points]:
            yield Point(CUT, f"{share:.0%} of ranks", lambda seed, share=share: (self._cut(seed, share), None))
        for name, setting, methods in self._single():
            yield Point(name, setting, lambda seed, methods=methods: self.fit(self.network(seed), seed, methods(seed)))
        yield from self._rounds()
        for share in (0.5, 0.25)[: self.scale.points]:
            yield Point("Maestro", f"{share:.0%} of its ranks", lambda seed, share=share: self._maestro(seed, share))

    def _single(self) -> Iterator[tuple[str, str, Callable[[int], tuple[Any, ...]]]]:
        from tersor import training

        few = slice(self.scale.points)
        ends = ["conv1", "head"]
        for sparsity in (0.9, 0.97)[few]:
            options: dict[str, Any] = {"begin": 0.15, "end": 0.7, "frequency": 8, "ignore": ends[:1]}
            yield "gradual pruning", f"sparsity {sparsity:g}", lambda _, s=sparsity, o=options: (training.GradualPruning(s, **o),)
        for energy in (0.95, 0.9)[few]:
            yield "trained rank pruning", f"energy {energy:g}", lambda _, e=energy: (training.TrainedRankPruning(e, ignore=ends),)
        for share in (0.5, 0.25)[few]:
            yield "LAPP", f"{share:.0%} of products", lambda _, s=share: (training.LAPP(s, bypass=False),)
        for compression in (4, 16)[few]:
            yield "parameter sharing", f"{compression} weights a value", lambda seed, c=compression: (
                training.ParameterSharing(float(c), ignore=ends, seed=seed),
            )  # fmt: skip
        for keep in (0.5, 0.25)[few]:
            yield "1-way convolutions", f"{keep:.0%} of weights", lambda _, k=keep: (training.APrioriConv(keep=k, ignore=ends[:1]),)

    def _rounds(self) -> Iterator[Point]:
        from tersor import training

        rounds, epochs = self.scale.rounds, self.scale.epochs

        def sap(seed: int) -> tuple[Any, float | None]:
            method = training.SAP(rounds=rounds, epochs=epochs, p=1.0, q=2.0)
            return self.fit(self.network(seed), seed, (method,), rounds + 1)

        def ticket(seed: int) -> tuple[Any, float | None]:
            loss = training.ClassDependentLoss(classes=[3])
            method = training.ClassAwareLottery(rounds=rounds, epochs=epochs, loss=loss, monitor="accuracy", ignore=["conv1"])
            return self.fit(self.network(seed), seed, (method,), rounds + 1, loss=loss)

        yield Point("SAP", f"{rounds} rounds", sap)
        yield Point("class-aware lottery", f"{rounds} rounds", ticket)

    def _dense(self, seed: int) -> tuple[Any, float | None]:
        self.dense[seed], seconds = self.fit(self.network(seed), seed)
        return self.dense[seed], seconds

    def _pruned(self, seed: int, sparsity: float) -> Any:
        import torch

        from tersor import training

        model = copy.deepcopy(self.dense[seed])
        with torch.no_grad():
            for weight in training.prunable(model, ignore=["conv1"]).values():
                weight.mul_(training.magnitude_mask(weight, sparsity))
        return self._recalibrated(model)

    def _cut(self, seed: int, share: float) -> Any:
        from tersor import training

        model = copy.deepcopy(self.dense[seed])
        ranks = {name: max(int(share * model.get_submodule(name).out_channels), 1) for name in ("conv2", "conv3")}
        training.factor_model(model, ranks)
        return self._recalibrated(model)

    def _maestro(self, seed: int, share: float) -> tuple[Any, float | None]:
        from tersor import training

        if seed not in self.ordered:
            method = training.Maestro(group_lasso=3e-3, threshold=0.05, ignore=["conv1", "head"])
            self.ordered[seed] = self.fit(self.network(seed), seed, (method,), finalize=False)
        model, seconds = self.ordered[seed]
        return self._recalibrated(training.cut_ranks(copy.deepcopy(model), share)), seconds

    def _recalibrated(self, model: Any) -> Any:
        from tersor.papers import vision

        vision.recalibrate(model, self.images.train.pixels[:1000])
        return model.eval()


def measure(session: common.Session, task: Task, points: list[Point], seeds: int, folder: Path) -> None:
    """Train every point from every seed; what the first seed leaves is written as ONNX for the clock."""
    from tersor import training
    from tersor.papers import vision

    pixels = task.images.test.pixels[:32]
    for seed in range(seeds):
        for index, point in enumerate(points):
            session.say(f"seed {seed}: {point.method}, {point.setting}")
            model, seconds = point.make(seed)
            point.accuracies.append(vision.accuracy(model, task.images.test))
            point.products.append(vision.products(model, pixels[:1]))
            if seconds is not None:
                point.seconds.append(seconds)
            if seed == 0:
                training.export_onnx(copy.deepcopy(model), (pixels[:2],), folder / f"{index}.onnx")
            point.sizes.append(training.stored_bytes(training.to_sparse(copy.deepcopy(model))))
    calls = {str(index): (lambda index=index: vision.latency(folder / f"{index}.onnx", pixels)) for index in range(len(points))}
    for key, times in common.interleaved(session.repeats, calls).items():
        points[int(key)].milliseconds = times


def rows(points: list[Point]) -> list[common.Row]:
    """One row a point: means over the seeds, and the spread of accuracies."""
    plain = common.median(points[0].seconds)
    return [
        {
            "method": point.method, "setting": point.setting, "accuracy": mean(point.accuracies),
            "spread": max(point.accuracies) - min(point.accuracies), "bytes": round(mean(point.sizes)),
            "products": round(mean(point.products)), "latency_ms": common.median(point.milliseconds),
            "step_of_plain": common.median(point.seconds) / plain if point.seconds else None,
        }
        for point in points
    ]  # fmt: skip


def mean(values: list[Any]) -> float:
    """The mean."""
    return float(sum(values)) / len(values)


def at_equal(measured: list[common.Row], key: str, size: float) -> float:
    """Accuracy of dense networks of a size, between the nearest widths on a logarithmic axis; the nearest beyond the ends."""
    import numpy as np

    known = sorted((row[key], row["accuracy"]) for row in measured if row["method"] in (DENSE, SMALL))
    return float(np.interp(np.log(size), np.log([own for own, _ in known]), [accuracy for _, accuracy in known]))


def conclude(session: common.Session) -> None:
    """Hold every method against dense networks of the same bytes, and structured ones against those of the same latency too."""
    methods = dict.fromkeys(row["method"] for row in session.rows if row["method"] not in (DENSE, SMALL))
    for method in methods:
        own = [row for row in session.rows if row["method"] == method]
        for key in ("bytes", "latency_ms") if method in (*STRUCTURED, CUT) else ("bytes",):
            gain = max(row["accuracy"] - at_equal(session.rows, key, row[key]) for row in own)
            says = f"{method}, accuracy above a dense network of equal {key.removesuffix('_ms')}, best point"
            session.claims.append(common.Claim(says, gain, 0.0, at_least=True))


def draw(session: common.Session) -> None:
    """Accuracy against bytes and against latency, a line a method, as two files beside the record."""
    from tersor.papers.plots import line_chart

    if session.folder is None:
        return
    titles = {"bytes": "Stored bytes", "latency_ms": "Latency of 32 pictures, ms"}
    for key, title in titles.items():
        shown = [
            {title: row[key], "Accuracy": row["accuracy"], "method": SMALL if row["method"] == DENSE else row["method"]}
            for row in session.rows
        ]  # fmt: skip
        line_chart(shown, title, "Accuracy", session.folder / f"{session.name}-{key.removesuffix('_ms')}.svg", log="x")


def notes(scale: Scale, seeds: int) -> list[str]:
    """What a reader must know."""
    n_train, _, n_test = scale.pictures
    return [
        f"{n_train:,} training pictures, {scale.epochs} epochs, {n_test:,} test pictures, {seeds} seed{'s' if seeds > 1 else ''}; settings "
        "were fixed beforehand, none was chosen by a measurement, so a method's best setting may be another",
        f"SAP and the class-aware lottery train {scale.rounds + 1} times as long; the lottery minds one class of ten",
        "bytes are of the tensors as stored, in float32: zeros as bit masks or indices, shared weights as their memory",
        "latency is of 32 pictures in onnxruntime on one thread; ONNX writes zeros and shared weights out, so those take the dense time",
        "step_of_plain is processor time a step over that of the dense training, evaluation after each epoch included",
        "Maestro is one training that is cut at two sizes; QuEST rounds linear layers alone, of which this network has one small one",
        "the plots are training-bytes.svg and training-latency.svg",
    ]


def main() -> int:
    """Run the benchmark."""
    flags = common.parser(__doc__, repeats=5, threads=1)
    flags.add_argument("--seeds", type=int, default=3, help="networks of each point; means are reported")
    parsed = flags.parse_args()
    scale, seeds = (QUICK, 1) if parsed.quick else (FULL, parsed.seeds)
    import torch

    from tersor.papers import vision

    torch.set_num_threads(parsed.threads)
    images = vision.cifar(*scale.pictures)
    session = common.Session("training", parsed, data=[images.name], notes=notes(scale, seeds))
    task = Task(scale, images)
    points = list(task.points())
    # What the first training of a process pays once is no part of a step.
    task.fit(task.network(0, 2), 0)
    with TemporaryDirectory() as name:
        measure(session, task, points, seeds, Path(name))
    session.rows.extend(rows(points))
    conclude(session)
    draw(session)
    return session.finish()


if __name__ == "__main__":
    sys.exit(main())
