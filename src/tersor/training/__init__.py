"""Compression while a model is trained."""

from tersor.training.a_priori_conv import APrioriConv
from tersor.training.architecture_cost import CostModel, PublishedCost, RobertaCost
from tersor.training.architecture_search import (
    ROBERTA_SPACE,
    SearchResult,
    SearchSpace,
    exhaustive_search,
    fitness,
    genetic_search,
    random_architecture,
    random_search,
)
from tersor.training.bypass import BypassConv2d
from tersor.training.class_dependent import ClassAwareLottery, ClassDependentLoss, decision_threshold
from tersor.training.code_data import Examples, Function, clone_pairs, defects, library_functions, split_functions
from tersor.training.compression import Compression
from tersor.training.compresso import COLLABORATIVE_PROMPT, Pruned, Schedule, compresso, language_loss
from tersor.training.decoder import Decoder, Masks, Shape, magnitude_scores, masks_of
from tersor.training.distillation import Distillation, Distilled, TaughtStudent, accuracy, distill, predict, soft_loss
from tersor.training.factored import factor_layer, factor_model
from tersor.training.few_bits import QuEST
from tersor.training.gated import Compresso
from tersor.training.gradual_pruning import GradualPruning, equal_nonzero_width
from tersor.training.lapp import LAPP
from tersor.training.lsq import LSQLinear, lsq
from tersor.training.maestro import Maestro
from tersor.training.masks import magnitude_mask
from tersor.training.method import Method
from tersor.training.one_way import PerKernelConv, factorise_conv, merge_conv
from tersor.training.ordered import OrderedLayer, cut_ranks, ordered_layers, ranks_within
from tersor.training.parameter_sharing import ParameterSharing
from tersor.training.quest import GAUSSIAN_CLIP, Quantizer, QuESTLinear, RoundedInputs, export, quest
from tersor.training.rounds import LotteryTicket
from tersor.training.sap import SAP
from tersor.training.shrink_architecture import Shrunk, classifier, export_student, shrink_architecture
from tersor.training.slicing import slice_decoder
from tersor.training.storage import export_onnx, load_module, save_module, stored_bytes, to_sparse
from tersor.training.structured import remove_filters
from tersor.training.student import build_student, encode, load_student, save_student, train_tokenizer
from tersor.training.targets import prunable
from tersor.training.trained_rank import TrainedRankPruning

__all__ = [
    "COLLABORATIVE_PROMPT",
    "GAUSSIAN_CLIP",
    "LAPP",
    "ROBERTA_SPACE",
    "SAP",
    "APrioriConv",
    "BypassConv2d",
    "ClassAwareLottery",
    "ClassDependentLoss",
    "Compression",
    "Compresso",
    "CostModel",
    "Decoder",
    "Distillation",
    "Distilled",
    "Examples",
    "Function",
    "GradualPruning",
    "LSQLinear",
    "LotteryTicket",
    "Maestro",
    "Masks",
    "Method",
    "OrderedLayer",
    "ParameterSharing",
    "PerKernelConv",
    "Pruned",
    "PublishedCost",
    "QuEST",
    "QuESTLinear",
    "Quantizer",
    "RobertaCost",
    "RoundedInputs",
    "Schedule",
    "SearchResult",
    "SearchSpace",
    "Shape",
    "Shrunk",
    "TaughtStudent",
    "TrainedRankPruning",
    "accuracy",
    "build_student",
    "classifier",
    "clone_pairs",
    "compresso",
    "cut_ranks",
    "decision_threshold",
    "defects",
    "distill",
    "encode",
    "equal_nonzero_width",
    "exhaustive_search",
    "export",
    "export_onnx",
    "export_student",
    "factor_layer",
    "factor_model",
    "factorise_conv",
    "fitness",
    "genetic_search",
    "language_loss",
    "library_functions",
    "load_module",
    "load_student",
    "lsq",
    "magnitude_mask",
    "magnitude_scores",
    "masks_of",
    "merge_conv",
    "ordered_layers",
    "predict",
    "prunable",
    "quest",
    "random_architecture",
    "random_search",
    "ranks_within",
    "remove_filters",
    "save_module",
    "save_student",
    "shrink_architecture",
    "slice_decoder",
    "soft_loss",
    "split_functions",
    "stored_bytes",
    "to_sparse",
    "train_tokenizer",
]
