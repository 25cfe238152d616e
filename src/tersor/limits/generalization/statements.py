"""What ``tersor limits`` says about bounds on the error of trained models."""

from __future__ import annotations

import math

from tersor.limits.generalization.bounds import holdout_bound, occam_bound
from tersor.limits.generalization.twins import FieldTwin, ShatteredTwin, le_cam_bound
from tersor.limits.registry import Bound, Measurement

_PAPER = "generalization-measures"
_CAUTION = "only bounds that must be tight for every distribution are concerned: it does not say that bounds fail on data we meet"


def _shattered(points: int = 40, examples: int = 20) -> float:
    return ShatteredTwin(points, examples).gap


def _field(field: int = 2, examples: int = 8, dimension: int = 24) -> dict[str, float]:
    twin = FieldTwin(field, examples, dimension)
    return {"bound": twin.gap, "invertible": twin.invertible, "loss in B": 1 - 1 / field}


def _audited(pair: str) -> list[Measurement]:
    from tersor.limits.generalization.auditing import audit

    bounds = {
        "training error": lambda draw: draw.wrong / len(draw.labels),
        "parameter count": lambda draw: occam_bound(bits=float(len(draw.hypothesis)), examples=len(draw.labels), errors=draw.wrong),
        "half of guessing": lambda draw: (1 - 1 / draw.labels_count) / 2,
    }
    twin = ShatteredTwin(40, 20) if pair == "shattered" else FieldTwin(7, 8, 24)
    # Four standard errors of the mean of numbers in [0, 1] are allowed for chance.
    chance = 4 * 0.5 / (2 * 400) ** 0.5
    return [
        {"system": found.bound, "measured": found.mean_error, "side": "at least", "bound": found.gap - chance}
        for found in audit(bounds, {pair: twin}, trials=400)
    ]


def _compressed_digits() -> list[Measurement]:
    import numpy as np
    from sklearn.datasets import load_digits

    from tersor.limits.generalization.compressed import fit_linear, linear_bits, quantise

    images, labels = load_digits(return_X_y=True)
    random = np.random.default_rng(0)
    order = random.permutation(len(labels))
    images, labels = images[order] / 16, labels[order]
    train, test = slice(0, 1437), slice(1437, None)
    weight = fit_linear(images[train], labels[train])
    rows = []
    for bits in (2, 4, 8):
        small = quantise(weight, bits)
        wrong = [int(((images[part] @ small).argmax(1) != labels[part]).sum()) for part in (train, test)]
        bound = occam_bound(bits=float(linear_bits(weight.size, bits)), examples=1437, errors=wrong[0])
        name = f"linear digits classifier, {bits} bits a weight, held-out error"
        rows.append({"system": name, "measured": wrong[1] / 360, "side": "at most", "bound": bound})
    return rows


def _held_out() -> list[Measurement]:
    import numpy as np

    random, rows = np.random.default_rng(0), []
    for error in (0.02, 0.2):
        wrong = random.binomial(360, error, size=2000)
        failed = float(np.mean([holdout_bound(examples=360, errors=int(count)) < error for count in wrong]))
        # Four standard errors are allowed for chance.
        bound = 0.05 + 4 * (0.05 / 2000) ** 0.5
        rows.append({"system": f"failures at a true error of {error:g}", "measured": failed, "side": "at most", "bound": bound})
    return rows


def _two_worlds() -> list[Measurement]:
    """Coins of 0.4 and 0.6 and the hypothesis that always says tails: everything is a sum over the number of heads, without chance."""
    rows: list[Measurement] = []
    for flips in (1, 9, 41):
        laws = [[math.comb(flips, k) * p**k * (1 - p) ** (flips - k) for k in range(flips + 1)] for p in (0.4, 0.6)]
        variation = sum(abs(a - b) for a, b in zip(*laws, strict=True)) / 2
        bound = le_cam_bound(variation=variation)
        estimates = {
            "likelier world": [0.4 if 2 * k < flips else 0.6 for k in range(flips + 1)],
            "share of heads": [k / flips for k in range(flips + 1)],
        }
        for name, estimate in estimates.items():
            missed = max(
                sum(chance for chance, guess in zip(law, estimate, strict=True) if abs(guess - p) >= 0.1 - 1e-12)
                for law, p in zip(laws, (0.4, 0.6), strict=True)
            )
            label = f"{name}, {flips} flips, tau {variation:.3f}: failures"
            rows.append({"system": label, "measured": missed, "side": "at least", "bound": bound})
    return rows


LIMITS = (
    Bound(
        name="twin-shattered",
        statement="Every estimate of the true error from sample and hypothesis alone is off by this much on average, on one pair of worlds "
        "of D points and n examples.",
        assumptions=["a fair coin for the world; estimates that do not know which algorithm ran", _CAUTION],
        proven=["here: both worlds have one law of (sample, hypothesis), enumerated in the tests; Theorems 1 and 2 of Gastpar et al. 2024"],
        formula="(1 - 1/D)^n / 4",
        calculator=_shattered, measure=lambda: _audited("shattered"), paper=_PAPER,
    ),
    Bound(
        name="twin-field",
        statement="The same for one known algorithm that learns linear maps over the field of q elements: learning one family well "
        "makes its error impossible to tell.",
        assumptions=["a fair coin for the world; d > n, q prime", _CAUTION],
        proven=["here, by counting; Theorem 4 of Gastpar et al. 2024, whose constants were not available"],
        formula="pi (1 - 1/q)/2 (1 - q^(n-d)),  pi = prod_{k=1..n} (1 - q^-k)",
        calculator=_field, measure=lambda: _audited("field"), paper=_PAPER,
    ),
    Bound(
        name="estimability",
        statement="With laws that are tau apart in total variation, precision (b - a)/2 fails with at least this probability in one world.",
        assumptions=["loss at most a in the first world, at least b in the second, but for the failures"],
        proven=["here: Le Cam's two points; the form of Theorem 3 of Gastpar et al. 2024"],
        formula="(1 - tau - delta_a - delta_b) / 2",
        calculator=le_cam_bound, measure=_two_worlds, paper=_PAPER,
    ),
    Bound(
        name="occam",
        statement="A classifier that is described in so many bits and makes so many errors on n examples has at most this true error, with "
        "probability 1 - delta.",
        assumptions=["independent examples; a code that was fixed before they were seen; bits of the whole decodable file"],
        proven=["Langford, Caruana 2001 and Maurer 2004 (Chernoff form); inverted here to the last bit"],
        formula="kl(errors/n | L) <= (bits log 2 + 2 log(bits + 1) + log(2 sqrt(n)/delta)) / n",
        calculator=occam_bound, measure=_compressed_digits, paper=_PAPER,
    ),
    Bound(
        name="holdout",
        statement="A classifier with so many errors on examples that it was not trained on has at most this true error, with probability "
        "1 - delta: the control that every other bound must be compared with.",
        assumptions=["independent held-out examples, used once"],
        proven=["Clopper, Pearson 1934"],
        formula="the 1 - delta quantile of Beta(errors + 1, n - errors)",
        calculator=holdout_bound, measure=_held_out, paper=_PAPER,
    ),
)  # fmt: skip
