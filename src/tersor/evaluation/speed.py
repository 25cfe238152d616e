"""How fast a model runs on this machine: prefill and decode tokens a second, and resident memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tersor.models import Model

REPEATS = 5


@dataclass(frozen=True)
class Speed:
    """Medians over a few repeats, at the thread count in force.

    Attributes:
        prefill: Prompt tokens a second.
        decode: Generated tokens a second, one sequence, greedy, with a key-value cache.
        prompt: Tokens of the prompt.
        generated: Tokens generated in each repeat.
        threads: Threads that torch used.
        resident: Bytes of resident memory of this process afterwards.
    """

    prefill: float
    decode: float
    prompt: int
    generated: int
    threads: int
    resident: int

    def __str__(self) -> str:
        return (
            f"speed            prefill {self.prefill:.1f} tokens/s ({self.prompt}), decode {self.decode:.1f} tokens/s, "
            f"{self.threads} threads, {self.resident / 1e6:.0f} MB resident"
        )


@torch.inference_mode()
def measure_speed(model: Model, prompt: int = 128, generated: int = 16, repeats: int = REPEATS) -> Speed:
    """Time a prompt of ``prompt`` tokens and ``generated`` greedy steps after it; one warm-up, then the median of ``repeats``.

    Args:
        model: A decoder.
        prompt: Tokens of the prompt; cut to what the context allows.
        generated: Steps timed.
        repeats: Repeats of each measurement.
    """
    import psutil

    prompt = min(prompt, model.max_context - generated - 1)
    tokens = (torch.arange(prompt) % model.vocabulary)[None]

    def prefill() -> None:
        model.module(tokens, use_cache=False)

    def decode() -> None:
        output = model.module(tokens[:, :8], use_cache=True)
        began.append(time.perf_counter())
        for _ in range(generated):
            following = output.logits[:, -1:].argmax(-1)
            output = model.module(following, past_key_values=output.past_key_values, use_cache=True)
        spent.append(time.perf_counter() - began[-1])

    began: list[float] = []
    spent: list[float] = []
    prefill_seconds = _median(prefill, repeats)
    for _ in range(repeats + 1):
        decode()
    return Speed(
        prompt / prefill_seconds, generated / statistics.median(spent[1:]), prompt, generated, torch.get_num_threads(), psutil.Process().memory_info().rss
    )


def _median(function: Callable[[], None], repeats: int) -> float:
    function()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
