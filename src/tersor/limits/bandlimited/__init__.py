"""Networks with frozen random weights of a bounded band: what they can do at best, and which band to choose."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tersor.limits.bandlimited.bounds import (
    cosine_tail,
    gaussian_tail,
    norm_budget,
    norm_needed,
    parseval,
    parseval_frame,
    truncation_error,
)
from tersor.limits.bandlimited.features import Activation, Biases, mean_gram
from tersor.limits.bandlimited.ridgelet import RidgeletNet, band_error, band_part, band_share, ridgelet_network
from tersor.limits.bandlimited.selection import Criterion, Selection, select_bandwidth
from tersor.limits.bandlimited.statements import LIMITS

if TYPE_CHECKING:
    from tersor.limits.bandlimited.random_net import RandomNet

__all__ = [
    "LIMITS", "Activation", "Biases", "Criterion", "RandomNet", "RidgeletNet", "Selection", "band_error", "band_part", "band_share",
    "cosine_tail", "gaussian_tail", "mean_gram", "norm_budget", "norm_needed", "parseval", "parseval_frame", "ridgelet_network",
    "select_bandwidth", "truncation_error",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # The estimator needs scikit-learn, which comes with an extra.
    if name == "RandomNet":
        from tersor.limits.checking import optional

        optional("sklearn")
        return import_module("tersor.limits.bandlimited.random_net").RandomNet
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
