"""GEAR: what low-rank factors and outliers add to a quantised cache of keys and values, and what the same bytes buy elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tersor.papers.frame import Paper, Result, Row, measured

PAPER = Paper(
    key="gear",
    claim="With a cache of 2-bit keys and values, low-rank factors of the error and 2 % of outliers each take over a fifth of the "
    "divergence away, alone and on top of the other; at 4 bits both together leave the perplexity within half a percent of the exact one.",
    where="tersor.kvcache.GearCache",
)

SEEDS = (0, 1, 2)
# What each correction must take off the divergence, and how close 4 bits must come in perplexity.
STEP, NEAR = 0.2, 0.005
STEPS = (("kivi 2", "gear-l 2"), ("kivi 2", "outliers 2"), ("gear-l 2", "gear 2"), ("outliers 2", "gear 2"))
NO_FACTORS = {"rank_prefill": 0, "rank_decode": 0}
BARE = {**NO_FACTORS, "sparsity": 0.0}


@dataclass(frozen=True)
class Setting:
    """The model, the text, and tokens of the prompt and of what follows it."""

    model: str
    text: str
    prompt: int
    following: int
    group: int
    rank: int


FULL = Setting("smollm2-135m", "wikitext2.test", 768, 256, 64, 4)
QUICK = Setting("stories260k", "tinystories", 256, 192, 32, 1)


def run(quick: bool) -> Result:
    """Read a prompt exactly, compress its cache, and compare the predictions of what follows with those from the exact cache."""
    import torch

    from tersor import data
    from tersor.models import load

    setting = QUICK if quick else FULL
    model = load(setting.model)
    length = setting.prompt + setting.following + 1
    windows = data.windows(model.encode(data.text(setting.text)), length)
    rows: list[Row] = []
    for seed in SEEDS:
        chosen = torch.randint(len(windows), (1,), generator=torch.Generator().manual_seed(seed))
        rows += measured(_measure(model, windows[chosen], setting, seed))
    steps = [(_kl(rows, before, seed), _kl(rows, after, seed)) for before, after in STEPS for seed in SEEDS]
    margin = min(1 - after / before for before, after in steps) - STEP
    distances = [abs(_find(rows, "gear 4", seed)["perplexity"] / _find(rows, "exact", seed)["perplexity"] - 1) for seed in SEEDS]
    near = max(distances) < NEAR
    notes = [
        f"gear 4: perplexity within {max(distances):.2%} of the exact cache's on every text", _equal_bytes(rows),
        "full-precision tokens are counted at 16 bits; the prompt is one segment, and what follows is read in one pass",
    ]  # fmt: skip
    baseline = f"the divergence before each correction, less {STEP:.0%}"
    return Result(rows, baseline, margin, SEEDS, margin > 0 and near, (setting.model, setting.text), notes)


def caches(config: Any, setting: Setting) -> dict[str, Any]:
    """Every cache that is measured, by name: the method and its bits."""
    from tersor.kvcache import EvictionCache, GearCache, GearConfig

    group = setting.group

    def gear(**options: Any) -> Any:
        return GearCache(config, GearConfig(**{"group": group, "rank_prefill": setting.rank, **options}))

    made = {
        "plain 2": gear(backbone="plain", **BARE), "kivi 2": gear(**BARE), "gear-l 2": gear(sparsity=0.0), "outliers 2": gear(**NO_FACTORS),
        "gear 2": gear(), "kcvt 2": gear(backbone="kcvt", **BARE), "gear-kcvt 2": gear(backbone="kcvt"),
        "kivi 3": gear(bits=3, **BARE), "kivi 3, half the group": gear(bits=3, group=group // 2, buffer=group, **BARE),
        "kivi 4": gear(bits=4, **BARE), "kcvt 4": gear(bits=4, backbone="kcvt", **BARE), "gear-kcvt 4": gear(bits=4, backbone="kcvt"),
        "gear 4": gear(bits=4),
    }  # fmt: skip
    text = config.get_text_config(decoder=True)
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    bits = GearConfig(group=group, rank_prefill=setting.rank).bits_per_element(setting.prompt, text.num_key_value_heads, width)
    budget = int(setting.prompt * bits / 16)
    return made | {"evict, last tokens": EvictionCache(config, budget), "evict, large keys": EvictionCache(config, budget, "small_keys")}


def _measure(model: Any, window: Tensor, setting: Setting, seed: int) -> Iterator[Row]:
    import torch
    from transformers import DynamicCache

    prompt, following, targets = window[:, : setting.prompt], window[:, setting.prompt : -1], window[0, setting.prompt + 1 :]
    with torch.inference_mode():
        exact = DynamicCache(config=model.config)
        _forward(model, prompt, exact, last_only=True)
        # Copies: the exact cache goes on to grow.
        states = [(layer.keys.clone(), layer.values.clone()) for layer in exact.layers]
        reference = _forward(model, following, exact)
        yield {"method": "exact", "seed": seed, "of_16_bit": 1.0, **_score(reference, reference, targets)}
        for name, cache in caches(model.config, setting).items():
            for index, (keys, values) in enumerate(states):
                cache.update(keys, values, index)
            sizes = {"of_16_bit": _fraction(cache, states), **_errors(cache, states)}
            yield {"method": name, "seed": seed, **sizes, **_score(_forward(model, following, cache), reference, targets)}


def _forward(model: Any, tokens: Tensor, cache: Any, last_only: bool = False) -> Tensor:
    import inspect

    name = "cache" if "cache" in inspect.signature(model.module.forward).parameters else "past_key_values"
    logits: Tensor = model.module(input_ids=tokens, use_cache=True, logits_to_keep=1 if last_only else 0, **{name: cache}).logits[0]
    return logits


def _score(logits: Tensor, reference: Tensor, targets: Tensor) -> Row:
    from tersor.evaluation.divergence import token_scores

    scores = token_scores(logits, targets, reference)
    assert scores.kl is not None
    assert scores.agree is not None
    return {"perplexity": float(scores.nll.mean().exp()), "kl": float(scores.kl.mean()), "agree": float(scores.agree.float().mean())}


def _fraction(cache: Any, states: list[tuple[Tensor, Tensor]]) -> float:
    """Bytes of the cache against 16 bits for every entry, whatever precision the model computes in."""
    whole = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    entries = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    return float((cache.nbytes() - whole + 2 * entries) / sum(2 * (keys.numel() + values.numel()) for keys, values in states))


def _errors(cache: Any, states: list[tuple[Tensor, Tensor]]) -> Row:
    """Relative error of compressed keys and values, the mean over layers; nothing for a cache that forgets tokens."""
    import torch

    if not hasattr(cache.layers[0], "segments"):
        return {}
    errors: dict[str, list[float]] = {"keys": [], "values": []}
    for layer, pair in zip(cache.layers, states, strict=True):
        for side, exact in zip(errors, pair, strict=True):
            (segments,) = layer.segments[side]
            original = exact[:, :, : segments.tokens]
            segments.write(back := torch.empty_like(original))
            errors[side].append(float((back - original).norm() / original.norm()))
    return {f"{side}_error": sum(values) / len(values) for side, values in errors.items()}


def _find(rows: list[Row], method: str, seed: int) -> Row:
    return next(row for row in rows if row["method"] == method and row["seed"] == seed)


def _kl(rows: list[Row], method: str, seed: int) -> float:
    return float(_find(rows, method, seed)["kl"])


def _equal_bytes(rows: list[Row]) -> str:
    """What the bytes of GEAR buy otherwise."""

    def mean(method: str, column: str) -> float:
        return sum(float(_find(rows, method, seed)[column]) for seed in SEEDS) / len(SEEDS)

    names = ("gear 2", "gear-l 2", "kivi 3", "kivi 3, half the group", "evict, last tokens", "evict, large keys")
    return "bytes and mean divergence: " + "; ".join(f"{name} {mean(name, 'of_16_bit'):.1%}, {mean(name, 'kl'):.3g}" for name in names)
