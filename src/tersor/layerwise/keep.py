"""The two trivial choices that make searches general: leave a layer alone, or take it out."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tersor.layerwise.registry import register
from tersor.layerwise.stats import LayerStats
from tersor.weights.base import check_matrix
from tersor.weights.dense import DenseWeight
from tersor.weights.zero import ZeroWeight


@register("keep", needs="nothing", makes="dense", paper="")
def keep(weight: Tensor, stats: LayerStats | None = None, *, dtype: Literal["float16", "bfloat16", "float32"] = "float16") -> DenseWeight:
    """Store ``weight`` ``[out_features, in_features]`` uncompressed in ``dtype``: the most expensive level of a search."""
    check_matrix(weight)
    kept = DenseWeight(weight.to(getattr(torch, dtype)))
    check_matrix(kept.values, f"the weight after rounding to {dtype}")
    return kept


@register("drop", needs="nothing", makes="zero", paper="")
def drop(weight: Tensor, stats: LayerStats | None = None) -> ZeroWeight:
    """Replace ``weight`` by zeros at no cost: with fused sub-blocks or blocks this is depth pruning."""
    check_matrix(weight)
    return ZeroWeight((weight.shape[0], weight.shape[1]))
