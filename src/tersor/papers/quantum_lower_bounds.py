"""Lower bounds for finding stationary points: optimisers, with compressed gradients or not, on functions that resist them."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tersor.limits import stationary_points as sp
from tersor.papers.frame import Paper, Result, Row, measured

PAPER = Paper(
    key="quantum-lower-bounds",
    claim="On the hard functions behind the bounds, which the paper carries over to quantum oracles, no optimiser finds a stationary "
    "point in fewer oracle calls than the bound, the best is within a tenth and two calls of it, and noise that hides a coordinate with "
    "probability 1-q multiplies the calls by 1/q.",
    where="tersor.limits.stationary_points",
)

SEEDS = (0, 1, 2)
RATE = 0.05
# How far the measured effect of halving q may be from a factor of two.
FACTOR = 0.15
# Probability with which the stochastic bound may fail, over all rows together.
FAILURE = 1e-3
RESISTED = "resisting oracle"


def run(quick: bool) -> Result:
    """Run every optimiser on resisting oracles, stochastic descent at several q, and error feedback on the chain."""
    lengths = (6, 12) if quick else (10, 20, 40)
    rows = list(measured(_resisted(lengths)))
    rows += measured(_stochastic(*((60, (0.4, 0.2), 8) if quick else (50, (0.2, 0.1, 0.05), 15))))
    rows += measured(_compressed(8 if quick else 20))
    margin = min(row["fewest_calls"] / row["bound"] - 1 for row in rows)
    best = [
        (length, min(row["fewest_calls"] for row in rows if row["setting"] == RESISTED and row["length"] == length)) for length in lengths
    ]
    factors = _factors(rows)
    scales = all(abs(factor / 2 - 1) <= FACTOR for factor in factors)
    reached = all(row["reached"] for row in rows if row["setting"] == RESISTED)
    notes = [
        "calls of the best optimiser: " + ", ".join(f"{calls} against a bound of {length}" for length, calls in best),
        "halving q multiplies the mean calls by " + ", ".join(f"{factor:.3f}" for factor in factors),
        f"a gap of 1 and L = 1: at least {sp.query_lower_bound(eps=1e-4):,.0f} calls for |grad f| <= 1e-4",
        "nothing quantum is run: these are the classical instances, whose bounds hold for quantum oracles in the same order",
    ]
    holds = margin >= 0 and all(calls <= 1.1 * length + 2 for length, calls in best) and scales and reached
    return Result(rows, "the lower bound in oracle calls", margin, SEEDS, holds, ["the chain functions themselves"], notes)


def _row(setting: str, optimiser: str, length: int, bound: float, runs: Sequence[sp.Run], **settings: float) -> Row:
    """The runs of all seeds in one row: the fewest calls are what the bound is compared with."""
    calls = [run.calls for run in runs]
    return {
        "setting": setting, "optimiser": optimiser, "length": length, **settings, "bound": bound, "fewest_calls": min(calls),
        "mean_calls": statistics.mean(calls), "runs": len(runs), "reached": all(run.reached for run in runs),
    }  # fmt: skip


def _resisted(lengths: tuple[int, ...]) -> Iterator[Row]:
    factories: dict[str, sp.OptimizerFactory] = {
        "gradient descent": lambda p: torch.optim.SGD(p, lr=RATE),
        "heavy ball": lambda p: torch.optim.SGD(p, lr=RATE, momentum=0.9),
        "Adam": lambda p: torch.optim.Adam(p, lr=RATE),
        "L-BFGS (torch)": lambda p: torch.optim.LBFGS(p, line_search_fn="strong_wolfe"),
    }
    for length in lengths:
        for name, factory in factories.items():
            yield _row(RESISTED, name, length, length, [sp.bench_optimizer(factory, _oracle(length, seed)) for seed in SEEDS])
        for method in ("CG", "BFGS", "L-BFGS-B"):
            yield _row(
                RESISTED, method, length, length, [sp.count_calls(sp.scipy_minimiser(method), _oracle(length, seed)) for seed in SEEDS]
            )


def _oracle(length: int, seed: int) -> sp.ResistingOracle:
    return sp.ResistingOracle(sp.ChainFunction(length), seed=seed)


def _stochastic(length: int, probabilities: tuple[float, ...], runs: int) -> Iterator[Row]:
    for q in probabilities:
        bound = (length - math.log(runs * len(probabilities) / FAILURE)) / (2 * q)
        # The rate makes a coordinate found at the first sight of it, so that the wait for it is what is counted.
        found = [sp.count_calls(sp.gradient_descent(q), sp.StochasticChain(sp.ChainFunction(length), q, seed=seed)) for seed in range(runs)]
        yield _row("noise", "stochastic gradient descent", length, bound, found, q=q)


def _factors(rows: list[Row]) -> list[float]:
    """How much each halving of q multiplies the mean number of calls."""
    means = [row["mean_calls"] for row in rows if row["setting"] == "noise"]
    return [later / earlier for earlier, later in itertools.pairwise(means)]


def _compressed(length: int) -> Iterator[Row]:
    """One worker that may send a single coordinate a round, with the error fed back, tracked, or controlled."""
    for mode in ("ef", "ef21", "econtrol"):
        for rate in (RATE, RATE / 4):
            found = sp.count_calls(_one_coordinate(mode, rate), sp.ChainFunction(length), budget=20_000)
            yield _row("one coordinate a message", mode, length, length, [found], rate=rate)


def _one_coordinate(mode: str, rate: float) -> sp.Minimiser:
    from tersor.distributed import ErrorFeedbackState, Simulator, TopK

    def minimise(oracle: sp.Oracle, start: Tensor) -> None:
        state = ErrorFeedbackState(mode=mode, compressor=TopK(k=1), init="zero", min_numel=1, vectors=True)
        Simulator(state, start, lambda parameters, step: {"x": oracle(parameters["x"])[1][None]}).run(10**9, rate)

    return minimise
