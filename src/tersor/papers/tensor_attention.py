"""Tensor attention: the certified polynomial form against the exact one, its time, and a task that needs pairs of tokens."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor

from tersor.papers.frame import Paper, Result, Row, measured

PAPER = Paper(
    key="tensor-attention",
    claim="For small entries the polynomial form of tensor attention stays within its certificate on random and adversarial inputs and "
    "takes time linear in the tokens, where the exact form takes cubic time; one exact head decides match-3, beyond its reach.",
    where="tersor.attention.tensor_attention",
)

SEEDS = (0, 1, 2)
BOUNDS = (0.4, 0.7, 1.0, 1.3)
DEGREES = (2, 4, 6, 8, 12)
# Six tokens have a match about as often as not, thirty nearly always.
TOKENS = (6, 8, 30)
# Exponents of time that count as near-linear and as near-cubic.
LINEAR, CUBIC = 1.3, 2.5


def run(quick: bool) -> Result:
    """Measure errors against certificates, exponents of processor time, and match-3 against brute force."""
    cases, instances = (20, 20) if quick else (60, 200)
    rows: list[Row] = list(measured(_errors(cases)))
    timed = list(measured(_times(quick)))
    matches = list(measured(_matches(instances)))
    worst = max(row["largest_over_certificate"] for row in rows if row["certified"])
    linear, cubic = (_exponent(timed, method) for method in ("poly", "exact"))
    solved = all(row["correct"] == row["instances"] for row in matches)
    certified = sum(row["certified"] for row in rows)
    notes = [
        f"processor time grows like n^{linear:.2f} for the polynomial of degree 6 and like n^{cubic:.2f} for the exact form",
        f"{certified} of {sum(row['cases'] for row in rows)} inputs have a certificate; for the others the degree is refused",
    ]
    holds = worst <= 1 and linear <= LINEAR and cubic >= CUBIC and solved
    baseline = "the certificate of the largest error"
    data = ["uniform and sign-aligned entries, random residues"]
    return Result([*rows, *timed, *matches], baseline, 1 - worst, SEEDS, holds, data, notes)


def _errors(cases: int) -> Iterator[Row]:
    from tersor.attention import certify, higher_order_attention
    from tersor.errors import InvalidArgument

    for kind, draw in (("uniform", _uniform), ("aligned signs", _aligned), ("rank one", _rank_one)):
        for bound in BOUNDS:
            for degree in DEGREES:
                certified, largest, error = 0, 0.0, 0.0
                for seed in SEEDS:
                    random = _generator(seed)
                    for _ in range(cases // len(SEEDS)):
                        q, keys, values = draw(random, bound)
                        try:
                            certificate = certify(q, keys, values, degree=degree)
                        except InvalidArgument:
                            continue
                        made = higher_order_attention(q, keys, values, method="poly", degree=degree)
                        off = float((made - higher_order_attention(q, keys, values, method="exact")).abs().max())
                        certified, largest, error = certified + 1, max(largest, off / certificate.error), max(error, off)
                yield {
                    "part": "error", "inputs": kind, "bound": bound, "degree": degree, "cases": cases // len(SEEDS) * len(SEEDS),
                    "certified": certified, "largest_error": error, "largest_over_certificate": largest,
                }  # fmt: skip


def _generator(seed: int) -> Any:
    import torch

    return torch.Generator().manual_seed(seed)


def _uniform(random: Any, bound: float, n: int = 16, d: int = 3) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    import torch

    q, *others = 2 * torch.rand(5, n, d, generator=random, dtype=torch.float64) - 1
    return bound * q, [bound * key for key in others[:2]], others[2:]


def _aligned(random: Any, bound: float) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Largest entries, most of them of one sign, values of largest size."""
    q, keys, values = _uniform(random, 1.0)
    return bound * (q + 0.7).sign(), [bound * (key + 0.7).sign() for key in keys], [value.sign() for value in values]


def _rank_one(random: Any, bound: float) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Largest entries whose products have one sign in all columns: logits at plus and minus their bound."""
    q, keys, values = _uniform(random, 1.0)
    columns = q[:1].sign(), keys[0][:1].sign()
    q, k1 = bound * q[:, :1].sign() * columns[0], bound * keys[0][:, :1].sign() * columns[1]
    return q, [k1, bound * keys[1][:, :1].sign() * columns[0] * columns[1]], [value.sign() for value in values]


def _times(quick: bool) -> Iterator[Row]:
    from tersor.attention import higher_order_attention

    sizes = {"poly": (4096, 8192, 16384, 32768), "exact": (128, 256, 512)}
    if quick:
        sizes = {"poly": (512, 1024, 2048), "exact": (64, 128, 256)}
    options: dict[str, dict[str, Any]] = {"poly": {"method": "poly", "degree": 6}, "exact": {"method": "exact"}}
    for method, lengths in sizes.items():
        for n in lengths:
            q, keys, values = _uniform(_generator(0), 0.5, n, 4)
            call = partial(higher_order_attention, q, keys, values, **options[method])
            yield {"part": "time", "method": method, "n": n, "seconds": _least(call)}


def _least(call: Callable[[], object], repeats: int = 3) -> float:
    """Processor time of the fastest of a few calls: other work of the machine only adds."""
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        call()
        taken.append(time.process_time() - began)
    return min(taken)


def _exponent(rows: list[Row], method: str) -> float:
    """Slope of the logarithms over the four largest sizes."""
    import numpy as np

    points = [(row["n"], row["seconds"]) for row in rows if row["method"] == method][-4:]
    return float(np.polyfit([math.log(n) for n, _ in points], [math.log(seconds) for _, seconds in points], 1)[0])


def _matches(instances: int) -> Iterator[Row]:
    import torch

    from tersor.attention import match_three

    for seed in SEEDS:
        random, correct, positive = _generator(seed), 0, 0
        for _ in range(instances):
            x = torch.randint(31, (TOKENS[seed],), generator=random)
            expected = ((x[:, None, None] + x[:, None] + x) % 31 == 0).flatten(1).any(1)
            correct += bool(torch.equal(match_three(x, 31), expected))
            positive += int(expected.sum())
        yield {"part": "match-3", "seed": seed, "tokens": len(x), "instances": instances, "correct": correct, "matches": positive}
