"""Text from a model: batched sampling with a key-value cache and a random generator of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import InvalidArgument
from tersor.models.model import Model

_RUN = 256  # tokens of the vocabulary whose probabilities are added up first when one is drawn


def continue_text(
    model: Model, prompt: str, *, max_new_tokens: int, temperature: float, seed: int, cache: Any | None = None
) -> str:
    """The continuation of ``prompt``; see :meth:`Model.generate`, and :func:`sample_tokens` for ``cache``."""
    tokens = model.encode(prompt)
    if tokens.numel() == 0:
        raise InvalidArgument("the prompt is empty and the tokenizer adds no token of its own; give some text")
    ends = end_tokens(model)
    written: list[int] = []
    generator = torch.Generator().manual_seed(seed)
    for column in sample_tokens(model, tokens[None], max_new_tokens, temperature=temperature, generator=generator, cache=cache):
        if int(column) in ends:
            break
        written.append(int(column))
    return str(model.tokenizer.decode(written, skip_special_tokens=True))  # type: ignore[union-attr]


def end_tokens(model: Model) -> set[int]:
    """Ids after which the model has nothing more to say."""
    sources = (getattr(model.module, "generation_config", None), model.config, model.tokenizer)
    ids: set[int] = set()
    for source in sources:
        found = getattr(source, "eos_token_id", None)
        ids.update(found if isinstance(found, (list, tuple)) else [] if found is None else [found])
    return ids


def sample_tokens(
    model: Model, start: Tensor, n_new: int, *, temperature: float, generator: torch.Generator, cache: Any | None = None
) -> Iterator[Tensor]:
    """Write on, one column of tokens at a time.

    Args:
        model: A decoder with a language-model head.
        start: ``[n, length]`` tokens to continue, one length for all.
        n_new: Columns to write.
        temperature: 0 takes the likeliest token, above 0 samples.
        generator: Of the sampling; the global one is not touched.
        cache: An empty one to keep keys and values in, such as a compressed one; one that reserves its room unless given.

    Yields:
        ``[n]`` tokens, ``n_new`` times.

    Raises:
        InvalidArgument: If the model cannot write, or it would exceed its context.
    """
    if not _can_write(model.module):
        raise InvalidArgument(f"{model.architecture} does not predict next tokens, so it cannot write text")
    if temperature < 0 or n_new < 1:
        raise InvalidArgument(f"temperature must be at least 0 and the number of tokens at least 1, got {temperature} and {n_new}")
    if start.shape[1] + n_new > model.max_context:
        raise InvalidArgument(f"{start.shape[1]} tokens and {n_new} new ones exceed the context of {model.max_context}")
    options = _forward_options(model.module)
    seen, inputs = start, start
    if cache is None:
        cache = _reserved_cache(model.config, start.shape[1] + n_new)
    for _ in range(n_new):
        # No decorator on a generator: the mode would stay on in the caller between two columns.
        with torch.inference_mode():
            output = model.module(input_ids=inputs, use_cache=True, **options(cache))
            column = _draw(output.logits[:, -1].float(), temperature, generator)
            cache = _cache_in(output)
            seen = torch.cat([seen, column[:, None]], 1)
            inputs = seen if cache is None else column[:, None]
        yield column


def _reserved_cache(config: Any, length: int) -> Any | None:
    """A cache that reserves ``length`` positions; the usual one copies all keys and values at every token.

    ``None`` for models that keep more than keys and values, which make their own.
    """
    from transformers import Cache
    from transformers.cache_utils import DynamicLayer

    if not set(getattr(config, "layer_types", None) or ()) <= {"full_attention", "sliding_attention"}:
        return None

    class Reserved(DynamicLayer):
        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            start = self.get_seq_length()
            end = start + key_states.shape[-2]
            if start == 0:
                self.lazy_initialization(key_states, value_states)
                sizes = [(*states.shape[:-2], max(length, end), states.shape[-1]) for states in (key_states, value_states)]
                self.room = [key_states.new_empty(size) for size in sizes]
            for room, states in zip(self.room, (key_states, value_states), strict=True):
                room[..., start:end, :] = states
            self.keys, self.values = (room[..., :end, :] for room in self.room)
            return self.keys, self.values

    return Cache(layer_class_to_replicate=Reserved)


def _can_write(module: nn.Module) -> bool:
    can_generate = getattr(module, "can_generate", None)
    return bool(can_generate is not None and can_generate()) and not getattr(module.config, "is_encoder_decoder", False)


def _forward_options(module: nn.Module) -> Callable[[Any], dict[str, Any]]:
    """The keywords of a decoding step given its cache; the argument's name differs between architectures and releases."""
    parameters = inspect.signature(module.forward).parameters
    cache_name = next((name for name in ("cache", "past_key_values") if name in parameters), None)
    fixed = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
    return lambda cache: fixed if cache is None or cache_name is None else {**fixed, cache_name: cache}


def _cache_in(output: Any) -> Any | None:
    from transformers import Cache

    return next((value for value in output.values() if isinstance(value, Cache)), None)


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    # By the inverse of the distribution function in two steps, first a run of tokens and then one of it: a running sum over the whole
    # vocabulary, or one exponential a token as multinomial draws, would take longer than the model's step.
    weights = torch.softmax(logits / temperature, -1)
    runs = nn.functional.pad(weights, (0, -weights.shape[-1] % _RUN)).unflatten(-1, (-1, _RUN))
    run = _invert(runs.sum(-1, dtype=torch.float64), generator)
    inside = _invert(runs[torch.arange(len(run)), run].double(), generator)
    return (run * _RUN + inside).clamp_max(logits.shape[-1] - 1)


def _invert(weights: Tensor, generator: torch.Generator) -> Tensor:
    """One index a row, drawn with probability proportional to ``weights`` ``[n, k]`` float64."""
    cumulative = weights.cumsum(-1)
    threshold = torch.rand(weights.shape[0], 1, dtype=torch.float64, generator=generator) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp_max(weights.shape[-1] - 1)
