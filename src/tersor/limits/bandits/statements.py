"""What ``tersor limits`` says about misspecified bandits."""

from __future__ import annotations

from tersor.limits.bandits.bounds import design_gap_bound, gap_bound, needle_bound, query_bound
from tersor.limits.registry import Bound, Measurement

_PAPER = "misspecified-bandits"
_INSTANCES = ((0, False), (1, True), (2, True))


def _searched(strategy: str) -> list[Measurement]:
    from tersor.limits.bandits.instances import sparse_instance
    from tersor.limits.bandits.search import SparseMisspecifiedSearch

    rows = []
    for seed, adversarial in _INSTANCES:
        instance = sparse_instance(2000, 6, 2, 0.2, adversarial=adversarial, seed=seed)
        found = SparseMisspecifiedSearch(instance.features, 2, 0.2, strategy=strategy).run(instance.query)  # type: ignore[arg-type]
        name = f"{strategy} search, {'adversarial' if adversarial else 'random'} errors, instance {seed}"
        bound = gap_bound(misspecification=0.2) if strategy == "net" else design_gap_bound(misspecification=0.2, sparsity=2)
        rows.append({"system": f"{name}: gap", "measured": instance.gap(found.action), "side": "at most", "bound": bound})
        if strategy == "net":
            most = query_bound(dimension=6, sparsity=2, misspecification=0.2, actions=2000)
            rows.append({"system": f"{name}: queries", "measured": float(found.queries), "side": "at most", "bound": most})
    return rows


def _needles() -> list[Measurement]:
    import numpy as np

    from tersor.limits.bandits.instances import needle_instance
    from tersor.limits.bandits.search import SparseMisspecifiedSearch

    instance = needle_instance(200, 400, 0.05)
    asked = list(SparseMisspecifiedSearch(instance.features, 4, 0.05, strategy="recover").run(lambda action: 0.0).asked)
    order = [*asked, *(action for action in range(400) if action not in set(asked))]
    queries = float(np.mean([order.index(hidden) + 1 for hidden in range(400)]))
    bound = needle_bound(needles=400, sparsity=200, misspecification=0.05)
    return [
        {"system": "pay of the needle", "measured": float(instance.rewards.max()), "side": "at least", "bound": bound["gap"]},
        # Unpaid answers leave the order of asking unchanged, so every place of the needle can be tried.
        {"system": "mean queries of sparse recovery", "measured": queries, "side": "at least", "bound": bound["queries"]},
    ]


LIMITS = (
    Bound(
        name="sparse-bandit-net",
        statement="Asking one action of each cell of a net, for every support, finds an action within 3 eps of the best by at most this "
        "many queries.",
        assumptions=["|mu(a) - <phi(a), theta>| <= eps, theta s-sparse, |theta|, |phi(a)| <= 1", "noiseless; noise adds 2 eps"],
        proven=["here: actions of one cell differ by eps in the linear part, and each reward by eps from it", "Dong, Yang 2023, in order"],
        formula="queries <= C(d, s) (ceil(2 sqrt(s)/eps) + 1)^s,  gap <= 3 eps",
        correction="the abstract has an eps d barrier for dense parameters; it is eps sqrt(d) (Lattimore et al. 2020)",
        calculator=query_bound, measure=lambda: _searched("net"), paper=_PAPER,
    ),
    Bound(
        name="sparse-bandit-design",
        statement="Least squares on an optimal design for every support finds an action within this gap, with no eps^-s in the queries.",
        assumptions=["as sparse-bandit-net; C(d, s) supports are enumerated"],
        proven=["here, from Kiefer-Wolfowitz: predictions are off by at most eps (1 + sqrt(2 s))"],
        formula="gap <= 2 eps (1 + sqrt(2 s))",
        correction="poly(s/eps) queries 'even in general settings' cannot hold for every finite set of actions: with phi = e_i and "
        "theta = e_j (s = 1) every algorithm needs order d",
        calculator=design_gap_bound, measure=lambda: _searched("design"), paper=_PAPER,
    ),
    Bound(
        name="sparse-bandit-needle",
        statement="On k nearly orthogonal actions of which one pays, every algorithm needs this many queries on average, and until then "
        "its answer is this far from the best.",
        assumptions=["noiseless; k unit vectors in s coordinates with coherence sqrt(8 log k/(s - 1)), misspecification eps"],
        proven=["here: every unpaid answer is consistent with every other needle; exp(s) queries for gaps s^delta eps with delta < 1/2"],
        formula="queries (k + 1)/2,  gap eps sqrt((s - 1)/(8 log k))",
        correction="the abstract claims exp(s) for 0 < delta < 1; for delta >= 1/2 this instance does not give it, and with d = O(s) the "
        "design search refutes it",
        calculator=needle_bound, measure=_needles, paper=_PAPER,
    ),
)  # fmt: skip
