"""From scores to rows: which are kept, with what weight, and how many the theory asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.information.checking import Array, check_rows, check_vector
from tersor.information.sensitivity_sampling.scores import check_p, root_leverage_scores
from tersor.information.sensitivity_sampling.sensitivities import ScoreKind, row_scores
from tersor.layerwise import LayerStats
from tersor.layerwise.checking import check_choice, check_integer, check_number

BoundKind = Literal["sensitivity", "chen_derezinski", "root_leverage", "lewis", "sensitivity+leverage", "conjectured"]


@dataclass(frozen=True)
class RowSample:
    """Rows of a matrix with weights, so that ``||S A x||_p^p`` estimates ``||A x||_p^p`` without bias.

    Attributes:
        indices: Rows kept, ascending.
        weights: Of each, the inverse of the probability that it was kept with.
        p: Of the norm.
        n_rows: Rows of the matrix sampled from.
    """

    indices: Array
    weights: Array
    p: float
    n_rows: int

    def __len__(self) -> int:
        return len(self.indices)

    def apply(self, rows: Any) -> Any:
        """``S A``: the kept rows, each times its weight to the power ``1/p``.

        Args:
            rows: ``[n_rows, d]``, an array or a tensor; a tensor stays one, with its type.

        Raises:
            InvalidArgument: If it has another number of rows.
        """
        self._check(rows)
        scale = self.weights ** (1 / self.p)
        if isinstance(rows, Tensor):
            return rows[self.indices.tolist()] * rows.new_tensor(scale).unsqueeze(1)
        return np.asarray(rows)[self.indices] * scale[:, None]

    def stats(self, inputs: Tensor) -> LayerStats:
        """Calibration statistics of a layer from the kept inputs alone: what GPTQ, SparseGPT or a whitened SVD take.

        Args:
            inputs: ``[n_rows, in_features]``. The other rows are not looked at.

        Returns:
            Estimates of ``LayerStats.from_inputs(inputs)``, the second moment and the means; ``n_tokens`` is the number of kept rows.

        Raises:
            InvalidArgument: If the sample is empty, not for ``p = 2``, or of other inputs.
        """
        self._check(inputs)
        if self.p != 2 or not len(self):
            raise InvalidArgument("statistics need a sample for p=2 of at least one row; plan it with p=2 and more rows")
        kept = inputs[self.indices.tolist()].double()
        if not bool(kept.isfinite().all()):
            raise InvalidArgument("the sampled inputs hold NaN or Inf; the model or the text is broken upstream of this layer")
        weights = kept.new_tensor(self.weights).unsqueeze(1)
        # Means are ratios, so that features which never vary keep theirs exactly; the second moment needs no such help.
        total = weights.sum()
        hessian = kept.T @ (weights * kept) / self.n_rows
        return LayerStats(hessian, (weights * kept.abs()).sum(0) / total, (weights * kept).sum(0) / total, len(self))

    def _check(self, rows: Any) -> None:
        if getattr(rows, "ndim", 0) != 2 or rows.shape[0] != self.n_rows:
            raise InvalidArgument(f"the sample is of a matrix of {self.n_rows} rows, got shape {tuple(getattr(rows, 'shape', ()))}")


@dataclass(frozen=True)
class SamplingPlan:
    """The probability with which each row is kept, independently of the others.

    Attributes:
        probabilities: ``[n]``, from 0 (only for rows that cannot matter) to 1.
        p: Of the norm.
    """

    probabilities: Array
    p: float

    @property
    def expected_rows(self) -> float:
        """Mean number of rows of a draw."""
        return float(self.probabilities.sum())

    def draw(self, seed: int) -> RowSample:
        """One sample.

        Args:
            seed: The same seed draws the same rows.
        """
        random = np.random.default_rng(seed)
        kept = np.flatnonzero(random.random(len(self.probabilities)) < self.probabilities)
        return RowSample(kept, 1 / self.probabilities[kept], self.p, len(self.probabilities))


def plan_rows(scores: Any, rows: float, p: float = 2.0, *, floor: bool = True) -> SamplingPlan:
    """Keep row ``i`` with probability ``min(1, 1/n + s_i / a)``, with the ``a`` that keeps as many rows as asked for on average.

    Args:
        scores: ``[n]``, none negative, as from :func:`row_scores`.
        rows: Rows to keep on average; as many as there are, or more, keeps all.
        p: Of the norm that the weights are for.
        floor: Whether the ``1/n`` is there, as the proofs want it; without it rows of score zero are never kept.

    Returns:
        The plan. With fewer than ``1`` row asked for, or fewer rows than score, every probability is scaled down.

    Raises:
        InvalidArgument: If scores are negative or all zero, or ``rows`` is not positive.

    Reference:
        Woodruff, Yasuda: "Sharper Bounds for l_p Sensitivity Sampling", 2023.
    """
    values = check_vector("scores", scores)
    p = check_p(p)
    if values.min() < 0 or values.max() <= 0:
        raise InvalidArgument("scores must be at least 0, and one of them positive")
    if check_number("rows", rows, 0.0) <= 0:
        raise InvalidArgument(f"rows must be positive, got {rows!r}")
    n, lowest = len(values), (1 / len(values) if floor else 0.0)
    reachable = n if floor else int((values > 0).sum())
    if rows >= reachable:
        return SamplingPlan(np.ones(n) if floor else (values > 0).astype(float), p)
    if rows <= n * lowest:
        return SamplingPlan(np.full(n, rows / n), p)
    # log a by bisection: the expected number of rows falls from `reachable` to n * lowest.
    relative = values / values.max()
    low, high = np.log(relative[relative > 0].min()) - 1.0, np.log(relative.sum() / (rows - n * lowest)) + 1.0
    for _ in range(200):
        middle = (low + high) / 2
        kept = np.minimum(1.0, lowest + relative / np.exp(middle)).sum()
        low, high = (middle, high) if kept > rows else (low, middle)
    return SamplingPlan(np.minimum(1.0, lowest + relative / np.exp(high)), p)


def sample_rows(rows: Any, count: float, *, p: float = 2.0, kind: ScoreKind = "auto", floor: bool = True, seed: int = 0) -> RowSample:
    """Score, plan and draw in one call.

    Args:
        rows: ``[n, d]``.
        count: Rows to keep on average.
        p: Of the norm to preserve.
        kind: See :func:`row_scores`; with ``"root_leverage"`` below ``p = 2`` prefer :func:`root_leverage_sample`.
        floor: See :func:`plan_rows`.
        seed: Of the draw.

    Returns:
        The sample.

    Raises:
        InvalidArgument: On NaN or Inf, a bad ``p``, kind or count.

    Example:
        >>> import numpy as np
        >>> matrix = np.vstack([np.random.default_rng(0).normal(size=(1000, 2)), [[0.0, 1000.0]]])
        >>> bool((sample_rows(matrix, 50).indices == 1000).any())
        True
    """
    return plan_rows(row_scores(rows, p, kind), count, p, floor=floor).draw(seed)


def root_leverage_sample(rows: Any, count: float, p: float, *, floor: bool = True, seed: int = 0) -> RowSample:
    """Sample by root leverage scores again and again until ``count`` rows are left; weights multiply.

    One round at a fixed accuracy shrinks ``n`` to ``n^(1 - p/2) d^(p/2)`` rows and no further. Each round here takes the geometric
    share of the way, so that all lose about the same accuracy.

    Args:
        rows: ``[n, d]``.
        count: Rows to keep on average, about.
        p: From 1 to below 2; at 2 one round of leverage sampling is the same thing.
        floor: See :func:`plan_rows`.
        seed: Of the draws.

    Returns:
        The sample; ``weights`` are the products over the rounds.

    Raises:
        InvalidArgument: On NaN or Inf, or ``p`` or ``count`` out of range.

    Reference:
        Woodruff, Yasuda: "Sharper Bounds for l_p Sensitivity Sampling", 2023.
    """
    matrix = check_rows("rows", rows)
    if check_number("count", count, 0.0) <= 0 or check_p(p) > 2:
        raise InvalidArgument(f"count must be positive and p from 1 to 2, got {count!r} and {p!r}")
    sample = RowSample(np.arange(len(matrix)), np.ones(len(matrix)), p, len(matrix))
    rounds = _rounds(len(matrix), matrix.shape[1], count, p)
    random = np.random.default_rng(seed)
    for number in range(rounds):
        target = max(count, len(sample) * (count / len(sample)) ** (1 / (rounds - number)))
        current = sample.apply(matrix)
        if target >= len(sample) or not current.any():
            break
        drawn = plan_rows(root_leverage_scores(current, p), target, p, floor=floor).draw(int(random.integers(2**32)))
        sample = RowSample(sample.indices[drawn.indices], sample.weights[drawn.indices] * drawn.weights, p, len(matrix))
    return sample


def predict_rows(bound: BoundKind, p: float, d: int, total: float, eps: float) -> float:
    """Rows that suffice for distortion ``eps``: the order of the bound with constant 1, up to polylogarithmic factors.

    Args:
        bound: ``"sensitivity"``, Woodruff and Yasuda: ``S^(2 - 2/p)`` for ``p > 2``. ``"chen_derezinski"``: ``d^(1 - p/2) S`` for ``p``
            from 1 to 2, which implies the ``S^(2/p)`` that the first version of the former claimed. ``"root_leverage"``: ``d``, ``p <= 2``.
            ``"lewis"``: ``d^max(1, p/2)``. ``"sensitivity+leverage"``: ``S + d`` for ``p <= 2``, ``d^(2/p) S^(2 - 4/p)`` above.
            ``"conjectured"``: ``S + d`` for every ``p``, not proven above 2.
        p: At least 1.
        d: Rank of the matrix.
        total: Sum of the sensitivities ``S``.
        eps: Distortion, between 0 and 1.

    Returns:
        The order; compare it between methods, not with a row count.

    Raises:
        InvalidArgument: If the bound is not for this ``p``, or a number is out of range.

    Reference:
        Woodruff, Yasuda, 2023; Chen, Derezinski, 2021; Cohen, Peng, 2015; Munteanu, Omlor, 2024.
    """
    check_choice("bound", bound, BoundKind)
    p, total = check_p(p), check_number("total", total, 0.0)
    check_integer("d", d, 1)
    if check_number("eps", eps, 0.0, 1.0) <= 0:
        raise InvalidArgument("eps must lie between 0 and 1")
    wrong = (bound == "sensitivity" and p <= 2) or (bound in ("chen_derezinski", "root_leverage") and p > 2)
    if wrong:
        raise InvalidArgument(f"the bound {bound!r} is for p {'above 2' if p <= 2 else 'from 1 to 2'}, got {p:g}")
    orders = {
        "sensitivity": total ** (2 - 2 / p), "chen_derezinski": d ** (1 - p / 2) * total, "root_leverage": d, "lewis": d ** max(1.0, p / 2),
        "sensitivity+leverage": total + d if p <= 2 else d ** (2 / p) * total ** (2 - 4 / p), "conjectured": total + d,
    }  # fmt: skip
    return float(orders[bound] / eps**2)


def _rounds(n: int, d: int, count: float, p: float) -> int:
    """Rounds after which ``log(n / d)``, multiplied by ``1 - p/2`` in each, is below that of the target; few, as the theory has it."""
    if count >= n:
        return 0
    start, goal = np.log(max(n / d, 2.0)), np.log(max(count / d, 2.0))
    shrink = max(1 - p / 2, 1e-3)
    return int(np.clip(np.ceil(np.log(goal / start) / np.log(shrink)), 1, 6)) if goal < start else 1
