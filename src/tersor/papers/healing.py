"""Healing: a short training of the factors that compression left, towards the original model."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from tersor.finetuning.pv_tuning import divergence
from tersor.models import Model
from tersor.weights import CompressedWeight

# Steps over which the learning rate rises; the paper publishes no schedule.
_WARM_UP = 0.03


def heal(
    model: Model, teacher: Model, weights: Iterable[CompressedWeight], windows: Tensor, *,
    steps: int, learning_rate: float = 1e-3, batch: int = 2, seed: int = 0,
) -> list[float]:  # fmt: skip
    """Train the float32 buffers of ``weights`` in place to the teacher's distribution; everything else stays as it is.

    Args:
        model: Holds ``weights``.
        teacher: The original.
        weights: Made with ``factor_dtype="float32"``; stored types cannot be trained without rounding each step away.
        windows: Training text ``[n, length]``; drawn at random with replacement.
        steps: Of AdamW with warm-up, cosine decay and clipped gradients.
        learning_rate: At its highest.
        batch: Windows a step.
        seed: Of the draws.

    Returns:
        The divergence from the teacher in nats a token, at every step.
    """
    factors = [buffer for weight in weights for buffer in weight.buffers() if buffer.dtype == torch.float32]
    for factor in factors:
        factor.requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(factors, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    losses = []
    for _ in range(steps):
        tokens = windows[torch.randint(windows.shape[0], (batch,), generator=generator)]
        loss = divergence(model, teacher, tokens)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(factors, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    for factor in factors:
        factor.requires_grad_(False).grad = None
    return losses


def _rate(step: int, steps: int) -> float:
    warm = max(int(_WARM_UP * steps), 1)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))
