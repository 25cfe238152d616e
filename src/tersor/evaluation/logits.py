"""Logits of a model in bounded memory: windows in batches, and only the positions that are asked for."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.models import Model
from tersor.models.structure import logits_of, run_model

LOGIT_BYTES = 1 << 28  # of one model's logits in memory at once, where one window alone does not need more


def check_predicts(model: Model) -> None:
    """Refuse models that do not predict the next token, for which likelihoods of texts mean nothing.

    Raises:
        InvalidArgument: Naming the class of the model.
    """
    can_generate = getattr(model.module, "can_generate", None)
    if can_generate is None or not can_generate() or getattr(model.config, "is_encoder_decoder", False):
        raise InvalidArgument(
            f"{model.architecture} does not predict the next token, so its likelihoods are not defined; evaluate a decoder with a head"
        )


def batches(sequences: Sequence[Tensor], vocabulary: int) -> Iterator[tuple[list[int], Tensor]]:
    """Neighbouring sequences of equal length together, as ``(indices, tokens [n, length])``, their logits below a fixed size."""
    start = 0
    while start < len(sequences):
        length = len(sequences[start])
        most = max(1, LOGIT_BYTES // (4 * length * vocabulary))
        stop = start + 1
        while stop < len(sequences) and stop - start < most and len(sequences[stop]) == length:
            stop += 1
        yield list(range(start, stop)), torch.stack(list(sequences[start:stop]))
        start = stop


def logits_from(model: Model, tokens: Tensor, first: int = 0) -> Tensor:
    """Logits ``[n, length - first, vocabulary]`` of the positions from ``first`` on.

    Shorter rows may be padded on the right with any token: a decoder does not look ahead, so what is read before the padding is exact.

    Args:
        model: A decoder.
        tokens: ``[n, length]``.
        first: First position wanted; the head is spared those before it where the model can.
    """
    if first and "logits_to_keep" in inspect.signature(model.module.forward).parameters:
        kept = torch.arange(first, tokens.shape[1])
        logits = logits_of(model.module(input_ids=tokens, use_cache=False, logits_to_keep=kept))
        if logits.shape[1] == kept.shape[0]:
            return logits
    return logits_of(run_model(model.module, tokens))[:, first:]
