"""Loss against bytes sent by four real workers over gloo: plain averaging, PyTorch's PowerSGD hook, and the hooks of tersor.

Every worker sees digits of classes that no other sees. All methods take the same steps of plain SGD from the same start on the same
batches; each gets the learning rate with which it recognises most digits of a validation part. Bytes are what the kernel says that left
the sockets, headers and all.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import common

NONE = "none"
# Headers and announcements of some dozens of messages a step.
HEADERS = 4500.0
RATES = (0.3, 0.1, 0.03)


@dataclass(frozen=True)
class Scale:
    """How much work the benchmark spends.

    Attributes:
        steps: Of every training.
        train: Digits to train on.
        seeds: Starts and orders of batches; the rate is chosen with the first.
    """

    steps: int
    train: int
    seeds: int


FULL = Scale(240, 8000, 3)
QUICK = Scale(40, 1000, 2)
TEST = 2000


def methods(steps: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """By name: the kind of state, and its options."""
    return {
        NONE: ("none", {}),
        "PowerSGD hook, rank 2": ("powersgd", {"matrix_approximation_rank": 2}),
        "EF21-SGDM, top 1 %": ("error feedback", {"mode": "ef21_sgdm", "compressor": "topk:0.01"}),
        "EControl, top 1 %": ("error feedback", {"mode": "econtrol", "compressor": "topk:0.01"}),
        "EControl, top 5 %": ("error feedback", {"mode": "econtrol", "compressor": "topk:0.05"}),
        "L-GreCo, ranks around 2": (
            "lgreco", {"mode": "ef", "compressor": "lowrank:2", "adjust_every": steps // 5, "accumulate": max(steps // 30, 1)},
        ),
    }  # fmt: skip


def measure(session: common.Session, scale: Scale) -> list[common.Row]:
    """Fill ``session`` with a row for each method; returns the curves of the first seed."""
    from tersor.papers.gloo_training import Job, curve_of, mnist

    data = mnist(scale.train, TEST)
    jobs = {
        name: Job(name.replace(" ", "-"), state, options, steps=scale.steps, every=scale.steps // 20)
        for name, (state, options) in methods(scale.steps).items()
    }  # fmt: skip
    session.say(f"{len(jobs)} methods at {len(RATES)} learning rates")
    tried = _train([replace(job, name=f"{job.name}@{rate}", learning_rate=rate) for job in jobs.values() for rate in RATES], data)
    runs: dict[str, list[Any]] = {}
    chosen: list[Any] = []
    for name, job in jobs.items():
        rate = max(RATES, key=lambda rate: tried[f"{job.name}@{rate}"][0]["validation"])
        runs[name] = [tried[f"{job.name}@{rate}"]]
        chosen += [replace(job, name=f"{job.name}-{seed}", learning_rate=rate, seed=seed) for seed in range(1, scale.seeds)]
        jobs[name] = replace(job, learning_rate=rate)
    session.say(f"{scale.seeds - 1} further seeds at the rates chosen")
    again = _train(chosen, data)
    for name, job in jobs.items():
        runs[name] += [again[f"{job.name}-{seed}"] for seed in range(1, scale.seeds)]
    targets = [_half_way(reports) for reports in runs[NONE]]
    session.rows += [_row(name, jobs[name].learning_rate, runs[name], targets) for name in jobs]
    return [point for name in jobs for point in curve_of(name, runs[name][0])]


def _train(jobs: list[Any], data: Mapping[str, Any]) -> Any:
    from tersor.papers.gloo_training import train_with_workers

    codes, printed, reports = train_with_workers(jobs, data)
    if any(codes):
        raise SystemExit(f"a worker failed: {next(text for text in printed if text).strip().splitlines()[-1]}")
    return reports


def _half_way(reports: Any) -> float:
    """The training loss of a run after half of its steps."""
    from tersor.papers.gloo_training import curve_of

    curve = curve_of(NONE, reports)
    return float(curve[len(curve) // 2 - 1]["training loss"])


def _sent(name: str, reports: Any, target: float) -> float | None:
    """Megabytes that a worker had sent when the training loss first came down to ``target``."""
    from tersor.papers.gloo_training import curve_of

    return next((point["sent (MB a worker)"] for point in curve_of(name, reports) if point["training loss"] <= target), None)


def _row(name: str, rate: float, runs: list[Any], targets: list[float]) -> common.Row:
    from tersor.papers.gloo_training import row_of

    rows = [row_of(name, reports) for reports in runs]
    needed = [_sent(name, reports, target) for reports, target in zip(runs, targets, strict=True)]
    return {
        "method": name, "learning_rate": rate, "loss": _mean(row["loss"] for row in rows),
        "accuracy": _mean(row["accuracy"] for row in rows), "bytes_a_step": _mean(row["bytes a step"] for row in rows),
        "counted_bytes_a_step": _mean(row["counted bytes a step"] for row in rows),
        "mb_until_half_way": _mean(needed), "ms_a_step": 1e3 * common.median(reports[0]["seconds"] / rows[0]["steps"] for reports in runs),
        "replicas_bit_equal": all(row["replicas bit-equal"] for row in rows),
    }  # fmt: skip


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean; ``None`` if a value is missing."""
    found = list(values)
    return None if None in found else statistics.fmean(value for value in found if value is not None)


def conclude(session: common.Session) -> None:
    """Replicas agree, counting is honest, and the same loss takes fewer bytes."""
    dense, *others = session.rows
    equal = statistics.fmean(float(row["replicas_bit_equal"]) for row in session.rows)
    session.claims.append(common.Claim("methods whose replicas ended bit-equal, of all", equal, 1.0, at_least=True))
    for row in others:
        if row["bytes_a_step"] and row["counted_bytes_a_step"]:
            apart = row["bytes_a_step"] - row["counted_bytes_a_step"]
            session.claims.append(common.Claim(f"{row['method']}: bytes a step on the wire beyond those counted", apart, HEADERS))
        if dense["mb_until_half_way"]:
            fewer = dense["mb_until_half_way"] / row["mb_until_half_way"] if row["mb_until_half_way"] else 0.0
            says = f"{row['method']}: times fewer bytes than plain averaging until the loss that it has half way; 0 is never"
            session.claims.append(common.Claim(says, fewer, 2.0, at_least=True))


def draw(session: common.Session, curves: list[common.Row]) -> None:
    """Loss over bytes, a line a method, beside the record."""
    from tersor.papers.plots import line_chart

    if session.folder is not None:
        title = "Four gloo workers, MNIST, other digits each"
        path = session.folder / f"{session.name}-bytes.svg"
        line_chart(curves, "sent (MB a worker)", "training loss", path, log="xy", title=title)


def notes(scale: Scale) -> list[str]:
    """What a reader must know."""
    return [
        f"{scale.steps} steps of plain SGD, 32 digits a worker and step, {scale.train:,} training digits of which each worker sees other "
        f"classes; {scale.seeds} seeds, means",
        f"learning rates {', '.join(map(str, RATES))}: the best on {TEST // 2:,} validation digits; accuracy is on {TEST // 2:,} others",
        "all workers share one processor, so ms_a_step is the cost of compression and of gloo's messages, not what a slow link would gain",
        "bytes_a_step left the sockets of a worker, as the kernel counts them; counted_bytes_a_step is what state.traffic() says of rings",
        "PyTorch's hook runs in one bucket (two break it over gloo), and averages the first two steps densely",
        f"the plot is communication-bytes.svg, of the first of {scale.seeds} seeds",
    ]


def main() -> int:
    """Run the benchmark."""
    flags = common.parser(__doc__, repeats=1).parse_args()
    scale = QUICK if flags.quick else FULL
    session = common.Session("communication", flags, notes=notes(scale), data=["images/mnist.npz at 14 x 14"])
    curves = measure(session, scale)
    conclude(session)
    draw(session, curves)
    return session.finish()


if __name__ == "__main__":
    sys.exit(main())
