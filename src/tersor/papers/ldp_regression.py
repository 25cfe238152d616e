"""Sparse regression in the local model of privacy: how the error falls with users, and what dimension and sparsity cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tersor.papers.frame import Paper, Result, Row

PAPER = Paper(
    key="ldp-regression",
    claim="One private message a user suffices for sparse regression with an error that falls with the root of the number of users; public "
    "inputs lower it, the more so the more features there are, and users who answer in turn reach the same error with fewer of them.",
    where="tersor.information.ldp_regression",
)

SEEDS = (0, 1, 2, 3, 4)
EPSILON, DELTA = 1.0, 1e-5
NOISE = 0.1
# Users of the runs over features: enough for the published noise to leave the second moment its inverse.
CROWD = 10**13
# Mean errors up to this enter the slopes.
LEARNT = 0.35


@dataclass(frozen=True)
class Size:
    """How much work the experiment spends.

    Attributes:
        users: Virtual users of the one-message runs, increasing.
        dimensions: Features.
        sparsities: Features that matter.
        interactive: Real users of the runs in turn, each of whom is privatised on its own.
        checks: Pairs of users whose messages' likelihoods are compared.
    """

    users: tuple[int, ...]
    dimensions: tuple[int, ...]
    sparsities: tuple[int, ...]
    interactive: tuple[int, ...]
    checks: int


FULL = Size((10**8, 10**9, 10**10, 10**11, 10**12), (10, 20, 40), (1, 3, 9), (120_000, 360_000, 1_080_000), 3000)
QUICK = Size((10**10, 10**12), (10, 20), (1, 3), (100_000, 300_000), 200)


def run(quick: bool) -> Result:
    """Errors over users, features and sparsity in three models of privacy, and the likelihood ratios that privacy is about."""
    size = QUICK if quick else FULL
    rows = [*_over_users(size), *_over_dimensions(size), *_over_sparsities(size), *_interactive(size)]
    ratio = _worst_ratio(size)
    slopes = {method: _slope(rows, method) for method in ("one message", "public inputs", "in turn")}
    margins = [
        *(0.15 - abs(slope + 0.5) for slope in slopes.values()), _help_of_public_inputs(rows, size), _users_saved(rows),
    ]  # fmt: skip
    private = ratio <= math.exp(EPSILON) * (1 + 1e-12)
    return Result(
        rows, "the proven rates, and one message a user", min(margins), SEEDS, private and min(margins) > 0,
        ("white Gaussian inputs, planted sparse coefficients of length 1",), _notes(rows, size, slopes, ratio),
    )  # fmt: skip


def _truth(d: int, k: int) -> Any:
    import numpy as np

    truth = np.zeros(d)
    truth[:k] = np.where(np.arange(k) % 2, -1, 1) / math.sqrt(k)
    return truth


def _one_message(n: int, d: int, k: int, seed: int, public: bool, noise: str = "exact") -> Row:
    """An estimate from the law of the sums that ``n`` users send: a Wishart matrix, regression noise, and privacy noise."""
    from dataclasses import replace

    import numpy as np
    from scipy.stats import wishart

    from tersor.errors import TersorError
    from tersor.information.ldp_regression import MomentSums, NLDPRegression, error_rate

    random, truth = np.random.default_rng([seed, d, k, n]), _truth(d, k)
    model = NLDPRegression(EPSILON, DELTA)
    mechanism = model.mechanism_for(d, n, public)
    if noise == "published":
        mechanism = replace(mechanism, radius=math.sqrt(2 * d * math.log(n)), mechanism="classic")
    gram = np.atleast_2d(wishart(df=n, scale=np.eye(d)).rvs(random_state=random))
    cross = gram @ truth + NOISE * np.linalg.cholesky(gram) @ random.normal(size=d)
    sums = mechanism.add_noise(MomentSums(None if public else gram, cross, n), random)
    # As many public inputs as one likes: their second moment is that of the distribution.
    inputs = math.sqrt(d) * np.eye(d) if public else None
    row: Row = {"method": "public inputs" if public else "one message", "noise": noise, "users": n, "d": d, "k": k, "seed": seed}
    reached = error_rate("nldp_public_upper" if public else "nldp_upper", n, d, k, EPSILON)
    row |= {"rate": reached, "lower": error_rate("nldp_lower", n, d, k, EPSILON)}
    try:
        model.fit_messages(sums, mechanism, inputs)
    except TersorError:
        return row | {"error": None, "dense_error": None, "smallest_eigenvalue": model.smallest_eigenvalue_, "false": None}
    dense = sums.cross / n if sums.gram is None else np.linalg.solve(sums.gram, sums.cross)
    # The least threshold that the deterministic guarantee holds for, which only a simulation can know.
    oracle = float(np.abs(dense - truth).max())
    sparse = np.sign(dense) * np.maximum(np.abs(dense) - oracle, 0)
    return row | {
        "error": float(np.linalg.norm(sparse - truth)), "theory_error": float(np.linalg.norm(model.coef_ - truth)),
        "dense_error": float(np.linalg.norm(dense - truth)), "smallest_eigenvalue": model.smallest_eigenvalue_,
        "false": int(np.count_nonzero(sparse[k:])),
    }  # fmt: skip


def _over_users(size: Size) -> Iterator[Row]:
    for n in size.users:
        for seed in SEEDS:
            for public in (False, True):
                yield {"part": "users"} | _one_message(n, 20, 3, seed, public)


def _over_dimensions(size: Size) -> Iterator[Row]:
    for d in size.dimensions:
        for seed in SEEDS:
            for public in (False, True):
                for noise in ("published", "exact"):
                    yield {"part": "dimension"} | _one_message(CROWD, d, 3, seed, public, noise)


def _over_sparsities(size: Size) -> Iterator[Row]:
    for k in size.sparsities:
        for seed in SEEDS:
            yield {"part": "sparsity"} | _one_message(size.users[-1], 20, k, seed, False)


def _interactive(size: Size) -> Iterator[Row]:
    import numpy as np

    from tersor.information.ldp_regression import PrivateIHT, error_rate

    d, k = 20, 3
    truth = _truth(d, k)
    for n in size.interactive:
        for seed in SEEDS:
            random = np.random.default_rng([seed, n])
            x = random.normal(size=(n, d))
            y = x @ truth + NOISE * random.normal(size=n)
            fitted = PrivateIHT(EPSILON, 2 * k, rounds=12, random_state=seed).fit(x, y)
            yield {
                "part": "in turn", "method": "in turn", "noise": "exact", "users": n, "d": d, "k": k, "seed": seed,
                "error": float(np.linalg.norm(fitted.coef_ - truth)), "rate": error_rate("interactive_upper", n, d, k, EPSILON),
                "lower": error_rate("interactive_lower", n, d, k, EPSILON),
            }  # fmt: skip


def _worst_ratio(size: Size) -> float:
    """The largest likelihood ratio of any message between any two users, opposite extremes among them."""
    import numpy as np

    from tersor.information.ldp_regression import BallRandomiser

    worst, random = 0.0, np.random.default_rng(0)
    mechanism = BallRandomiser(EPSILON, 1.0, 20)
    for _ in range(size.checks):
        first, second = random.normal(size=(2, 20)) * random.choice([0.01, 0.1, 10.0], size=(2, 1))
        messages = mechanism.randomise(np.stack([first, second]), random)
        for other in (second, -first):
            worst = max(worst, float((mechanism.density(messages, first) / mechanism.density(messages, other)).max()))
    return worst


def _slope(rows: list[Row], method: str) -> float:
    """Of the logarithm of the mean error over that of the users, by least squares, where every seed had an answer."""
    import numpy as np

    part = [row for row in rows if row["part"] in ("users", "in turn") and row["method"] == method]
    means = {}
    for n in sorted({row["users"] for row in part}):
        errors = [row["error"] for row in part if row["users"] == n]
        # An error near the length of the truth, which is 1, says that little was learnt yet, not how fast it is learnt.
        if None not in errors and np.mean(errors) < LEARNT:
            means[n] = float(np.mean(errors))
    return float(np.polyfit(np.log(list(means)), np.log(list(means.values())), 1)[0]) if len(means) > 1 else 0.0


def _mean(rows: list[Row], part: str, method: str, key: str, value: int, noise: str = "exact") -> float:
    of_part = [row for row in rows if row["part"] == part and row["noise"] == noise]
    found = [row["error"] for row in of_part if row["method"] == method and row[key] == value]
    return sum(1.0 if error is None else error for error in found) / len(found)


def _help_of_public_inputs(rows: list[Row], size: Size) -> float:
    """How much larger the gain of public inputs is at the most features than at the fewest, less one."""
    return _public_gain(rows, size.dimensions[-1], "published") / _public_gain(rows, size.dimensions[0], "published") - 1


def _public_gain(rows: list[Row], d: int, noise: str) -> float:
    """What public inputs divide the error by."""
    private, public = (_mean(rows, "dimension", method, "d", d, noise) for method in ("one message", "public inputs"))
    return private / public


def _users_saved(rows: list[Row]) -> float:
    """By how much users in turn undercut the error that over a hundred times as many get to with one message."""
    most = max(row["users"] for row in rows if row["part"] == "in turn")
    least = min(row["users"] for row in rows if row["part"] == "users" and row["users"] >= 100 * most)
    return 1 - _mean(rows, "in turn", "in turn", "users", most) / _mean(rows, "users", "one message", "users", least)


def _notes(rows: list[Row], size: Size, slopes: dict[str, float], ratio: float) -> list[str]:
    refused = sorted({row["users"] for row in rows if row["error"] is None})
    gains = {
        noise: ", ".join(f"{_public_gain(rows, d, noise):.2f} at {d} features" for d in size.dimensions) for noise in ("published", "exact")
    }  # fmt: skip
    sparsity = [f"{_mean(rows, 'sparsity', 'one message', 'k', k):.3f} with {k}" for k in size.sparsities]
    below = [row for row in rows if row["error"] is not None and row["error"] < row["lower"]]
    false = sum(row["false"] or 0 for row in rows if "false" in row)
    return [
        "slopes of the error over users, both logarithmic, -0.5 in theory: "
        + ", ".join(f"{slope:.3f} {method}" for method, slope in slopes.items()),
        f"public inputs divide the error by {gains['published']} with the published noise and radius; the bounds differ by the root of the "
        f"features. With exact accounting and a radius of sqrt(d) + sqrt(2 log n), which Gaussian inputs hardly exceed: {gains['exact']}",
        f"error by number of features that matter, one message and {size.users[-1]:.0e} users: {', '.join(sparsity)}",
        f"the largest likelihood ratio found is {ratio:.12f}, exp(epsilon) is {math.exp(EPSILON):.12f}",
        f"features wrongly found by thresholds that cover the noise: {false}; errors below the lower bound with constant 1: {len(below)}",
        "errors of one-message runs are with the least threshold that covers the noise, known to a simulation alone; theory_error is with "
        "the one that needs no such knowledge. Users beyond 1e6 are virtual: sums of their messages are drawn from the exact law of "
        "unclipped inputs",
        f"refused for lack of an invertible second moment at users: {', '.join(f'{n:.0e}' for n in refused) or 'none'}",
    ]
