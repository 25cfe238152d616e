"""Bounds on the error of trained models, worlds in which no bound can be tight, and an audit of yours."""

from tersor.limits.generalization.auditing import Audit, Estimator, audit
from tersor.limits.generalization.bounds import (
    binary_kl,
    gaussian_divergence,
    holdout_bound,
    invert_kl,
    occam_bound,
    occam_loss_bound,
    pac_bayes_bound,
    parameter_bound,
    path_norm,
    spectral_complexity,
)
from tersor.limits.generalization.compressed import Certificate, certify, fit_linear, linear_bits, quantise
from tersor.limits.generalization.statements import LIMITS
from tersor.limits.generalization.twins import Draw, FieldTwin, ShatteredTwin, Twin, le_cam_bound, solve_modular

__all__ = [
    "LIMITS", "Audit", "Certificate", "Draw", "Estimator", "FieldTwin", "ShatteredTwin", "Twin", "audit", "binary_kl", "certify",
    "fit_linear", "gaussian_divergence", "holdout_bound", "invert_kl", "le_cam_bound", "linear_bits", "occam_bound", "occam_loss_bound",
    "pac_bayes_bound", "parameter_bound", "path_norm", "quantise", "solve_modular", "spectral_complexity",
]  # fmt: skip
