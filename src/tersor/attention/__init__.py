"""Attention itself: how many words it must move (:mod:`tersor.attention.io`), and attention to tuples of keys."""

from tersor.attention import io
from tersor.attention.features import feature_count, poly_features, required_degree, taylor_coefficients, truncation_error
from tersor.attention.io import LIMITS
from tersor.attention.matching import MatchHead, match_head, match_three
from tersor.attention.module import TensorAttention
from tersor.attention.tensor import Certificate, certify, higher_order_attention, tensor_attention

__all__ = [
    "LIMITS",
    "Certificate",
    "MatchHead",
    "TensorAttention",
    "certify",
    "feature_count",
    "higher_order_attention",
    "io",
    "match_head",
    "match_three",
    "poly_features",
    "required_degree",
    "taylor_coefficients",
    "tensor_attention",
    "truncation_error",
]
