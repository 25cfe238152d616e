"""Repairing compressed models by training, and training models without undoing what they know."""

from tersor.finetuning.kappatune import kappatune, lora_config, random_of_equal_shapes, select_by_condition
from tersor.finetuning.pv_optimizer import PVOptimizer, TowardsOriginal
from tersor.finetuning.pv_tuning import PVConfig, Tuned, pv_tuning
from tersor.finetuning.rates import ChosenRates, choose_rates
from tersor.finetuning.selective import SelectiveFineTuning
from tersor.finetuning.spectrum import Spectrum, condition_number, output_entropy, random_condition, singular_values, spectral_report

__all__ = [
    "ChosenRates",
    "PVConfig",
    "PVOptimizer",
    "SelectiveFineTuning",
    "Spectrum",
    "TowardsOriginal",
    "Tuned",
    "choose_rates",
    "condition_number",
    "kappatune",
    "lora_config",
    "output_entropy",
    "pv_tuning",
    "random_condition",
    "random_of_equal_shapes",
    "select_by_condition",
    "singular_values",
    "spectral_report",
]
