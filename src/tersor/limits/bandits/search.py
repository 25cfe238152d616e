"""Finding a good action by few rewards, where rewards are a sparse linear function of features up to an error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal

import numpy as np

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_choice, check_integer, check_number
from tersor.limits.bandits.bounds import design_gap_bound, gap_bound
from tersor.limits.bandits.design import optimal_design
from tersor.limits.bandits.recovery import recover
from tersor.limits.checking import check_array

Strategy = Literal["net", "design", "recover"]
# Supports that are enumerated at most; more take hours.
_MOST_SUPPORTS = 10**6


@dataclass(frozen=True)
class Found:
    """The answer of a search.

    Attributes:
        action: The action with the highest measured reward.
        value: That reward, averaged over its queries.
        queries: Rewards that were asked for, repetitions included; those of an earlier run count once an action.
        certificate: How far it is from the best action at most, if the assumptions hold and the budget sufficed; ``None`` if nothing is
            guaranteed. With noise it holds except with probability ``failure``.
        asked: Mean reward of every action that was asked for: hand it to the next run, which then asks for none of them again.
    """

    action: int
    value: float
    queries: int
    certificate: float | None
    asked: dict[int, float] = field(default_factory=dict)


class SparseMisspecifiedSearch:
    """Find an action ``a`` with a high reward ``mu(a)``, where ``|mu(a) - <features(a), theta>| <= eps`` for an ``s``-sparse ``theta``.

    Which strategy? ``"net"`` comes within ``3 eps`` but takes ``O(d^s eps^-s)`` queries. ``"design"`` comes within
    ``2 eps (1 + sqrt(2 s))`` and takes ``C(d, s)`` times a polynomial in ``s``. ``"recover"`` takes ``O(s log d)`` queries and certifies
    nothing: it needs features in which a sparse parameter can be told from few random actions, and it is what works in practice. No
    strategy finds a needle (:func:`needle_instance`) without asking for half of the actions.

    Args:
        features: ``[actions, d]``, rows of norm at most 1.
        sparsity: ``s``.
        misspecification: ``eps``.
        strategy: ``"net"``, ``"design"`` or ``"recover"``.
        radius: Largest norm of the unknown parameter.
        noise: Deviation of the rewards, sub-Gaussian; above 0 each action is asked for repeatedly.
        failure: Probability with which noise may spoil the certificate.
        budget: Most queries; where it is too small the certificate is dropped.
        seed: Of random choices.

    Raises:
        InvalidArgument: On features of another shape or norm, an argument out of range, or more than a million supports.

    Reference:
        Dong, Yang: "Does Sparsity Help in Learning Misspecified Linear Bandits?", 2023.
        Lattimore, Szepesvari, Weisz: "Learning with Good Feature Representations in Bandits and in RL with a Generative Model", 2020.
    """

    def __init__(
        self, features: Any, sparsity: int, misspecification: float, *, strategy: Strategy = "net", radius: float = 1.0, noise: float = 0.0,
        failure: float = 0.05, budget: int | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        self.features = check_array("features", features, 2)
        largest = float(np.linalg.norm(self.features, axis=1).max())
        if largest > 1 + 1e-9:
            raise InvalidArgument(f"features must have rows of norm at most 1, the largest is {largest:.4g}; divide by it and raise radius")
        self.sparsity = check_integer("sparsity", sparsity, 1, self.features.shape[1])
        self.misspecification = check_number("misspecification", misspecification, math.ulp(0.0))
        check_choice("strategy", strategy, Strategy)
        self.strategy = strategy
        self.radius = check_number("radius", radius, math.ulp(0.0))
        self.noise = check_number("noise", noise, 0.0)
        self.failure = check_number("failure", failure, math.ulp(0.0), 1.0)
        self.budget = None if budget is None else check_integer("budget", budget, 1)
        self.seed = check_integer("seed", seed, 0)
        supports = math.comb(self.features.shape[1], self.sparsity)
        if strategy != "recover" and supports > _MOST_SUPPORTS:
            raise InvalidArgument(f"{supports:,} supports are too many to enumerate; use strategy='recover' or a lower sparsity")

    def run(self, query: Callable[[int], float], asked: Mapping[int, float] | None = None) -> Found:
        """Search.

        Args:
            query: Reward of an action, a random one if there is noise. What it raises ends the search.
            asked: Mean rewards that are known already, of this same problem.

        Raises:
            InvalidArgument: If a reward is not finite, or ``asked`` names an action that does not exist.
        """
        purse = _Purse(query, len(self.features), self.budget, asked or {})
        complete, certificate = {"net": self._net, "design": self._design, "recover": self._recover}[self.strategy](purse)
        if not purse.asked:
            raise InvalidArgument("the budget does not suffice for one action; raise it or lower the noise")
        action = max(purse.asked, key=purse.asked.__getitem__)
        return Found(action, purse.asked[action], purse.queries, certificate if complete else None, purse.asked)

    def _supports(self) -> Iterator[tuple[int, ...]]:
        return combinations(range(self.features.shape[1]), self.sparsity)

    def _repetitions(self, actions: int) -> tuple[int, float]:
        """How often to ask for each of so many actions, and how far the means may then be off."""
        if self.noise == 0:
            return 1, 0.0
        needed = 2 * math.log(2 * max(actions, 1) / self.failure) * (self.noise / self.misspecification) ** 2
        return max(math.ceil(needed), 1), self.misspecification

    def _net(self, purse: _Purse) -> tuple[bool, float]:
        representatives = self.representatives()
        repetitions, width = self._repetitions(len(representatives))
        complete = purse.ask(representatives, repetitions)
        return complete, gap_bound(misspecification=self.misspecification, radius=self.radius, noise=width)

    def representatives(self) -> list[int]:
        """Actions one of which is, for every support, in the cell of side ``eps / sqrt(s)`` of any given action."""
        cells = np.floor(self.features * (math.sqrt(self.sparsity) / self.misspecification)).astype(np.int64)
        chosen = np.zeros(len(self.features), dtype=bool)
        for support in self._supports():
            _, number = np.unique(cells[:, support], axis=0, return_inverse=True)
            number = number.reshape(-1)
            # A cell that holds a chosen action needs no other; the rest take their first action.
            covered = np.zeros(number.max() + 1, dtype=bool)
            covered[number[chosen]] = True
            _, first = np.unique(number, return_index=True)
            chosen[first[~covered]] = True
        return [int(action) for action in np.flatnonzero(chosen)]

    def _design(self, purse: _Purse) -> tuple[bool, float]:
        plans = []
        for support in self._supports():
            rows = self.features[:, support]
            weights = optimal_design(rows)
            plans.append((rows, weights))
        everything = {int(action) for _, weights in plans for action in np.flatnonzero(weights)}
        repetitions, width = self._repetitions(len(everything) + len(plans))
        complete = purse.ask(sorted(everything), repetitions)
        for rows, weights in plans:
            used = [int(action) for action in np.flatnonzero(weights) if int(action) in purse.asked]
            if not used:
                continue
            root = np.sqrt(weights[used])
            rewards = np.array([purse.asked[action] for action in used])
            estimate = np.linalg.lstsq(root[:, None] * rows[used], root * rewards, rcond=1e-10)[0]
            complete &= purse.ask([int(np.argmax(rows @ estimate))], repetitions)
        return complete, design_gap_bound(misspecification=self.misspecification + width, sparsity=self.sparsity)

    def _recover(self, purse: _Purse) -> tuple[bool, None]:
        random = np.random.default_rng(self.seed)
        actions, dimension = self.features.shape
        wanted = math.ceil(4 * self.sparsity * math.log(math.e * dimension / self.sparsity))
        repetitions, _ = self._repetitions(wanted)
        if self.budget is not None:
            wanted = max(1, min(wanted, self.budget // repetitions - self.sparsity))
        known = list(purse.asked)
        fresh = random.permutation(np.setdiff1d(np.arange(actions), known))[: max(wanted - len(known), 0)]
        complete = purse.ask([int(action) for action in fresh], repetitions)
        # Each look at the most promising actions corrects the model where it matters.
        for _ in range(self.sparsity):
            known = list(purse.asked)
            rewards = np.array([purse.asked[action] for action in known])
            predicted = self.features @ recover(self.features[known], rewards, self.misspecification, self.sparsity)
            predicted[known] = -np.inf
            if not np.isfinite(predicted).any() or not purse.ask([int(np.argmax(predicted))], repetitions):
                break
        return complete, None


class _Purse:
    """Asks for rewards within a budget and remembers them."""

    def __init__(self, query: Callable[[int], float], actions: int, budget: int | None, asked: Mapping[int, float]) -> None:
        for action in asked:
            if not 0 <= action < actions:
                raise InvalidArgument(f"asked names action {action!r}, but there are actions 0 to {actions - 1}")
        self.asked = {int(action): float(value) for action, value in asked.items()}
        self.queries = len(self.asked)
        self._query = query
        self._budget = math.inf if budget is None else budget

    def ask(self, actions: Iterable[int], repetitions: int) -> bool:
        """Ask for those that are not known; whether the budget sufficed."""
        for action in actions:
            if action in self.asked:
                continue
            if self.queries + repetitions > self._budget:
                return False
            total = 0.0
            for _ in range(repetitions):
                reward = float(self._query(action))
                if not math.isfinite(reward):
                    raise InvalidArgument(f"the reward of action {action} is {reward!r}; it must be finite")
                total += reward
            self.asked[action] = total / repetitions
            self.queries += repetitions
        return True
