"""Sparse linear regression on data that never leaves its users but behind noise: one message each, or in turn.

For statistics of a model's inputs on other people's devices: second and cross moments, and sparse layers fitted to them. The noise is that
of the proofs, drawn in floating point: good for studying what privacy costs, not hardened against attacks on the low bits of floats.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tersor.information.ldp_regression.bounds import RateKind, error_rate
from tersor.information.ldp_regression.moments import MomentMechanism, MomentSums, soft_threshold
from tersor.information.ldp_regression.privacy import BallRandomiser, Mechanism, gaussian_delta, gaussian_shift

if TYPE_CHECKING:
    from tersor.information.ldp_regression.estimators import NLDPRegression, PrivateIHT

__all__ = [
    "BallRandomiser", "Mechanism", "MomentMechanism", "MomentSums", "NLDPRegression", "PrivateIHT", "RateKind", "error_rate",
    "gaussian_delta", "gaussian_shift", "soft_threshold",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # The estimators need scikit-learn, which comes with an extra.
    if name in ("NLDPRegression", "PrivateIHT"):
        from tersor.information.checking import optional

        optional("sklearn")
        return getattr(import_module("tersor.information.ldp_regression.estimators"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
