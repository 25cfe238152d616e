"""What a compressed weight is: one file a representation, all of them modules whose buffers are the bytes on disk."""

from tersor.weights.base import KINDS, CompressedWeight, check_matrix, check_state, weight_from_config
from tersor.weights.biased import BiasedWeight
from tersor.weights.codebook import CodebookWeight
from tersor.weights.dense import DenseWeight
from tersor.weights.dictionary import DictionaryWeight, distinct_nbytes
from tersor.weights.hashed import HashedWeight
from tersor.weights.lowrank import LowRankWeight
from tersor.weights.modules import (
    CompressedConv2d,
    CompressedEmbedding,
    CompressedLinear,
    compressed_layer,
    dense_shape,
    matrix_of,
    set_matrix,
)
from tersor.weights.quantized import QuantizedWeight, round_scale
from tersor.weights.residual_stack import ResidualStack, SignBlock
from tersor.weights.rotated import RotatedWeight
from tersor.weights.sparse import SparseWeight
from tersor.weights.sum import SumWeight
from tersor.weights.tensor_train import TensorTrainWeight
from tersor.weights.zero import ZeroWeight

__all__ = [
    "KINDS",
    "BiasedWeight",
    "CodebookWeight",
    "CompressedConv2d",
    "CompressedEmbedding",
    "CompressedLinear",
    "CompressedWeight",
    "DenseWeight",
    "DictionaryWeight",
    "HashedWeight",
    "LowRankWeight",
    "QuantizedWeight",
    "ResidualStack",
    "RotatedWeight",
    "SignBlock",
    "SparseWeight",
    "SumWeight",
    "TensorTrainWeight",
    "ZeroWeight",
    "check_matrix",
    "check_state",
    "compressed_layer",
    "dense_shape",
    "distinct_nbytes",
    "matrix_of",
    "round_scale",
    "set_matrix",
    "weight_from_config",
]
