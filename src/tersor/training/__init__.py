"""Compression while a model is trained."""

from tersor.training.lsq import LSQLinear, lsq
from tersor.training.quest import GAUSSIAN_CLIP, Quantizer, QuESTLinear, RoundedInputs, export, quest

__all__ = ["GAUSSIAN_CLIP", "LSQLinear", "QuESTLinear", "Quantizer", "RoundedInputs", "export", "lsq", "quest"]
