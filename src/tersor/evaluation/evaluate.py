"""Perplexity, divergence from the original, agreement and size, measured on text that chose nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tersor.errors import InvalidArgument

if TYPE_CHECKING:
    from tersor.evaluation.speed import Speed
    from tersor.models import Model

POSITIONS = 512  # positions whose vocabulary-wide distributions are in memory at once


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a model.

    Attributes:
        tokens: Predictions scored: every token of a window but its first.
        perplexity: ``exp`` of the mean negative log-likelihood.
        perplexity_stderr: Its standard error, from the spread over windows.
        kl: Mean ``KL(reference || model)`` in nats a token, if there was a reference.
        kl_stderr: Its standard error over windows.
        kl_p99: 99th percentile over positions: how bad the worst predictions are.
        top1: Fraction of positions where both put the same token first.
        lost: Fraction where the reference predicted the next token and the model does not.
        gained: Fraction where the model predicts it and the reference did not.
        nbytes: Bytes of the model's tensors on disk, by class: ``linears``, ``embeddings``, ``other``, ``total``.
        bits_per_weight: Bits of the total for each parameter.
        speed: Tokens a second and memory, if asked for.
    """

    tokens: int
    perplexity: float
    perplexity_stderr: float
    kl: float | None
    kl_stderr: float | None
    kl_p99: float | None
    top1: float | None
    lost: float | None
    gained: float | None
    nbytes: dict[str, int]
    bits_per_weight: float
    speed: Speed | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what is not finite is ``None``."""
        return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in asdict(self).items()}

    def __str__(self) -> str:
        lines = [f"perplexity       {self.perplexity:.3f} ± {self.perplexity_stderr:.3f} over {self.tokens:,} tokens"]
        if self.kl is not None:
            lines += [
                f"KL to reference  {self.kl:.5f} ± {self.kl_stderr:.5f} nats a token, 99th percentile {self.kl_p99:.3f}",
                f"same top token   {100 * (self.top1 or 0):.2f} %; predictions lost {100 * (self.lost or 0):.2f} %, gained {100 * (self.gained or 0):.2f} %",
            ]
        sizes = ", ".join(f"{name} {count:,}" for name, count in self.nbytes.items() if name != "total")
        lines.append(f"bytes            {self.nbytes['total']:,} ({sizes}), {self.bits_per_weight:.2f} bits a parameter")
        return "\n".join([*lines, str(self.speed)] if self.speed is not None else lines)


@dataclass
class _Sums:
    """Running sums over the positions of one window."""

    nll: float = 0.0
    kl: float = 0.0
    same: int = 0
    lost: int = 0
    gained: int = 0


def evaluate(
    model: Model, text: str | Path | Tensor | None = None, reference: Model | None = None, *, context: int = 512, max_tokens: int = 8192,
    calibration: str | None = None, allow_overlap: bool = False, speed: bool = False,
) -> Evaluation:
    """Measure ``model`` on ``text``, and against ``reference`` if there is one.

    Windows do not overlap; the first token of each is not scored. Both models run window by window: their logits are never all in memory.

    Args:
        model: What to measure.
        text: A text, a path or name that :func:`tersor.data.text` knows, or token ids ``[n]``; without one, the documentation that ships
            with Python.
        reference: The original.
        context: Tokens of a window.
        max_tokens: Tokens of the text to use, from its beginning.
        calibration: Text that the model was fitted to; the evaluation text must share nothing with it.
        allow_overlap: Do not refuse overlapping texts.
        speed: Also measure :func:`tersor.evaluation.measure_speed`.

    Raises:
        InvalidArgument: If the text is too short, overlaps the calibration text, or the vocabularies differ.
    """
    tokens = _tokens(model, text, calibration, allow_overlap)
    context = min(context, model.max_context)
    if context < 2:
        raise InvalidArgument(f"context must be at least 2 tokens, got {context}")
    count = min(len(tokens), max_tokens) // context
    if count < 1:
        raise InvalidArgument(f"evaluation needs at least one window of {context} tokens, got {min(len(tokens), max_tokens)}; give more text or a shorter context")
    if reference is not None and reference.vocabulary != model.vocabulary:
        raise InvalidArgument(f"the reference has {reference.vocabulary} tokens and the model {model.vocabulary}; they must share a vocabulary")
    windows = tokens[: count * context].reshape(count, context)
    sums, divergences = [], []
    for window in windows:
        total = _Sums()
        for target, logits, expected in _predictions(model, reference, window):
            divergences.append(_add(total, target, logits, expected))
        sums.append(total)
    from tersor.evaluation.speed import measure_speed

    measured = measure_speed(model) if speed else None
    return _summary(model, sums, torch.cat(divergences), context - 1, reference is not None, measured)


def _tokens(model: Model, text: str | Path | Tensor | None, calibration: str | None, allow_overlap: bool) -> Tensor:
    from tersor import data

    if isinstance(text, Tensor):
        if text.ndim != 1 or text.dtype != torch.long:
            raise InvalidArgument(f"token ids must be int64 [n], got {text.dtype} of shape {tuple(text.shape)}")
        return text
    # A name has no line break and is short; anything else is the text itself.
    named = text is None or isinstance(text, Path) or (len(text) < 256 and "\n" not in text and (" " not in text or Path(text).is_file()))
    content = data.text(data.PYTHON_DOCS if text is None else text) if named else str(text)
    if calibration is not None and not allow_overlap:
        data.check_disjoint({"calibration": calibration, "evaluation": content})
    return model.encode(content)


@torch.inference_mode()
def _predictions(model: Model, reference: Model | None, window: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Targets and logits of both models, a bounded number of positions at a time."""
    logits = model.module(window[None], use_cache=False).logits[0, :-1]
    expected = None if reference is None else reference.module(window[None], use_cache=False).logits[0, :-1]
    for start in range(0, len(logits), POSITIONS):
        end = start + POSITIONS
        yield window[1:][start:end], logits[start:end].float(), None if expected is None else expected[start:end].float()


def _add(total: _Sums, target: Tensor, logits: Tensor, expected: Tensor | None) -> Tensor:
    log_q = logits.log_softmax(-1)
    total.nll -= float(log_q.gather(1, target[:, None]).double().sum())
    if expected is None:
        return torch.empty(0)
    log_p = expected.log_softmax(-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
    first, wanted = log_q.argmax(-1), log_p.argmax(-1)
    total.kl += float(divergence.double().sum())
    total.same += int((first == wanted).sum())
    total.lost += int(((wanted == target) & (first != target)).sum())
    total.gained += int(((wanted != target) & (first == target)).sum())
    return divergence


def _summary(model: Model, sums: list[_Sums], divergences: Tensor, scored: int, compared: bool, speed: Speed | None) -> Evaluation:
    count = len(sums)
    n = count * scored
    nll, nll_error = _mean([total.nll / scored for total in sums])
    kl, kl_error = _mean([total.kl / scored for total in sums])
    perplexity = math.exp(nll) if nll < 700 else math.inf
    nbytes = size_by_class(model)

    def fraction(name: str) -> float | None:
        return sum(getattr(total, name) for total in sums) / n if compared else None

    return Evaluation(
        n, perplexity, perplexity * nll_error, max(kl, 0.0) if compared else None, kl_error if compared else None,
        float(divergences.quantile(0.99)) if compared else None, fraction("same"), fraction("lost"), fraction("gained"),
        nbytes, 8 * nbytes["total"] / model.n_parameters, speed,
    )  # fmt: skip


def _mean(values: list[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, 0.0
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def size_by_class(model: Model) -> dict[str, int]:
    """Bytes of the model's tensors on disk: ``linears`` (an untied head among them), ``embeddings`` (a tied head is part), ``other``, ``total``."""
    from tersor.models.summary import summarize

    summary = summarize(model)
    tables = set(model.embeddings())
    embeddings = sum(row.nbytes for row in summary.layers if row.name in tables)
    linears = sum(row.nbytes for row in summary.layers if row.name not in tables)
    return {"linears": linears, "embeddings": embeddings, "other": summary.rest_nbytes, "total": summary.nbytes}
