"""What was lost: a compressed model against the text and against its original."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.evaluation.divergence import Progress, TokenScores, by_window, score_windows
from tersor.evaluation.logits import check_predicts
from tersor.evaluation.sequences import Text, Windows, check_overlap, make_windows
from tersor.evaluation.size import Size, size_of
from tersor.evaluation.speed import Speed, measure_load, measure_speed
from tersor.evaluation.statistics import Estimate, cluster_mean, exponential, finite
from tersor.models import Model


@dataclass(frozen=True)
class Evaluation:
    """Quality and size of a model. What compares with an original is ``None`` where none was given.

    Standard errors are between windows (``None`` for a single window). To judge the difference of two models use
    :func:`difference`, which pairs the windows and is far sharper than two separate errors.

    Attributes:
        model: Name of the model.
        reference: Name of the original.
        text: What the tokens were cut from.
        text_sha256: Of tokens and cuts; equal for comparable evaluations.
        windows: Sequences scored.
        context: Their length, or the longest allowed one for documents.
        tokens: Tokens predicted; the first of each window is not.
        dtype: Type that the models computed in.
        perplexity: ``exp`` of the mean negative log-likelihood.
        perplexity_stderr: Its standard error.
        reference_perplexity: Of the original on the same tokens.
        log_ratio: ``ln(perplexity / reference_perplexity)``.
        log_ratio_stderr: Its standard error, paired by window.
        kl: Mean ``KL(original || model)`` a token, in nats.
        kl_stderr: Its standard error.
        kl_p99: Its 99th percentile over tokens.
        top1: Share of tokens for which both have the same likeliest next token.
        top1_stderr: Its standard error.
        lost: Share of tokens that the original predicts right and the model wrong.
        gained: The reverse.
        size: Bytes by class of tensor.
        speed: Throughput, if it was asked for.
        seconds: Time of the evaluation without ``speed``.
        window_nll: Summed negative log-likelihood of each window, for :func:`difference`.
        window_kl: Summed divergence of each window.
        window_tokens: Tokens predicted in each window.
    """

    model: str
    reference: str | None
    text: str
    text_sha256: str
    windows: int
    context: int
    tokens: int
    dtype: str
    perplexity: float
    perplexity_stderr: float | None
    size: Size
    reference_perplexity: float | None = None
    log_ratio: float | None = None
    log_ratio_stderr: float | None = None
    kl: float | None = None
    kl_stderr: float | None = None
    kl_p99: float | None = None
    top1: float | None = None
    top1_stderr: float | None = None
    lost: float | None = None
    gained: float | None = None
    speed: Speed | None = None
    seconds: float = 0.0
    window_nll: tuple[float, ...] = ()
    window_kl: tuple[float, ...] = ()
    window_tokens: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors."""
        return self.size.total

    @property
    def bits_per_weight(self) -> float:
        """Bits of the whole model divided by its weights."""
        return self.size.bits_per_weight

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, the sums of the windows left out; numbers that are not finite become ``None``."""
        plain: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if not field.name.startswith("window_"):
                plain[field.name] = finite(value) if isinstance(value, float) else value
        return {**plain, "size": self.size.to_dict(), "speed": None if self.speed is None else self.speed.to_dict()}

    def __str__(self) -> str:
        rows = [
            ("model", f"{self.model}: {self.nbytes / 1e6:.2f} MB, {self.bits_per_weight:.2f} bits a weight"),
            ("bytes", str(self.size)),
            ("perplexity", str(Estimate(self.perplexity, self.perplexity_stderr))),
        ]
        if self.kl is not None:
            ratio = Estimate(self.log_ratio or 0.0, self.log_ratio_stderr)
            rows[-1] = ("perplexity", f"{rows[-1][1]}; original {self.reference_perplexity:.4g}, log ratio {ratio}")
            rows += [
                ("KL to original", f"{Estimate(self.kl, self.kl_stderr)} nats a token, 99th percentile {self.kl_p99:.4g}"),
                ("top-1 agreement", _percent(self.top1, self.top1_stderr)),
                ("flips", f"right predictions lost {_percent(self.lost)}, gained {_percent(self.gained)}"),
            ]
        if self.speed is not None:
            rows.append(("speed", str(self.speed)))
        rows.append(("text", f"{self.text}: {self.tokens:,} tokens scored in {self.windows} windows of {self.context}, {self.dtype}"))
        return "\n".join(f"{name:<16} {value}" for name, value in rows)


def evaluate(
    model: Model | str | Path,
    text: Text | None = None,
    reference: Model | str | Path | None = None,
    *,
    tokens: Tensor | None = None,
    context: int | None = None,
    max_tokens: int | None = 8192,
    speed: bool = False,
    calibration: Text | None = None,
    allow_overlap: bool = False,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a model on held-out text: perplexity, divergence from its original, agreement, bytes and, if asked, speed.

    The text is tokenised once and cut into windows that do not overlap; every token of a window but the first is scored with
    the window alone in view. The divergence is exact over the vocabulary, and both models run side by side, so that only one
    batch of logits of each is ever in memory.

    Args:
        model: The model, or what :func:`tersor.load` takes.
        text: A name or file known to :func:`tersor.data.text`, the text itself, token ids ``[n]`` or ``[n_windows, length]``, or a
            list of documents that are each a window. Without one, the language reference that ships with Python.
        reference: The original. Both must share a vocabulary.
        tokens: Token ids instead of ``text``.
        context: Window length; 512 or the model's limit without it. Longer windows give lower perplexities.
        max_tokens: Tokens of the text to use at most; ``None`` is all of them.
        speed: Also measure tokens a second and memory, and the time to load where ``model`` is a path or a name.
        calibration: The text or tokens that the model was fitted to; evaluating on it, or on a part of it, is refused.
        allow_overlap: Evaluate on it all the same.
        dtype: Type to compute in; by default that of the model. bfloat16 is faster and good to about three digits.
        progress: Told of every batch of windows.

    Raises:
        InvalidArgument: If there is less text than one window, the text overlaps ``calibration``, the vocabularies differ, the
            model is no decoder, or it gives NaN.

    Example:
        >>> import transformers
        >>> config = transformers.LlamaConfig(
        ...     vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
        >>> model = Model(transformers.LlamaForCausalLM(config))
        >>> result = evaluate(model, torch.arange(64) % 32, model, context=16)
        >>> result.kl, result.top1, result.windows
        (0.0, 1.0, 4)
    """
    source = model if not isinstance(model, Model) else None
    subject, original = _loaded(model), None if reference is None else _loaded(reference)
    if tokens is not None and text is not None:
        raise InvalidArgument("give text or tokens, not both")
    material = tokens if tokens is not None else text
    check_predicts(subject)
    windows = make_windows(subject, material, context=context, max_tokens=max_tokens)
    if original is not None:
        check_predicts(original)
        if windows.context > original.max_context:
            limit = original.max_context
            raise InvalidArgument(f"windows of {windows.context} tokens exceed the context {limit} of the reference {original.name}")
    if calibration is not None and not allow_overlap:
        check_overlap(subject, windows, material, calibration)
    began = time.perf_counter()
    judged, teacher = (part if dtype is None or part is None else part.copy(dtype) for part in (subject, original))
    assert judged is not None
    scores = score_windows(judged, windows, teacher, progress)
    result = _summary(subject, original, windows, scores, dtype_of(judged))
    result = replace(result, seconds=time.perf_counter() - began)
    return replace(result, speed=_speed(judged, windows, source)) if speed else result


def difference(first: Evaluation, second: Evaluation, metric: Literal["kl", "nll"] = "kl") -> Estimate:
    """``first - second`` a token, with a standard error paired by window: what decides whether one model is better.

    Args:
        first: Of one model.
        second: Of another on the same windows.
        metric: ``"kl"``, or ``"nll"``, the difference of log-perplexities.

    Raises:
        InvalidArgument: If they were measured on different windows, or have no divergence.
    """
    if first.text_sha256 != second.text_sha256:
        raise InvalidArgument(f"{first.model} and {second.model} were evaluated on different windows; evaluate both on the same")
    sums = [torch.tensor(getattr(item, f"window_{metric}"), dtype=torch.float64) for item in (first, second)]
    if not all(len(part) for part in sums):
        raise InvalidArgument("a difference in divergence needs evaluations against a reference")
    return cluster_mean(sums[0] - sums[1], torch.tensor(first.window_tokens))


def dtype_of(model: Model) -> str:
    """Name of the floating type that ``model`` computes in."""
    found = next((parameter.dtype for parameter in model.module.parameters() if parameter.is_floating_point()), torch.float32)
    return str(found).removeprefix("torch.")


def _loaded(model: Model | str | Path) -> Model:
    from tersor.models import load

    return model if isinstance(model, Model) else load(model)


def _summary(model: Model, reference: Model | None, windows: Windows, scores: TokenScores, dtype: str) -> Evaluation:
    counts = windows.scored
    window_nll = by_window(scores.nll, windows)
    ppl = exponential(cluster_mean(window_nll, counts))
    plain = Evaluation(
        model=model.name, reference=None, text=windows.source, text_sha256=windows.digest, windows=len(windows.sequences),
        context=windows.context, tokens=int(counts.sum()), dtype=dtype, perplexity=ppl.value, perplexity_stderr=ppl.stderr,
        size=size_of(model),
        window_nll=tuple(window_nll.tolist()), window_tokens=tuple(counts.tolist()),
    )  # fmt: skip
    if reference is None or scores.kl is None or scores.reference_nll is None or scores.agree is None or scores.reference_right is None:
        return plain
    reference_nll, window_kl = by_window(scores.reference_nll, windows), by_window(scores.kl, windows)
    ratio, kl, top1 = (cluster_mean(sums, counts) for sums in (window_nll - reference_nll, window_kl, by_window(scores.agree, windows)))
    return replace(
        plain, reference=reference.name, reference_perplexity=exponential(cluster_mean(reference_nll, counts)).value,
        log_ratio=ratio.value, log_ratio_stderr=ratio.stderr, kl=max(kl.value, 0.0), kl_stderr=kl.stderr,
        kl_p99=_percentile(scores.kl, 0.99), top1=top1.value, top1_stderr=top1.stderr, window_kl=tuple(window_kl.tolist()),
        lost=float((scores.reference_right & ~scores.right).double().mean()),
        gained=float((~scores.reference_right & scores.right).double().mean()),
    )  # fmt: skip


def _percentile(values: Tensor, share: float) -> float:
    # Not torch.quantile, which refuses more than sixteen million values.
    ordered = values.sort().values
    return float(ordered[min(len(ordered) - 1, int(share * len(ordered)))])


def _speed(model: Model, windows: Windows, source: str | Path | None) -> Speed:
    new = min(32, model.max_context // 2)
    prompt = windows.sequences[0][: max(1, min(256, model.max_context - new))]
    measured = measure_speed(model, prompt, new_tokens=new)
    return measured if source is None else replace(measured, load=measure_load(source))


def _percent(share: float | None, stderr: float | None = None) -> str:
    return "" if share is None else f"{100 * share:.2f} %" + ("" if stderr is None else f" ± {100 * stderr:.2f}")
