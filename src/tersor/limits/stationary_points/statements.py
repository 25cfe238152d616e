"""What ``tersor limits`` says about stationary points."""

from __future__ import annotations

from tersor.limits.registry import Bound, Measurement
from tersor.limits.stationary_points.bounds import mean_squared_lower_bound, query_lower_bound, stochastic_lower_bound

_PAPER = "quantum-lower-bounds"
_QUANTUM = "Zhang, Li 2023: quantum oracles need queries of the same order in high dimension; not re-proved, nothing quantum is run"
_LENGTH = 12


def _against_resisting() -> list[Measurement]:
    import torch

    from tersor.limits.stationary_points.bench import Run, bench_optimizer, count_calls, gradient_descent, scipy_minimiser
    from tersor.limits.stationary_points.chain import ChainFunction
    from tersor.limits.stationary_points.resisting import ResistingOracle

    def oracle() -> ResistingOracle:
        return ResistingOracle(ChainFunction(_LENGTH))

    def row(name: str, run: Run) -> Measurement:
        return {"system": name, "measured": run.calls, "side": "at least", "bound": _LENGTH, "reached": run.reached}

    return [
        row("gradient descent", count_calls(gradient_descent(0.05), oracle())),
        row("Adam", bench_optimizer(lambda p: torch.optim.Adam(p, lr=0.05), oracle())),
        row("L-BFGS", bench_optimizer(lambda p: torch.optim.LBFGS(p, line_search_fn="strong_wolfe"), oracle())),
        row("conjugate gradients", count_calls(scipy_minimiser("CG"), oracle())),
    ]


def _against_noise(smooth: bool) -> list[Measurement]:
    import math

    from tersor.limits.stationary_points.bench import count_calls, gradient_descent
    from tersor.limits.stationary_points.chain import ChainFunction
    from tersor.limits.stationary_points.stochastic import StochasticChain

    rows = []
    for q in (1.0, 0.5, 0.25):
        run = count_calls(gradient_descent(0.05 * q), StochasticChain(ChainFunction(_LENGTH), q, smooth=smooth))
        bound = (_LENGTH - math.log(2)) / (2 * q)
        rows.append(
            {"system": f"stochastic descent, q={q:g}", "measured": run.calls, "side": "at least", "bound": bound, "reached": run.reached}
        )
    return rows


LIMITS = (
    Bound(
        name="stationary-points",
        statement="No algorithm that sees derivatives up to order p of a function with an L-Lipschitz p-th derivative finds a point with "
        "|grad f| <= eps in fewer oracle calls than this, for some function with f(start) - inf f <= gap.",
        assumptions=[
            "a deterministic algorithm, or a randomised one in dimension 52 230^2 T^2 log(2 T^2/c) up to a constant factor",
            "the dimension is at least twice the bound",
            "worst case: a given function may be far easier",
        ],
        proven=[
            "Carmon, Duchi, Hinder, Sidford 2017: the chain and the resisting oracle",
            "here: l_p for every p from the suprema of two scalar functions (order 1 gives 151.3, the papers' 152); 2 T dimensions suffice",
            _QUANTUM,
        ],
        formula="T = floor(gap/12 (L/l_p)^(1/p) eps^(-(1+p)/p)),  l_1 = 152, l_2 = 2070, l_3 = 46134, ...",
        correction="mirrors of the abstract print eps^(-1+p{p}); the exponent is -(1+p)/p",
        calculator=query_lower_bound, measure=_against_resisting, paper=_PAPER,
    ),
    Bound(
        name="stationary-points-stochastic",
        statement="With unbiased gradients of variance sigma^2 no algorithm finds E |grad f| <= eps in fewer calls than this.",
        assumptions=["L-Lipschitz gradient, f(start) - inf f <= gap", "zero-respecting algorithms; others in high dimension"],
        proven=["Arjevani et al. 2019 (Theorem 3 and its lemmas); progress and variance are re-proved by the tests' simulation", _QUANTUM],
        formula="(T - log(1/c)) / (2 q),  T = floor(gap L / (48 152 eps^2)),  q = min(1, (46 eps / sigma)^2):  order gap L sigma^2 / eps^4",
        calculator=stochastic_lower_bound, measure=lambda: _against_noise(False), paper=_PAPER,
    ),
    Bound(
        name="stationary-points-mean-squared",
        statement="The same for stochastic gradients that are mean-squared smooth, which variance reduction needs.",
        assumptions=["E |g(x,z) - g(y,z)|^2 <= L^2 |x-y|^2, f(start) - inf f <= gap", "zero-respecting algorithms, as above"],
        proven=["Arjevani et al. 2019; the constant 328 is theirs, only checked by simulation here", _QUANTUM],
        formula="as stationary-points-stochastic with L replaced by L min(1, 152 sqrt(q) / 328):  order gap L sigma / eps^3",
        calculator=mean_squared_lower_bound, measure=lambda: _against_noise(True), paper=_PAPER,
    ),
)  # fmt: skip
