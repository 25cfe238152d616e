"""Features of a split network as bytes: the device sends what the task needs, not the image."""

from tersor.coding.features.baselines import QuantisedStudent, as_picture
from tersor.coding.features.fitting import FitConfig, fit_stage1, fit_stage2, start_blocks
from tersor.coding.features.layers import DivisiveNorm, FeatureDecoder, FeatureEncoder, multiplications
from tersor.coding.features.resnet import CIFAR10, cifar_resnet, load_teacher, normalise, split_model
from tersor.coding.features.student import EntropicStudent
from tersor.coding.features.training import read_images

__all__ = [
    "CIFAR10",
    "DivisiveNorm",
    "EntropicStudent",
    "FeatureDecoder",
    "FeatureEncoder",
    "FitConfig",
    "QuantisedStudent",
    "as_picture",
    "cifar_resnet",
    "fit_stage1",
    "fit_stage2",
    "load_teacher",
    "multiplications",
    "normalise",
    "read_images",
    "split_model",
    "start_blocks",
]
