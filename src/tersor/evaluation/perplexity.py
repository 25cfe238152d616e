"""Perplexity alone, for callers that want one number."""

from __future__ import annotations

from tersor.evaluation.divergence import by_window, score_windows
from tersor.evaluation.logits import check_predicts
from tersor.evaluation.sequences import Text, make_windows
from tersor.evaluation.statistics import Estimate, cluster_mean, exponential
from tersor.models import Model


def perplexity(model: Model, text: Text | None = None, *, context: int | None = None, max_tokens: int | None = None) -> Estimate:
    """``exp`` of the mean negative log-likelihood a token, over windows that do not overlap.

    Each window is scored from its second token on, with nothing before the window in view. Use :func:`evaluate` to compare
    with an original; differences between two models should be judged on the same windows, see :func:`difference`.

    Args:
        model: A decoder.
        text: As for :func:`evaluate`.
        context: Window length; 512 or the model's limit without it. Longer windows give lower numbers: state it.
        max_tokens: Tokens to use at most; all without it.

    Returns:
        Perplexity with its standard error between windows.

    Raises:
        InvalidArgument: If there is less than one window, or the model is no decoder or gives NaN.

    Example:
        >>> import torch, transformers
        >>> config = transformers.LlamaConfig(
        ...     vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
        >>> model = Model(transformers.LlamaForCausalLM(config))
        >>> perplexity(model, torch.arange(64) % 32, context=16).value > 1
        True
    """
    check_predicts(model)
    windows = make_windows(model, text, context=context, max_tokens=max_tokens)
    scores = score_windows(model, windows)
    return exponential(cluster_mean(by_window(scores.nll, windows), windows.scored))
