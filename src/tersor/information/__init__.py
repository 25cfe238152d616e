"""Couplings, bottlenecks, samples and private estimates: what is known of much from little, and with what guarantee."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tersor.information import ldp_regression, sensitivity_sampling
from tersor.information.bottleneck import ebim, uniform_quantiser
from tersor.information.cauchy_schwarz import (
    ConditionalEstimator,
    Width,
    cs_bottleneck_loss,
    cs_conditional,
    cs_divergence,
    cs_mutual_information,
    effective_neighbours,
    kernel_width,
    normalised_cs_information,
)
from tersor.information.coding_game import Episode, MarkovCodingGame
from tersor.information.coupling import Coupling, CouplingMethod, entropy, mec
from tersor.information.grid_world import GridWorld, MarkovProcess, soft_policy
from tersor.information.mec_b import BottleneckCoupling, Compressor, mec_b
from tersor.information.pq_index import gini_index, kept_at_least, pq_index
from tersor.information.statements import LIMITS

if TYPE_CHECKING:
    from tersor.information.cs_bottleneck import CSBottleneck

__all__ = [
    "LIMITS", "BottleneckCoupling", "CSBottleneck", "Compressor", "ConditionalEstimator", "Coupling", "CouplingMethod", "Episode",
    "GridWorld", "MarkovCodingGame", "MarkovProcess", "Width", "cs_bottleneck_loss", "cs_conditional", "cs_divergence",
    "cs_mutual_information", "ebim", "effective_neighbours", "entropy", "gini_index", "kept_at_least", "kernel_width", "ldp_regression",
    "mec", "mec_b", "normalised_cs_information", "pq_index", "sensitivity_sampling", "soft_policy", "uniform_quantiser",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # The estimator needs scikit-learn, which comes with an extra.
    if name == "CSBottleneck":
        from tersor.information.checking import optional

        optional("sklearn")
        return import_module("tersor.information.cs_bottleneck").CSBottleneck
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
