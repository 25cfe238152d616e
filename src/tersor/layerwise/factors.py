"""Storing the two factors of a low-rank matrix in few bits, each error made up for by what is rounded after it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tersor.layerwise.gptq import gptq
from tersor.layerwise.hessian import damped_cholesky
from tersor.layerwise.stats import LayerStats
from tersor.weights import LowRankWeight

# Relative to the mean of the small Gram matrix of the right factor's outputs, which is well conditioned.
_DAMPING = 1e-9


def quantise_factors(factors: LowRankWeight, target: Tensor, metric: Tensor, bits: int, group_size: int = -1) -> LowRankWeight:
    """Round the right factor, fit the left one to the rounded one, round that.

    Args:
        factors: The product to store.
        target: What it stands for, ``[out_features, in_features]``.
        metric: Second moment of the inputs, ``[in_features, in_features]``.
        bits: 1 to 8, of both factors.
        group_size: Inputs of the right factor that share a scale, -1 for all of a row; the left factor has one scale a row.
    """
    identity = LayerStats.identity(target.shape[1])
    right = gptq(factors.right.dense(), replace(identity, hessian=metric, cache={}), bits=bits, group_size=group_size)
    through = right.dense().double() @ metric.double()
    gram = through @ right.dense().double().T
    lower, _ = damped_cholesky(gram, _DAMPING)
    left = torch.cholesky_solve(through @ target.double().T, lower).T
    inner = replace(LayerStats.identity(gram.shape[0]), hessian=gram, cache={})
    return LowRankWeight(gptq(left.float(), inner, bits=bits, group_size=-1), right)
