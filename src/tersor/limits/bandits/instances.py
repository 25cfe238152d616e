"""Actions among which one pays and none of the others tells which."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_integer, check_number
from tersor.limits.checking import Array


@dataclass(frozen=True)
class BanditInstance:
    """Actions, their rewards, and the sparse linear model that explains them up to ``misspecification``.

    Attributes:
        features: ``[actions, d]``, rows of norm at most 1.
        parameter: ``[d]``, sparse.
        rewards: ``[actions]``, within ``misspecification`` of ``features @ parameter``.
        misspecification: ``eps``.
    """

    features: Array
    parameter: Array
    rewards: Array
    misspecification: float

    def query(self, action: int) -> float:
        """The reward of an action."""
        return float(self.rewards[action])

    def gap(self, action: int) -> float:
        """How far the reward of an action is below the best."""
        return float(self.rewards.max() - self.rewards[action])


def needle_instance(sparsity: int, needles: int, misspecification: float, *, seed: int = 0) -> BanditInstance:
    """Nearly orthogonal actions of which a hidden one pays ``eps / coherence`` and all others nothing.

    Every unpaid answer is consistent with every other needle: all algorithms need ``(k + 1) / 2`` queries on average. The pay is set by
    the coherence as measured, which is better than the lemma's ``sqrt(8 log k / (s - 1))``.

    Args:
        sparsity: ``s``, coordinates in which the actions live.
        needles: ``k``, number of actions.
        misspecification: ``eps``.
        seed: Of the actions and of the hidden one.

    Raises:
        InvalidArgument: If the pay would be above 1; lower ``misspecification`` or the number of needles.
    """
    check_integer("sparsity", sparsity, 2)
    check_integer("needles", needles, 2)
    check_number("misspecification", misspecification, math.ulp(0.0))
    random = np.random.default_rng(seed)
    features = random.standard_normal((needles, sparsity))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    coherence = _coherence(features)
    pay = misspecification / coherence
    if pay > 1:
        raise InvalidArgument(f"a pay of {pay:.3g} is above 1; a misspecification of at most {coherence:.3g} keeps it in range")
    hidden = int(random.integers(needles))
    rewards = np.zeros(needles)
    rewards[hidden] = pay
    return BanditInstance(features, pay * features[hidden], rewards, misspecification)


def sparse_instance(
    actions: int, dimension: int, sparsity: int, misspecification: float, *, adversarial: bool = False, seed: int = 0
) -> BanditInstance:  # fmt: skip
    """Random actions and a random sparse parameter of norm 1, with rewards moved by up to ``eps``.

    Args:
        actions: Their number.
        dimension: ``d``.
        sparsity: ``s``.
        misspecification: ``eps``.
        adversarial: Move every reward by the whole of ``eps`` towards the middle, which hides the best actions, instead of at random.
        seed: Of everything.

    Raises:
        InvalidArgument: On an argument out of range.
    """
    check_integer("actions", actions, 1)
    check_integer("dimension", dimension, 1)
    check_integer("sparsity", sparsity, 1, dimension)
    check_number("misspecification", misspecification, 0.0)
    random = np.random.default_rng(seed)
    features = random.standard_normal((actions, dimension))
    features *= (random.random((actions, 1)) ** (1 / dimension)) / np.linalg.norm(features, axis=1, keepdims=True)
    parameter = np.zeros(dimension)
    parameter[random.choice(dimension, sparsity, replace=False)] = random.standard_normal(sparsity)
    parameter /= np.linalg.norm(parameter)
    linear = features @ parameter
    moved = -np.sign(linear) if adversarial else random.uniform(-1, 1, actions)
    return BanditInstance(features, parameter, linear + misspecification * moved, misspecification)


def _coherence(features: Array) -> float:
    largest = 0.0
    for start in range(0, len(features), 512):
        block = np.abs(features[start : start + 512] @ features.T)
        block[np.arange(len(block)), start + np.arange(len(block))] = 0.0
        largest = max(largest, float(block.max()))
    return largest
