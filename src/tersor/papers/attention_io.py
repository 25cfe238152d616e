"""The I/O complexity of attention: schedules that run on a counting machine, against the bound, on both sides of ``M = d^2``."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from tersor.papers.frame import Paper, Result, Row, measured

PAPER = Paper(
    key="attention-io",
    claim="Every schedule computes attention and moves the words that its closed form says, none fewer than the lower bound; square tiles "
    "win for M below d^2, FlashAttention above it, each within a constant of the bound on its side.",
    where="tersor.attention.io",
)

SEEDS = (0, 1, 2)
EXACT = 1e-10
# The constants that the orders hide: what the better schedule may move, in units of min(n^2 d / sqrt(M), n^2 d^2 / M).
CONSTANT = 6.0


def run(quick: bool) -> Result:
    """Execute small problems in full, count large ones, and fit the exponents."""
    rows: list[Row] = [*measured(_executed(quick)), *_counted()]
    executed = [row for row in rows if row["part"] == "executed"]
    exact = all(row["error"] <= EXACT and row["words"] == row["closed_form"] for row in executed)
    least = min(row["words"] / row["lower_bound"] for row in rows if row["words"] is not None)
    winners = [(row["memory_over_d2"], row["schedule"]) for row in rows if row.get("best")]
    flips = all(schedule.startswith("square") == (ratio < 1 / 4) for ratio, schedule in winners if not 1 / 4 <= ratio < 1)
    worst = max(row["words_over_law"] for row in rows if row.get("best"))
    overflow = _published_tiles_overflow()
    notes = [_slopes(), f"published FlashAttention tiles overflow a memory of 4 d^2 words: {'yes' if overflow else 'no'}"]
    notes.append(f"the best schedule moves {worst:.3g} times the order of growth at most, over all sizes of memory counted")
    notes.append(f"the fewest words over all schedules and sizes are {least:.4g} times the lower bound")
    margin = 1 - worst / CONSTANT
    holds = exact and flips and overflow and least >= 1 and margin > 0
    return Result(rows, f"{CONSTANT:g} times the order of growth", margin, SEEDS, holds, ["normal queries, keys and values"], notes)


def _executed(quick: bool) -> Iterator[Row]:
    """Every schedule on inputs of several sizes, its output against the definition."""
    from tersor.attention import io

    sizes = ((64, 16, 96), (64, 16, 1024), (61, 7, 200)) if quick else ((128, 16, 96), (128, 16, 1024), (125, 7, 200), (96, 32, 4096))
    for n, d, words in sizes:
        for schedule in io.SCHEDULES:
            for seed in SEEDS:
                random = np.random.default_rng(seed)
                q, k, v = (random.standard_normal((n, d)) for _ in range(3))
                report = io.simulate(schedule, n, d, words, inputs=(q, k, v))
                scores = np.exp(q @ k.T / math.sqrt(d))
                expected = scores / scores.sum(1, keepdims=True) @ v
                yield {
                    "part": "executed", "schedule": schedule, "n": n, "d": d, "memory": words, "seed": seed, "words": report.words,
                    "closed_form": io.count(schedule, n, d, words).words, "lower_bound": io.lower_bound(n, d, words),
                    "error": float(np.abs(report.output - expected).max()),
                }  # fmt: skip


def _counted() -> Iterator[Row]:
    """Counts of the closed forms on both sides of the crossover, at sizes of real heads."""
    from tersor.attention import io

    for n, d in ((4096, 64), (2048, 128)):
        for power in range(-4, 7):
            words = round(d * d * 2.0**power)
            if words < 4 * d:
                continue
            best = io.recommend(n, d, words)
            for schedule in io.SCHEDULES:
                moved = best.alternatives.get(schedule)
                yield {
                    "part": "counted", "schedule": schedule, "n": n, "d": d, "memory": words, "memory_over_d2": 2.0**power, "words": moved,
                    "lower_bound": io.lower_bound(n, d, words), "words_over_law": None if moved is None else moved / _law(n, d, words),
                    "best": True if schedule == best.schedule else None,
                }  # fmt: skip


def _law(n: int, d: int, words: int) -> float:
    """The order of growth, and the words that must be read and written in any case."""
    from tersor.attention import io

    return io.law(n, d, words) + 4 * n * d


def _slopes() -> str:
    """Exponents in the memory, fitted on either side of the crossover."""
    from tersor.attention import io

    flash = [(1 << power, io.count("flash2", 1 << 14, 64, 1 << power).words) for power in range(13, 17)]
    square = [(1 << power, io.count("square_tuned", 1 << 12, 512, 1 << power).words) for power in range(8, 15)]
    exponents = [float(np.polyfit(np.log([x for x, _ in points]), np.log([y for _, y in points]), 1)[0]) for points in (flash, square)]
    return f"words fall with memory like M^{exponents[0]:.3f} for flash2 above d^2 and like M^{exponents[1]:.3f} for square_tuned below it"


def _published_tiles_overflow() -> bool:
    from tersor.attention import io

    try:
        io.simulate("flash1", 128, 16, 4 * 16 * 16, strict=False)
    except io.CacheOverflow:
        return True
    return False
