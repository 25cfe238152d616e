"""What ``tersor limits`` says about sampling, couplings, codes and private regression. Plain mappings: the room of limits stays unknown."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tersor.errors import InvalidArgument
from tersor.information.bottleneck import ebim, uniform_quantiser
from tersor.information.coupling import CouplingMethod, entropy, mec
from tersor.information.ldp_regression.bounds import RateKind, error_rate
from tersor.information.ldp_regression.privacy import BallRandomiser
from tersor.information.sensitivity_sampling import BoundKind, ScoreKind, distortion, plan_rows, predict_rows, row_scores, sensitivities
from tersor.layerwise.checking import check_integer, check_number

Measurement = dict[str, Any]

# How far the entropy of a greedy coupling of two laws is from the least at most, in bits.
GREEDY = math.log2(math.e) / math.e


def _sampling(p: float = 3.0, d: int = 10, total: float = 0.0, eps: float = 0.1) -> dict[str, float]:
    check_number("p", p, 1.0)
    check_integer("d", d, 1)
    low, high = sorted((float(d), d ** (p / 2)))
    if total and not low * (1 - 1e-9) <= total <= high * (1 + 1e-9):
        raise InvalidArgument(
            f"for rank {d} and p = {p:g} sensitivities sum to {low:g} to {high:g}, not to {total:g}; total=0 takes the largest"
        )
    found = total or high
    names: tuple[BoundKind, ...] = ("sensitivity", "lewis", "sensitivity+leverage")
    if p <= 2:
        names = ("chen_derezinski", "lewis", "root_leverage", "sensitivity+leverage")
    rows = {f"rows, {name}": predict_rows(name, p, d, found, eps) for name in names}
    return {"least total": low, "largest total": high, **rows}


def _measure_sampling() -> list[Measurement]:
    random = np.random.default_rng(0)
    matrix = random.standard_t(1.5, size=(150, 6))
    rows: list[Measurement] = []
    for p in (1.5, 2.0, 3.0, 4.0):
        total = float(sensitivities(matrix, p).sum())
        low, high = sorted((6.0, 6 ** (p / 2)))
        name = f"total sensitivity, 150 heavy-tailed rows of rank 6, p {p:g}"
        rows += [{"system": name, "measured": total, "side": side, "bound": end} for side, end in (("at least", low), ("at most", high))]
    kinds: tuple[ScoreKind, ...] = ("leverage", "uniform")
    ours, uniform = (distortion(matrix, plan_rows(row_scores(matrix, 2.0, kind), 60, 2.0).draw(0)) for kind in kinds)
    name = "distortion of 60 rows by leverage, p 2, beside 60 uniform ones"
    return [*rows, {"system": name, "measured": ours, "side": "at most", "bound": uniform}]


def _private(n: int = 10**8, d: int = 20, k: int = 3, epsilon: float = 1.0) -> dict[str, float]:
    kinds: dict[str, RateKind] = {
        "at least, one message": "nldp_lower", "reached, one message": "nldp_upper", "reached, public inputs": "nldp_public_upper",
        "at least, in turn": "interactive_lower", "reached, in turn": "interactive_upper", "without privacy": "non_private",
    }  # fmt: skip
    return {name: error_rate(kind, n, d, k, epsilon) for name, kind in kinds.items()}


def _measure_private() -> list[Measurement]:
    from tersor.information.ldp_regression import PrivateIHT

    rows: list[Measurement] = []
    d, k, truth = 10, 2, np.zeros(10)
    truth[:2] = 0.8, -0.6
    for n in (20_000, 80_000):
        random = np.random.default_rng(n)
        x = random.normal(size=(n, d))
        fitted = PrivateIHT(1.0, 2 * k, random_state=0).fit(x, x @ truth + 0.1 * random.normal(size=n))
        error = float(np.linalg.norm(fitted.coef_ - truth))
        bound = error_rate("interactive_lower", n, d, k, 1.0)
        rows.append({"system": f"{n} users in turn, d {d}, k {k}: error", "measured": error, "side": "at least", "bound": bound})
    for epsilon in (0.5, 2.0):
        randomiser = BallRandomiser(epsilon, 1.0, 5)
        random = np.random.default_rng(0)
        messages = random.normal(size=(400, 5))
        users = np.vstack([np.eye(5), -np.eye(5), np.zeros(5)])
        densities = np.stack([randomiser.density(messages, user) for user in users])
        ratio = float((densities.max(0) / densities.min(0)).max())
        name = f"likelihood ratio of the randomiser, epsilon {epsilon:g}"
        rows.append({"system": name, "measured": ratio, "side": "at most", "bound": math.exp(epsilon)})
    return rows


def _code(second: float = 0.3) -> float:
    check_number("second", second, 0.0)
    if second > 0.5:
        raise InvalidArgument(f"the second largest of some probabilities is at most 0.5, got {second:g}")
    return entropy([second, 1 - second])


def _measure_code() -> list[Measurement]:
    random, rows = np.random.default_rng(0), []
    laws = random.dirichlet(np.full(24, 0.5), size=200)
    for name, function in {"greedy code": lambda p, rate: ebim(p, rate, close_gap=False), "greedy code, gap closed": ebim}.items():
        for share in (0.3, 0.7):
            lost = [(share * entropy(p) - function(p, share * entropy(p)).information, _code(float(np.sort(p)[-2]))) for p in laws]
            worst = max(lost, key=lambda pair: pair[0] - pair[1])
            label = f"{name}, rate {share:g} H(X), closest of 200 laws"
            rows.append({"system": label, "measured": worst[0], "side": "at most", "bound": worst[1]})
    told, rate = zip(*((uniform_quantiser(p, 0.7 * entropy(p)).information, 0.7 * entropy(p)) for p in laws), strict=True)
    name = "uniform quantiser, mean information, beside the rate"
    return [*rows, {"system": name, "measured": float(np.mean(told)), "side": "at most", "bound": float(np.mean(rate))}]


def _coupling(first: str = "0.5,0.3,0.2", second: str = "0.4,0.35,0.25") -> dict[str, float]:
    laws = [_read(name, text) for name, text in (("first", first), ("second", second))]
    bits = [entropy(law) for law in laws]
    return {"at least": max(bits), "greedy": mec(laws[0], laws[1]).entropy, "independent": sum(bits)}


def _read(name: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InvalidArgument(f"{name} must be probabilities with commas between them, such as 0.5,0.3,0.2, got {text!r}") from None


def _measure_coupling() -> list[Measurement]:
    random, rows = np.random.default_rng(0), []
    pairs = random.dirichlet(np.ones(16), size=(100, 2))
    least = float(np.mean([max(entropy(p), entropy(q)) for p, q in pairs]))
    methods: tuple[CouplingMethod, ...] = ("best", "max", "independent")
    for method in methods:
        found = float(np.mean([mec(p, q, method).entropy for p, q in pairs]))
        rows.append({"system": f"{method}, mean of 100 pairs of laws of 16", "measured": found, "side": "at least", "bound": least})
    # Of a law with itself the least entropy is known.
    excess = max(mec(p, p[::-1]).entropy - entropy(p) for p, _ in pairs)
    rows.append({"system": "greedy, above the least where it is known", "measured": excess, "side": "at most", "bound": GREEDY})
    return rows


LIMITS: tuple[dict[str, Any], ...] = (
    {
        "name": "lp-sampling",
        "statement": "The l_p sensitivities of a matrix of rank d sum to a total S between d^(p/2) and d, and sampling by them preserves "
        "every ||A x||_p^p within 1 + eps from so many rows, up to constants and powers of logarithms.",
        "assumptions": (
            "p >= 1; rows kept independently with probability min(1, 1/n + s/a) and weighed by its inverse",
            "total is S; 0 takes the largest there can be. Orders with constant 1: to compare methods, not to count rows",
        ),
        "proven": (
            "the range of S: here, from Lewis weights",
            "S^(2 - 2/p) for p > 2: Woodruff, Yasuda 2023",
            "d^(1 - p/2) S for p <= 2: Chen, Derezinski 2021; S + d for p <= 2: Munteanu, Omlor 2024",
            "not proven by anyone: S + d for p > 2",
        ),
        "formula": "p > 2: S^(2 - 2/p) / eps^2, with leverage d^(2/p) S^(2 - 4/p) / eps^2;  p <= 2: d^(1 - p/2) S / eps^2, with leverage "
        "(S + d) / eps^2",
        "calculator": _sampling,
        "measure": _measure_sampling,
        "correction": "the abstract of the first version claims S^(2/p) for 1 <= p < 2 as new and tight; the second drops it, since "
        "d^(1 - p/2) S of Chen and Derezinski is never larger (S >= d^(p/2)). S^(2 - 2/p) for p > 2 stands",
        "paper": "sensitivity-sampling",
    },
    {
        "name": "ldp-regression",
        "statement": "Sparse linear regression from n users with d features of which k matter, each epsilon-private against the server, "
        "has a Euclidean error of at least this order; what algorithms reach is beside it.",
        "assumptions": (
            "a truth of length 1, bounded or sub-Gaussian data",
            "orders with constant 1, never above 1; logarithms of what is reached left out",
            "one message: no user hears anything first; in turn: later users may",
        ),
        "proven": (
            "the orders in Zhu, Ding, Aggarwal, Xu, Wang 2024, whose constants were not available",
            "here: the likelihood ratio of the randomiser, two values whose quotient is exp(epsilon); checked exactly",
        ),
        "formula": "one message: at least sqrt(d k log d) / (sqrt(n) epsilon), reached d sqrt(k) / (sqrt(n) epsilon), with public inputs "
        "sqrt(d k) / (sqrt(n) epsilon);  in turn: at least sqrt(d k) / (sqrt(n) epsilon), reached k sqrt(d) / (sqrt(n) epsilon)",
        "calculator": _private,
        "measure": _measure_private,
        "correction": "copies of the abstract print 'sqrt(dk log d}{n eps}' or sqrt(n eps); n is under the root and epsilon is not",
        "paper": "ldp-regression",
    },
    {
        "name": "code-information",
        "statement": "A deterministic code of entropy at most R, merged greedily, tells R but for this much of a source whose second "
        "largest probability is known.",
        "assumptions": ("R at most the entropy of the source; bits",),
        "proven": ("here: a merge of the largest block with the next symbol, of probability at most p_2, loses at most h(p_2)",),
        "formula": "R - I(X;T) <= h(p_2),  h the binary entropy",
        "calculator": _code,
        "measure": _measure_code,
        "paper": "mec-b",
    },
    {
        "name": "coupling-entropy",
        "statement": "A joint law with two given marginals has at least the entropy of either; the greedy one is within 0.53 bits of the "
        "least.",
        "assumptions": ("first and second: probabilities with commas between them; bits",),
        "proven": (
            "at least: H(X, Y) >= H(X)",
            "greedy within log2(e)/e bits of the least: Compton, Katz, Qi, Greenewald, Kocaoglu 2023; against brute force in the tests",
        ),
        "formula": "max(H(p), H(q)) <= H <= H(p) + H(q);  greedy <= least + log2(e)/e",
        "calculator": _coupling,
        "measure": _measure_coupling,
        "paper": "mec-b",
    },
)
