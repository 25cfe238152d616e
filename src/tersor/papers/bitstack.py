"""BitStack: one file of sorted one-bit residuals serves every memory budget, each byte of it making the model better."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tersor.papers.frame import Paper, Result, Row

if TYPE_CHECKING:
    from tersor.papers.workbench import Judge

PAPER = Paper(
    key="bitstack",
    claim="Along at least 20 sizes of one stored stack the held-out divergence from the original falls with every step, and at the bytes "
    "of 2-bit rounding to nearest, or of the same heights in singular vectors, the stack is closer to the original.",
    where="tersor.layerwise.bitstack, tersor.weights.ResidualStack, tersor.models.stack",
)

QUANTISED = {f"{method} {bits} bits": (method, {"bits": bits}) for method in ("rtn", "gptq") for bits in (2, 3, 4)}
# Whole heights at which singular vectors of the same bytes are measured as well.
HEIGHTS = (2, 4)
# A step may raise the divergence by this much, for the noise of a finite text.
NOISE = 0.01


@dataclass(frozen=True)
class Size:
    """How much work the experiment spends: ``every`` compresses each so many-th block and leaves the others, the order that is
    estimated is held against the measured one at the heights of ``agreement``.
    """

    model: str
    blocks: int
    sizes: int
    calibration: int
    search: int
    evaluation: int
    context: int
    text: str
    held_out: str
    every: int
    agreement: tuple[int, ...]


FULL = Size("smollm2-135m", 6, 21, 6144, 256, 1024, 512, "wikitext2.valid", "wikitext2.test", 3, (3,))
QUICK = Size("stories260k", 6, 21, 8192, 1024, 4096, 256, "tinystories", "tinystories.tail", 1, (1, 3))


def run(quick: bool) -> Result:
    """Measure the stack along its sizes, and at the bytes of quantised and low-rank models."""
    from tersor.models import load
    from tersor.models.stack import load_stack, save_stack
    from tersor.models.stack_order import order_by_error, output_sensitivity
    from tersor.papers.workbench import Judge

    size = QUICK if quick else FULL
    model = load(size.model)
    calibration, search, evaluation = _texts(model, size)
    stacked, rivals, stats = _compressed(model, size, calibration)
    order = order_by_error(stacked, model, stats, output_sensitivity(model, calibration[: 2048 // size.context]))
    with TemporaryDirectory() as folder:
        save_stack(stacked, Path(folder) / "stack", order)
        loaded = load_stack(Path(folder) / "stack")
        judge = Judge.of(model, evaluation)
        rows = list(_along(judge, loaded, size.sizes))
        rows += list(_beside(judge, loaded, rivals))
    curve = [row for row in rows if row["setting"] == "along the stack"]
    rises = [after["kl"] / before["kl"] - 1 for before, after in pairwise(curve)]
    margin = min(_margin(rows, name) for name in ("rtn 2 bits", *(f"singular vectors, height {height}" for height in HEIGHTS)))
    notes = [*_notes(rows, rises), _agreement(model, stacked, order, search, size.agreement)]
    if size.every > 1:
        notes.append(f"one block in {size.every} stacked; {size.calibration:,} tokens to fit, {size.evaluation:,} to measure")
    return Result(
        rows, "at equal bytes, the better of 2-bit rounding to nearest and scaled singular vectors", margin, (0,),
        margin > 0 and max(rises) < NOISE, (size.model, size.text, size.held_out), notes,
    )


def _texts(model: Any, size: Size) -> tuple[Tensor, Tensor, Tensor]:
    from tersor import data
    from tersor.papers.workbench import split_texts

    fitted, held_out = (data.windows(model.encode(text), size.context) for text in split_texts(size.text, size.held_out))
    first = size.calibration // size.context
    return fitted[:first], fitted[first : first + max(size.search // size.context, 1)], held_out[: size.evaluation // size.context]


def _compressed(model: Any, size: Size, calibration: Tensor) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The stacked model, its rivals by name, and the input statistics of every layer; all are fitted to the original's inputs."""
    from tersor.layerwise import asvd, bitstack, find_method
    from tersor.models.blocks import BlockWalk
    from tersor.pipeline.calibrate import with_group_size

    stacked = model.copy()
    stats: dict[str, Any] = {}
    rivals = {name: model.copy() for name in (*QUANTISED, *(f"singular vectors, height {height}" for height in HEIGHTS))}
    for step in BlockWalk(model, calibration):
        if step.index % size.every:
            continue
        stats |= step.stats
        for name in step.layers:
            weight, own = model.matrix(name), step.stats[name]
            stack = bitstack(weight, own, blocks=size.blocks)
            stacked.replace(name, stack)
            for height in HEIGHTS:
                rank = math.ceil(stack.prefix(height).nbytes / (2 * sum(stack.shape)))
                rivals[f"singular vectors, height {height}"].replace(name, asvd(weight, own, rank=rank, alpha=1.0))
            for rival, choice in QUANTISED.items():
                method, options = with_group_size(choice, weight.shape[1])
                rivals[rival].replace(name, find_method(method).function(weight, own, **options))
    return stacked, rivals, stats


def _along(judge: Judge, stack: Any, count: int) -> Iterator[Row]:
    """Sizes spread evenly over the blocks, from the smallest model up."""
    last = len(stack.sizes) - 1
    stack.resize(stack.sizes[0])
    for step in range(count):
        yield _row(judge, stack, stack.sizes[round(step * last / (count - 1))], "along the stack", "bitstack")


def _beside(judge: Judge, stack: Any, rivals: dict[str, Any]) -> Iterator[Row]:
    for name, rival in rivals.items():
        nbytes, measured = rival.nbytes, judge(rival)
        yield {
            "setting": name, "method": name, "bytes": nbytes, "bits_per_weight": 8 * nbytes / rival.n_parameters,
            "kl": measured.kl, "perplexity": measured.perplexity,
        }  # fmt: skip
        if nbytes >= stack.sizes[0]:
            yield _row(judge, stack, nbytes, name, "bitstack")


def _row(judge: Judge, stack: Any, budget: int, setting: str, method: str) -> Row:
    began = time.perf_counter()
    change = stack.resize(budget)
    seconds = time.perf_counter() - began
    measured = judge(stack)
    return {
        "setting": setting, "method": method, "bytes": change.nbytes, "bits_per_weight": 8 * change.nbytes / stack.n_parameters,
        "kl": measured.kl, "perplexity": measured.perplexity, "bytes_moved": change.loaded + change.dropped, "resize_seconds": seconds,
    }  # fmt: skip


def _pair(rows: Sequence[Row], setting: str) -> tuple[Row, Row] | None:
    """The rival of a setting and the stack at its bytes; ``None`` where the smallest stack is larger."""
    own = [row for row in rows if row["setting"] == setting]
    return (own[0], own[1]) if len(own) == 2 else None


def _margin(rows: Sequence[Row], setting: str) -> float:
    pair = _pair(rows, setting)
    return -math.inf if pair is None else 1 - pair[1]["kl"] / pair[0]["kl"]


def _notes(rows: Sequence[Row], rises: Sequence[float]) -> list[str]:
    falls = sum(rise < 0 for rise in rises)
    notes = [f"{falls} of {len(rises)} steps lower the divergence; the worst changes it by {max(rises):+.1%}"]
    for name in QUANTISED:
        if (pair := _pair(rows, name)) is not None:
            notes.append(f"at the bytes of {name}: {pair[0]['kl']:.3g} nats quantised, {pair[1]['kl']:.3g} stacked")
    moves = [(row["bytes_moved"], row["resize_seconds"]) for row in rows if row.get("bytes_moved")]
    small, large = min(moves), max(moves)
    notes.append(f"resizing by {small[0]:,} bytes took {1e3 * small[1]:.1f} ms, by {large[0]:,} bytes {1e3 * large[1]:.1f} ms")
    return notes


def _agreement(model: Any, stacked: Any, order: Sequence[str], search: Tensor, heights: Sequence[int]) -> str:
    """How well the estimated order of the next blocks agrees with the measured one, on a useless and on a usable model."""
    from tersor.models.stack_order import measured_gains

    with torch.inference_mode():
        teacher = model.module(search, use_cache=False).logits.float().log_softmax(-1)

    @torch.inference_mode()
    def divergence(candidate: Any) -> float:
        log_q = candidate.module(search, use_cache=False).logits.float().log_softmax(-1)
        return float((teacher.exp() * (teacher - log_q)).sum(-1).mean())

    found = []
    for height in heights:
        gains = measured_gains(stacked, divergence, height)
        n = len(gains)
        measured = sorted(gains, key=lambda name: -gains[name])
        position = {name: index for index, name in enumerate(order[(height - 1) * n : height * n])}
        squared = sum((position[name] - index) ** 2 for index, name in enumerate(measured))
        found.append(f"{1 - 6 * squared / (n * (n * n - 1)):.2f} at {height}")
    return f"rank correlation of the estimated with the measured order, by the height before: {', '.join(found)}"
