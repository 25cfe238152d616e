"""Repairing compressed models by training, and training models without undoing what they know."""

from tersor.finetuning.kappatune import kappatune, lora_config, random_of_equal_shapes, select_by_condition
from tersor.finetuning.selective import SelectiveFineTuning
from tersor.finetuning.spectrum import Spectrum, condition_number, output_entropy, random_condition, singular_values, spectral_report

__all__ = [
    "SelectiveFineTuning",
    "Spectrum",
    "condition_number",
    "kappatune",
    "lora_config",
    "output_entropy",
    "random_condition",
    "random_of_equal_shapes",
    "select_by_condition",
    "singular_values",
    "spectral_report",
]
