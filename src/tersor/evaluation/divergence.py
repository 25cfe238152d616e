"""How far a model's predictions are from the truth and from those of a reference, token by token, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.evaluation.logits import batches, logits_from
from tersor.evaluation.sequences import Windows
from tersor.models import Model

CHUNK_BYTES = 1 << 25  # of one table [positions, vocabulary] in float32; a few such tables are alive at once


class Progress(Protocol):
    """Receives what long work is doing; the progress of :mod:`tersor.pipeline` is one."""

    def start(self, stage: str, total: int) -> None:
        """Begin ``stage``, made of ``total`` steps."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """``steps`` more of the current stage are done."""


@dataclass(frozen=True)
class TokenScores:
    """One number a scored token, each ``[n]``; what needs a reference is ``None`` without one.

    Attributes:
        nll: ``-log q(token)`` in nats under the model.
        right: Whether the model's likeliest token is the true one.
        reference_nll: ``-log p(token)`` under the reference.
        reference_right: Whether the reference's likeliest token is the true one.
        kl: ``KL(reference || model)`` in nats, over the whole vocabulary.
        agree: Whether both have the same likeliest token.
    """

    nll: Tensor
    right: Tensor
    reference_nll: Tensor | None = None
    reference_right: Tensor | None = None
    kl: Tensor | None = None
    agree: Tensor | None = None

    @classmethod
    def joined(cls, parts: list[TokenScores]) -> TokenScores:
        """``parts`` one after the other."""

        def column(name: str) -> Tensor | None:
            values = [getattr(part, name) for part in parts]
            return None if values[0] is None else torch.cat(values)

        return cls(*(column(name) for name in cls.__dataclass_fields__))  # type: ignore[arg-type]


def token_scores(logits: Tensor, targets: Tensor, reference: Tensor | None = None, chunk_bytes: int = CHUNK_BYTES) -> TokenScores:
    """Score every position.

    Args:
        logits: ``[n, vocabulary]`` of the model, any floating type.
        targets: ``[n]``, the true tokens.
        reference: ``[n, vocabulary]`` logits of the reference, or ``None``.
        chunk_bytes: Size of the float32 tables worked on at once; it changes memory and time, not results.
    """
    step = max(1, chunk_bytes // (4 * logits.shape[-1]))
    parts = []
    for start in range(0, targets.shape[0], step):
        chunk = slice(start, start + step)
        parts.append(_chunk_scores(logits[chunk], targets[chunk], None if reference is None else reference[chunk]))
    return TokenScores.joined(parts)


def _chunk_scores(logits: Tensor, targets: Tensor, reference: Tensor | None) -> TokenScores:
    log_q = logits.float().log_softmax(-1)
    nll, right = _nll(log_q, targets), logits.argmax(-1) == targets
    if reference is None:
        return TokenScores(nll, right)
    log_p = reference.float().log_softmax(-1)
    reference_nll, best = _nll(log_p, targets), reference.argmax(-1)
    agree = best == logits.argmax(-1)
    p = log_p.exp()
    impossible = p == 0  # 0 log 0 is 0, also where both models rule a token out
    terms = log_p.sub_(log_q).mul_(p).masked_fill_(impossible, 0.0)
    return TokenScores(nll, right, reference_nll, best == targets, terms.sum(-1, dtype=torch.float64), agree)


def _nll(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    return -log_probabilities.gather(-1, targets[:, None])[:, 0].double()


@torch.inference_mode()
def score_windows(
    model: Model, windows: Windows, reference: Model | None = None, progress: Progress | None = None, chunk_bytes: int = CHUNK_BYTES
) -> TokenScores:
    """Run ``model``, and ``reference`` beside it, over ``windows``, one batch of logits of each in memory at a time.

    Raises:
        InvalidArgument: If the vocabularies differ or a model gives NaN.
    """
    if progress is not None:
        progress.start("evaluating", len(windows.sequences))
    parts = []
    for indices, tokens in batches(windows.sequences, model.vocabulary):
        targets = tokens[:, 1:].reshape(-1)
        logits = _predictions(model, tokens)
        other = None if reference is None else _predictions(reference, tokens)
        if other is not None and reference is not None and other.shape[-1] != logits.shape[-1]:
            raise InvalidArgument(
                f"{model.name} predicts {logits.shape[-1]} tokens and the reference {reference.name} {other.shape[-1]}; "
                "they must share a vocabulary"
            )
        scores = token_scores(logits, targets, other, chunk_bytes)
        _check_numbers(model, scores.nll)
        if reference is not None and scores.reference_nll is not None:
            _check_numbers(reference, scores.reference_nll)
        parts.append(scores)
        if progress is not None:
            progress.advance(len(indices))
    return TokenScores.joined(parts)


def _predictions(model: Model, tokens: Tensor) -> Tensor:
    return logits_from(model, tokens)[:, :-1].flatten(0, 1)


def _check_numbers(model: Model, nll: Tensor) -> None:
    if bool(nll.isnan().any()):
        raise InvalidArgument(f"{model.name} gives NaN; the model is broken, or computes in a type that is too narrow")


def by_window(values: Tensor, windows: Windows) -> Tensor:
    """Sum of ``values`` ``[n_scored]`` in each window, float64 ``[n_windows]``."""
    return torch.stack([part.double().sum() for part in values.split(windows.scored.tolist())])
