"""One trained weight in, one compressed weight out: plain functions ``method(weight, stats, **options)``, no model in sight."""

from tersor.layerwise.additive_codebooks import additive_codebooks
from tersor.layerwise.awq import awq
from tersor.layerwise.bitstack import bitstack
from tersor.layerwise.cospadi import cospadi, cospadi_group
from tersor.layerwise.drift import Lag, corrected
from tersor.layerwise.eora import compensate, eora
from tersor.layerwise.feature_mimicking import MimickedEmbedding, embedding_error, feature_mimicking, mimic_embedding
from tersor.layerwise.gptq import gptq
from tersor.layerwise.grid import Grid
from tersor.layerwise.hessian import HessianFactor, factorize
from tersor.layerwise.keep import drop, keep
from tersor.layerwise.lord import lord
from tersor.layerwise.magnitude import magnitude
from tersor.layerwise.registry import METHODS, Method, find_method, register
from tersor.layerwise.rtn import rtn
from tersor.layerwise.sparsegpt import sparsegpt
from tersor.layerwise.stats import LayerStats, StatsAccumulator, layer_error
from tersor.layerwise.svd import asvd, svd
from tersor.layerwise.tensor_network import tensor_network
from tersor.layerwise.wanda import wanda
from tersor.layerwise.whitened_svd import whitened_svd

__all__ = [
    "METHODS",
    "Grid",
    "HessianFactor",
    "Lag",
    "LayerStats",
    "Method",
    "MimickedEmbedding",
    "StatsAccumulator",
    "additive_codebooks",
    "asvd",
    "awq",
    "bitstack",
    "compensate",
    "corrected",
    "cospadi",
    "cospadi_group",
    "drop",
    "embedding_error",
    "eora",
    "factorize",
    "feature_mimicking",
    "find_method",
    "gptq",
    "keep",
    "layer_error",
    "lord",
    "magnitude",
    "mimic_embedding",
    "register",
    "rtn",
    "sparsegpt",
    "svd",
    "tensor_network",
    "wanda",
    "whitened_svd",
]
