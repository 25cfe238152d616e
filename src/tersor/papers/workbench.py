"""What experiments on language models share: a job on a fixed split of texts, and the measurement on held-out windows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tersor.models import Model
from tersor.pipeline.job import Job
from tersor.pipeline.recipe import parse_recipe


def workbench(model: Model, levels: list[dict[str, Any]], size: Any, folder: Path, **extra: Any) -> tuple[Job, Tensor]:
    """A job whose layers are fitted and searched on ``size.text``, and the evaluation windows of ``size.held_out``.

    Args:
        model: The original.
        levels: As in a recipe.
        size: Has ``text``, ``held_out``, ``calibration``, ``search``, ``evaluation`` (tokens), ``context`` and ``stages``.
        folder: Run directory of the job.
        **extra: Further recipe keys.
    """
    from tersor import data

    fitted, held_out = split_texts(size.text, size.held_out)
    folder.mkdir(parents=True, exist_ok=True)
    text_file = folder.with_suffix(".txt")
    text_file.write_text(fitted, encoding="utf-8")
    recipe = parse_recipe(
        {
            "levels": levels, "budget": "1GB",
            "search": {"tokens": size.search, "stages": size.stages},
            # Methods as they were published: each layer answers for itself.
            "calibration": {
                "text": str(text_file), "tokens": size.calibration, "held_out": size.context * 4, "context": size.context, "correction": 0,
            },
            "evaluation": {"tokens": 0}, **extra,
        },
    )  # fmt: skip
    job = Job(model, recipe, folder)
    windows = data.windows(model.encode(held_out), size.context)
    return job, windows[: size.evaluation // size.context]


def split_texts(fitted: str, held_out: str) -> tuple[str, str]:
    """The two texts; ``NAME.tail`` as the second is the last fifth of ``NAME``, taken off the first."""
    from tersor import data

    text = data.text(fitted)
    if held_out != f"{fitted}.tail":
        return text, data.text(held_out)
    cut = text.rfind("\n", 0, len(text) * 4 // 5)
    return text[:cut], text[cut:]


def divergence_on(original: Model, small: Model, windows: Tensor) -> Any:
    """Perplexity and divergence of ``small`` on ``windows`` ``[n, length]``."""
    from tersor.evaluation import evaluate

    return evaluate(small, windows.reshape(-1), original, context=windows.shape[1], max_tokens=windows.numel())


@dataclass(frozen=True)
class Judged:
    """What a model lost on the windows of a :class:`Judge`.

    Attributes:
        perplexity: ``exp`` of the mean negative log-likelihood.
        kl: Mean ``KL(original || model)`` a token, in nats.
    """

    perplexity: float
    kl: float


@dataclass(frozen=True)
class Judge:
    """Measures many models against one original whose logits are computed once: half the time of :func:`divergence_on`, same numbers.

    Attributes:
        windows: Tokens ``[n, length]``.
        logits: Of the original, float32 ``[n, length - 1, vocabulary]``.
    """

    windows: Tensor
    logits: Tensor

    @classmethod
    def of(cls, original: Model, windows: Tensor) -> Judge:
        """Run the original."""
        with torch.inference_mode():
            return cls(windows, torch.cat([_logits(original.module, window) for window in windows]))

    def __call__(self, small: Model) -> Judged:
        """Perplexity and divergence of ``small``."""
        from tersor.evaluation.divergence import TokenScores, token_scores

        with torch.inference_mode():
            pairs = zip(self.windows, self.logits, strict=True)
            scores = TokenScores.joined([token_scores(_logits(small.module, window)[0], window[1:], known) for window, known in pairs])
        assert scores.kl is not None
        return Judged(float(scores.nll.double().mean().exp()), float(scores.kl.double().mean()))


def _logits(module: nn.Module, window: Tensor) -> Tensor:
    """What predicts the tokens of ``window`` ``[length]`` after the first, ``[1, length - 1, vocabulary]``."""
    logits: Tensor = module(window[None], use_cache=False).logits
    return logits[:, :-1].float()
