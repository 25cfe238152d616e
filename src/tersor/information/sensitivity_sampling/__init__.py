"""Rows that stand for all rows: leverage and root leverage scores, Lewis weights, l_p sensitivities, sampling plans, distortion.

Use it where a step costs by the row and is run many times on the same rows, or where rows must be stored or sent. A Gram matrix of all
rows costs as much as their leverage scores: if that is all you need and the rows are at hand, do not sample.
"""

from __future__ import annotations

from tersor.information.sensitivity_sampling.distortion import distortion
from tersor.information.sensitivity_sampling.plans import (
    BoundKind,
    RowSample,
    SamplingPlan,
    plan_rows,
    predict_rows,
    root_leverage_sample,
    sample_rows,
)
from tersor.information.sensitivity_sampling.scores import leverage_scores, lewis_weights, root_leverage_scores
from tersor.information.sensitivity_sampling.sensitivities import ScoreKind, row_scores, sensitivities, sensitivity_bounds

__all__ = [
    "BoundKind", "RowSample", "SamplingPlan", "ScoreKind", "distortion", "leverage_scores", "lewis_weights", "plan_rows", "predict_rows",
    "root_leverage_sample", "root_leverage_scores", "row_scores", "sample_rows", "sensitivities", "sensitivity_bounds",
]  # fmt: skip
