"""Gradient compression for data parallel training: compressors, error control, per-layer choices and the hooks of torch.distributed."""

from tersor.distributed.accordion import Accordion
from tersor.distributed.checkpoint import load_checkpoint, save_checkpoint
from tersor.distributed.compressors import (
    COMPRESSORS,
    Compressor,
    Context,
    Identity,
    LowRank,
    RandK,
    ScaledSign,
    TopK,
    UniformQuant,
    parse_compressor,
)
from tersor.distributed.hook import average_gradients, error_feedback_hook, register
from tersor.distributed.lgreco import AccordionState, LGreCoState
from tersor.distributed.problems import Logistic, Quadratics
from tersor.distributed.rates import rate_bound
from tersor.distributed.rehearsal import Rehearsal, rehearse
from tersor.distributed.rules import MODES
from tersor.distributed.simulator import Simulator
from tersor.distributed.sockets import socket_bytes
from tersor.distributed.state import ErrorFeedbackState

__all__ = [
    "COMPRESSORS", "MODES", "Accordion", "AccordionState", "Compressor", "Context", "ErrorFeedbackState", "Identity", "LGreCoState",
    "Logistic", "LowRank", "Quadratics", "RandK", "Rehearsal", "ScaledSign", "Simulator", "TopK", "UniformQuant", "average_gradients",
    "error_feedback_hook", "load_checkpoint", "parse_compressor", "rate_bound", "register", "rehearse", "save_checkpoint", "socket_bytes",
]  # fmt: skip
