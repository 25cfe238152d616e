"""Decode with one kind of cache, one process: ``kvcache.py REQUEST``. One thread, whose processor time is taken."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any


def make_cache(kind: str, config: Any, bits: int) -> Any:
    """The cache that the benchmark calls ``kind``."""
    from transformers import DynamicCache

    from tersor.kvcache import EvictionCache, make_cache

    if kind == "dynamic":
        return DynamicCache(config=config)
    return EvictionCache(config, budget=1024) if kind == "evict" else make_cache(kind, config, bits)


def cache_bytes(cache: Any) -> int:
    """Bytes of all that a cache holds, of whatever class."""
    return int(cache.nbytes() if hasattr(cache, "nbytes") else sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers))


def held_memory() -> int:
    """Resident bytes once the allocator has returned what is free: it keeps freed memory for itself, more the longer a process ran."""
    import ctypes
    import gc

    from tersor.evaluation.speed import process_memory

    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    return process_memory()[0]


def forget_peak() -> None:
    """Let the peak of this process's memory start again at what it holds now, where the kernel can."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_memory() -> int:
    """Largest resident bytes since :func:`forget_peak`."""
    from tersor.evaluation.speed import process_memory

    return process_memory()[1]


def fill(cache: Any, config: Any, length: int) -> None:
    """Put ``length`` random tokens into every layer: neither time nor bytes depend on the values."""
    import torch

    random = torch.Generator().manual_seed(0)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for layer in range(config.num_hidden_layers):
        keys, values = (torch.randn(1, config.num_key_value_heads, length, width, generator=random) for _ in range(2))
        cache.update(keys, values, layer)


def contexts(model: Any, request: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each length: the median step, bytes of the cache, and memory that steps add to it."""
    import torch

    rows = []
    token = torch.zeros(1, 1, dtype=torch.long)
    warm_up(model, request)
    for length in request["lengths"]:
        cache = make_cache(request["kind"], model.config, request["bits"])
        before = held_memory()
        fill(cache, model.config, length)
        held_memory()
        forget_peak()
        steps = []
        for _ in range(request["steps"] + 1):
            began = time.process_time()
            model.module(input_ids=token, use_cache=True, cache=cache)
            steps.append(time.process_time() - began)
        peak = peak_memory() - before
        rows.append(
            {
                "context": length, "step_seconds": statistics.median(steps[1:]), "cache_bytes": cache_bytes(cache),
                "memory_grown": held_memory() - before, "peak_grown": peak,
            }
        )  # fmt: skip
        del cache
    return rows


def warm_up(model: Any, request: dict[str, Any]) -> None:
    """What is compiled at the first use belongs to the libraries, not to a cache."""
    import torch

    cache = make_cache(request["kind"], model.config, request["bits"])
    fill(cache, model.config, 128)
    model.module(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=True, cache=cache)


def long_generation(model: Any, request: dict[str, Any]) -> list[dict[str, Any]]:
    """Write ``request["tokens"]`` tokens and note bytes and memory on the way."""
    import torch

    warm_up(model, request)
    cache = make_cache(request["kind"], model.config, request["bits"])
    token = torch.ones(1, 1, dtype=torch.long)
    before = held_memory()
    forget_peak()
    rows, began = [], time.process_time()
    for written in range(1, request["tokens"] + 1):
        token = model.module(input_ids=token, use_cache=True, cache=cache).logits[:, -1:].argmax(-1)
        if written % (request["tokens"] // 4) == 0:
            taken, peak = time.process_time() - began, peak_memory() - before
            rows.append(
                {
                    "context": written, "step_seconds": taken / written, "cache_bytes": cache_bytes(cache),
                    "memory_grown": held_memory() - before, "peak_grown": peak,
                }
            )  # fmt: skip
    return rows


def same_tokens(model: Any, request: dict[str, Any]) -> dict[str, bool]:
    """For each way of generating, whether a cache that compresses nothing writes the tokens that DynamicCache does."""
    import torch
    from transformers import DynamicCache

    from tersor.kvcache import GearCache, GearConfig

    tokens = torch.randint(model.config.vocab_size, (2, request["prompt"]), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[0, : request["prompt"] // 3] = 0
    ways: dict[str, dict[str, Any]] = {
        "greedy, padded on the left": {},
        "three beams": {"num_beams": 3},
        "prompt in chunks": {"prefill_chunk_size": 40},
    }
    same = {}
    for name, options in ways.items():
        made = [
            model.module.generate(tokens, attention_mask=mask, max_new_tokens=request["new"], do_sample=False, cache=cache, **options)
            for cache in (DynamicCache(config=model.config), GearCache(model.config, GearConfig(bits=None)))
        ]
        same[name] = torch.equal(*made)
    return same


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Load the model and answer the request."""
    import torch

    from tersor.models import load

    model = load(request["model"])
    with torch.inference_mode():
        model.module(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=False)
        if "prompt" in request:
            return {"same": same_tokens(model, request)}
        return {"rows": long_generation(model, request) if "tokens" in request else contexts(model, request)}


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(asked["reply"]).write_text(json.dumps(main(asked)), encoding="utf-8")
