"""Log-likelihoods of continuations, tokenised as the model would read them and scored in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.evaluation.divergence import Progress
from tersor.evaluation.logits import LOGIT_BYTES, logits_from
from tersor.models import Model

BATCH_TOKENS = 2048  # tokens in one forward pass, where one sequence alone is not longer


@dataclass(frozen=True)
class Request:
    """A sequence whose end is scored.

    Attributes:
        tokens: Context and continuation.
        start: Index of the first token that is scored, at least 1.
    """

    tokens: tuple[int, ...]
    start: int

    def within(self, limit: int) -> Request:
        """The request without the first tokens that a context of ``limit`` has no room for."""
        excess = len(self.tokens) - 1 - limit
        return self if excess <= 0 else Request(self.tokens[excess:], max(1, self.start - excess))


@dataclass(frozen=True)
class Likelihood:
    """What a model thinks of a continuation.

    Attributes:
        log_probability: Of the whole continuation given the context, in nats.
        greedy: Whether each of its tokens is the likeliest one.
    """

    log_probability: float
    greedy: bool


def requests_of(model: Model, pairs: Sequence[tuple[str, str]], shared: bool) -> list[Request]:
    """Tokenise context and continuation together, a blank between them, and find where the continuation begins.

    Text is tokenised as one string, because a tokenizer may merge across the seam and a model has only ever seen whole strings.
    The scored part begins at the first token in which the whole string differs from the context alone. For continuations of one
    context it begins at the same token for all of them, the earliest of those, so that all are probabilities given the same prefix.

    Args:
        model: Its tokenizer is used.
        pairs: ``(context, continuation)``.
        shared: Whether the pairs share their context.

    Raises:
        InvalidArgument: If a context is empty and the tokenizer has no token to begin with.
    """
    wholes = [_ids(model, f"{context} {continuation}") for context, continuation in pairs]
    starts = [_agreement(_ids(model, context), whole) for (context, _), whole in zip(pairs, wholes, strict=True)]
    if shared:
        starts = [min(starts)] * len(starts)
    if min(starts) == 0:
        begin = _begin(model)
        wholes, starts = [(begin, *whole) for whole in wholes], [start + 1 for start in starts]
    # A continuation that the tokenizer swallows whole still needs one token to score.
    return [Request(whole, min(start, len(whole) - 1)) for whole, start in zip(wholes, starts, strict=True)]


@torch.inference_mode()
def likelihoods(
    model: Model, requests: Sequence[Request], progress: Progress | None = None, batch_tokens: int = BATCH_TOKENS
) -> list[Likelihood]:
    """Score every request. Requests that differ in their last token only, such as one-word answers, share a forward pass.

    Args:
        model: A decoder. What does not fit its context is cut off on the left.
        requests: Any number, of any length.
        progress: Told of every finished request.
        batch_tokens: Padded tokens in one forward pass.
    """
    cut = [request.within(model.max_context) for request in requests]
    rows: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(cut):
        rows.setdefault(request.tokens[:-1], []).append(index)
    results: list[Likelihood | None] = [None] * len(cut)
    for batch in _batches(sorted(rows, key=len, reverse=True), batch_tokens, model.vocabulary):
        first = min(cut[index].start for row in batch for index in rows[row]) - 1
        logits = logits_from(model, _padded(batch), first)
        for row, row_logits in zip(batch, logits, strict=True):
            for index in rows[row]:
                results[index] = _likelihood(row_logits[cut[index].start - 1 - first : len(row) - first], cut[index])
        if progress is not None:
            progress.advance(sum(len(rows[row]) for row in batch))
    return [result for result in results if result is not None]


def _likelihood(logits: Tensor, request: Request) -> Likelihood:
    targets = torch.tensor(request.tokens[request.start :])
    chosen = logits.float().log_softmax(-1).gather(-1, targets[:, None])
    return Likelihood(float(chosen.double().sum()), bool((logits.argmax(-1) == targets).all()))


def _batches(rows: list[tuple[int, ...]], batch_tokens: int, vocabulary: int) -> Iterator[list[tuple[int, ...]]]:
    """Rows in groups whose padded size, and logits, stay below their limits; sorted rows pad little."""
    limit = min(batch_tokens, LOGIT_BYTES // (4 * vocabulary))
    start = 0
    while start < len(rows):
        count = max(1, limit // len(rows[start]))
        yield rows[start : start + count]
        start += count


def _padded(rows: list[tuple[int, ...]]) -> Tensor:
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for line, row in zip(tokens, rows, strict=True):
        line[: len(row)] = torch.tensor(row)
    return tokens


def _ids(model: Model, text: str) -> tuple[int, ...]:
    return tuple(model.encode(text).tolist())


def _agreement(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Length of the common prefix."""
    return next((index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))


def _begin(model: Model) -> int:
    for owner in (model.tokenizer, model.config):
        for key in ("bos_token_id", "eos_token_id"):
            if isinstance(token := getattr(owner, key, None), int):
                return token
    raise InvalidArgument(f"a question without a context needs a token to begin with, and the tokenizer of {model.name} has none")
