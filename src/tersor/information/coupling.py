"""Joint distributions of two discrete variables with given marginals, and those of (nearly) least entropy."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tersor.information.checking import Array, check_distribution, optional
from tersor.layerwise.checking import check_choice

CouplingMethod = Literal["best", "max", "zero", "sla", "independent"]

# Masses this close are one: what is left of them is rounding.
_EQUAL = 1e-14
# A cell of less than this is one that a linear program left empty.
_EMPTY = 1e-12
# Keeps the slope of the entropy at an empty cell finite.
_SLOPE = 1e-9
_PROGRAMS = 50


def entropy(probabilities: Any) -> float:
    """Shannon entropy in bits of an array of probabilities of any shape; zeros count for nothing."""
    values = np.asarray(probabilities, dtype=np.float64).ravel()
    values = values[values > 0]
    return float(-(values * np.log2(values)).sum())


@dataclass(frozen=True)
class Coupling:
    """A joint distribution.

    Attributes:
        joint: ``[n, m]``, none negative, of sum 1.
    """

    joint: Array

    @property
    def rows(self) -> Array:
        """Distribution ``[n]`` of the first variable."""
        marginal: Array = self.joint.sum(1)
        return marginal

    @property
    def columns(self) -> Array:
        """Distribution ``[m]`` of the second variable."""
        marginal: Array = self.joint.sum(0)
        return marginal

    @property
    def entropy(self) -> float:
        """Bits of the pair."""
        return entropy(self.joint)

    @property
    def information(self) -> float:
        """Mutual information of the two, in bits."""
        return max(entropy(self.rows) + entropy(self.columns) - self.entropy, 0.0)


def mec(p: Any, q: Any, method: CouplingMethod = "best") -> Coupling:
    """A coupling of ``p`` and ``q`` of nearly the least entropy, that is of nearly the most mutual information.

    Finding the very least is NP-hard. Both greedy ways cover at most ``n + m - 1`` cells in ``O((n + m) log(n + m))`` comparisons, and
    what rounding leaves over goes into cells that are in use, so that no mass is lost.

    Args:
        p: Distribution ``[n]``.
        q: Distribution ``[m]``.
        method: ``"max"`` pairs the largest masses left again and again, and is within ``log2(e) / e`` = 0.53 bits of the least;
            ``"zero"`` first looks whether one of the two has a partner of the same mass, so that both vanish; ``"best"`` takes the better
            of these. Baselines: ``"sla"`` minimises the linearised entropy again and again from a random coupling of fixed seed until it
            stays where it is, a vertex that is rarely the best one; ``"independent"`` is the product, which has the most entropy.

    Returns:
        The coupling; its marginals are ``p`` and ``q`` to 1e-12.

    Raises:
        InvalidArgument: If ``p`` or ``q`` is no distribution, or the method unknown.
        TersorError: If ``"sla"`` is asked for without scipy.

    Reference:
        Kocaoglu, Dimakis, Vishwanath, Hassibi: "Entropic Causality and Greedy Minimum Entropy Coupling", 2017.
        Compton, Katz, Qi, Greenewald, Kocaoglu: "Minimum-Entropy Coupling Approximation Guarantees Beyond the Majorization Barrier", 2023.

    Example:
        >>> mec([0.5, 0.5], [0.5, 0.25, 0.25]).entropy
        1.5
    """
    check_choice("method", method, CouplingMethod)
    left, right = check_distribution("p", p), check_distribution("q", q)
    if method == "independent":
        return Coupling(np.outer(left, right))
    if method == "best":
        return min((Coupling(_greedy(left, right, equal)) for equal in (False, True)), key=lambda found: found.entropy)
    return Coupling(_linearised(left, right) if method == "sla" else _greedy(left, right, method == "zero"))


def _greedy(p: Array, q: Array, prefer_equal: bool) -> Array:
    joint = np.zeros((len(p), len(q)))
    left, right = (sorted((mass, index) for index, mass in enumerate(values.tolist()) if mass > 0) for values in (p, q))
    i = j = 0
    while left and right:
        (mass, i), (other, j) = _pick(left, right) if prefer_equal else (left.pop(), right.pop())
        rest = mass - other
        if abs(rest) <= _EQUAL:
            joint[i, j] += max(mass, other)
        elif rest > 0:
            joint[i, j] += other
            insort(left, (rest, i))
        else:
            joint[i, j] += mass
            insort(right, (-rest, j))
    # Rounding only: the row or the column keeps its mass, in a cell that it may well use already.
    for mass, index in left:
        joint[index, int(joint[index].argmax()) if joint[index].any() else j] += mass
    for mass, index in right:
        joint[int(joint[:, index].argmax()) if joint[:, index].any() else i, index] += mass
    return joint


def _pick(left: list[tuple[float, int]], right: list[tuple[float, int]]) -> tuple[tuple[float, int], tuple[float, int]]:
    """The largest of one side and its equal on the other if there is one, else the largest of both."""
    mine = _equal(right, left[-1][0])
    if mine is not None:
        return left.pop(), right.pop(mine)
    other = _equal(left, right[-1][0])
    if other is not None:
        return left.pop(other), right.pop()
    return left.pop(), right.pop()


def _equal(masses: list[tuple[float, int]], wanted: float) -> int | None:
    place = bisect_left(masses, (wanted - _EQUAL, -1))
    return place if place < len(masses) and masses[place][0] <= wanted + _EQUAL else None


def _linearised(p: Array, q: Array) -> Array:
    """Successive linear programs: entropy is concave, so none of them raises it, and all end at vertices of the couplings."""
    optional("scipy")
    from scipy.optimize import linprog
    from scipy.sparse import eye_array, kron, vstack

    n, m = len(p), len(q)
    sums = vstack([kron(eye_array(n), np.ones((1, m))), kron(np.ones((1, n)), eye_array(m))]).tocsr()
    random = np.random.default_rng(0)
    joint = _scaled(random.random((n, m)), p, q)
    for _ in range(_PROGRAMS):
        solved = linprog(-np.log(joint + _SLOPE).ravel(), A_eq=sums, b_eq=np.concatenate((p, q)), bounds=(0, None), method="highs-ds")
        found = _leaf_by_leaf(solved.x.reshape(n, m) > _EMPTY, p, q)
        if entropy(found) >= entropy(joint) - 1e-12:
            break
        joint = found
    return joint


def _scaled(joint: Array, p: Array, q: Array) -> Array:
    """``joint`` with its rows and columns scaled in turn until they sum to ``p`` and ``q``."""
    for _ in range(100):
        joint = joint * (p / joint.sum(1))[:, None]
        joint = joint * (q / joint.sum(0))
    return joint


def _leaf_by_leaf(used: Array, p: Array, q: Array) -> Array:
    """The coupling on the cells of a vertex: they make a forest, so that a row or a column with one cell left gives it all it has."""
    joint, left, right, used = np.zeros(used.shape), p.copy(), q.copy(), used.copy()
    while used.any():
        rows, columns = used.sum(1) == 1, used.sum(0) == 1
        if rows.any():
            i = int(rows.argmax())
            j = int(used[i].argmax())
            mass = max(float(left[i]), 0.0)
        else:
            j = int(columns.argmax()) if columns.any() else int(used.any(0).argmax())
            i = int(used[:, j].argmax())
            mass = max(float(right[j] if columns.any() else min(left[i], right[j])), 0.0)
        joint[i, j] += mass
        left[i] -= mass
        right[j] -= mass
        used[i, j] = False
    return joint
