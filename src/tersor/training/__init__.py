"""Compression while a model is trained."""

from tersor.training.a_priori_conv import APrioriConv
from tersor.training.compression import Compression
from tersor.training.gradual_pruning import GradualPruning
from tersor.training.lapp import LAPP
from tersor.training.lsq import LSQLinear, lsq
from tersor.training.maestro import Maestro
from tersor.training.masks import magnitude_mask
from tersor.training.method import Method
from tersor.training.one_way import PerKernelConv, factorise_conv, merge_conv
from tersor.training.ordered import OrderedLayer, cut_ranks, ordered_layers, ranks_within
from tersor.training.quest import GAUSSIAN_CLIP, Quantizer, QuESTLinear, RoundedInputs, export, quest
from tersor.training.rounds import LotteryTicket
from tersor.training.sap import SAP
from tersor.training.storage import export_onnx, load_module, save_module, stored_bytes, to_sparse
from tersor.training.structured import remove_filters
from tersor.training.targets import prunable

__all__ = [
    "GAUSSIAN_CLIP",
    "LAPP",
    "SAP",
    "APrioriConv",
    "Compression",
    "GradualPruning",
    "LSQLinear",
    "LotteryTicket",
    "Maestro",
    "Method",
    "OrderedLayer",
    "PerKernelConv",
    "QuESTLinear",
    "Quantizer",
    "RoundedInputs",
    "cut_ranks",
    "export",
    "export_onnx",
    "factorise_conv",
    "load_module",
    "lsq",
    "magnitude_mask",
    "merge_conv",
    "ordered_layers",
    "prunable",
    "quest",
    "ranks_within",
    "remove_filters",
    "save_module",
    "stored_bytes",
    "to_sparse",
]
