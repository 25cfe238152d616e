"""Text from a model: batched sampling with a key-value cache and a random generator of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import InvalidArgument
from tersor.models.model import Model

BATCH_TOKENS = 4096  # padded tokens of one batch of continuations, where one prompt alone is not longer
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


@dataclass(frozen=True)
class Written:
    """A continuation.

    Attributes:
        text: Without the prompt, without end tokens.
        logits: ``[vocabulary]`` float32, what the model predicted right after the prompt.
        truncated: Whether the prompt lost its beginning because the context has no room for it.
    """

    text: str
    logits: Tensor
    truncated: bool


def continue_texts(
    model: Model, prompts: Sequence[str], *, max_new_tokens: int, stop: str | None = None, batch_tokens: int = BATCH_TOKENS,
    on_batch: Callable[[int], None] | None = None,
) -> list[Written]:  # fmt: skip
    """The likeliest continuations of many prompts, written in batches that are padded on the left.

    Padding changes nothing but rounding: it is masked, and positions are counted from the first real token. Models whose forward pass
    takes no mask or no positions get batches of prompts of one length.

    Args:
        model: A decoder with a tokenizer.
        prompts: Not wrapped in a chat template. Those that leave no room for the continuation are cut off on the left.
        max_new_tokens: Longest continuation; an end-of-sequence token ends it earlier.
        stop: A text that ends a continuation, such as a line break; neither it nor what follows is returned.
        batch_tokens: Padded tokens in one batch, new ones included.
        on_batch: Told of how many prompts each batch finished.

    Raises:
        InvalidArgument: If a prompt has no tokens, the model cannot write, or the continuation alone exceeds its context.
    """
    room = model.max_context - max_new_tokens
    if room < 1 or max_new_tokens < 1:
        raise InvalidArgument(f"max_new_tokens must be from 1 to {model.max_context - 1} for {model.name}, got {max_new_tokens}")
    whole = [model.encode(prompt) for prompt in prompts]
    if any(tokens.numel() == 0 for tokens in whole):
        raise InvalidArgument("a prompt is empty and the tokenizer adds no token of its own; give some text")
    results: dict[int, Written] = {}
    for batch in _of_similar_length(model, [min(len(tokens), room) for tokens in whole], max_new_tokens, batch_tokens):
        texts, logits = _write_batch(model, [whole[index][-room:] for index in batch], max_new_tokens, stop)
        for row, index in enumerate(batch):
            results[index] = Written(texts[row], logits[row], len(whole[index]) > room)
        if on_batch is not None:
            on_batch(len(batch))
    return [results[index] for index in range(len(whole))]


def _of_similar_length(model: Model, lengths: list[int], n_new: int, batch_tokens: int) -> Iterator[list[int]]:
    padded = {"attention_mask", "position_ids"} <= set(inspect.signature(model.module.forward).parameters)
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    while order:
        longest = lengths[order[0]]
        batch = order[: max(1, batch_tokens // (longest + n_new))]
        if not padded:
            batch = [index for index in batch if lengths[index] == longest]
        yield batch
        order = order[len(batch) :]


def _write_batch(model: Model, rows: list[Tensor], n_new: int, stop: str | None) -> tuple[list[str], Tensor]:
    start = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(start)
    for index, tokens in enumerate(rows):
        start[index, -len(tokens) :] = tokens
        mask[index, -len(tokens) :] = 1
    seen: list[Tensor] = []
    ends, written, going = end_tokens(model), [list[int]() for _ in rows], [True] * len(rows)
    columns = sample_tokens(
        model, start, n_new, temperature=0.0, generator=torch.Generator(), mask=None if bool(mask.all()) else mask,
        observe=lambda logits: None if seen else seen.append(logits.clone()),
    )  # fmt: skip
    for column in columns:
        for row, token in enumerate(column.tolist()):
            going[row] = going[row] and token not in ends
            if going[row]:
                written[row].append(token)
                going[row] = stop is None or stop not in _decoded(model, [token])
        if not any(going):
            break
    texts = [_decoded(model, own) for own in written]
    return [text if stop is None else text.partition(stop)[0] for text in texts], seen[0]


def _decoded(model: Model, tokens: list[int]) -> str:
    return str(model.tokenizer.decode(tokens, skip_special_tokens=True))  # type: ignore[union-attr]


def sample_tokens(
    model: Model, start: Tensor, n_new: int, *, temperature: float, generator: torch.Generator, cache: Any | None = None,
    mask: Tensor | None = None, observe: Callable[[Tensor], None] | None = None,
) -> Iterator[Tensor]:  # fmt: skip
    """Write on, one column of tokens at a time.

    Args:
        model: A decoder with a language-model head.
        start: ``[n, length]`` tokens to continue, one length for all.
        n_new: Columns to write.
        temperature: 0 takes the likeliest token, above 0 samples.
        generator: Of the sampling; the global one is not touched.
        cache: An empty one to keep keys and values in, such as a compressed one; one that reserves its room unless given.
        mask: ``[n, length]``, 1 where ``start`` holds a token and 0 where it is padded on the left; all tokens without it.
        observe: Told of the logits ``[n, vocabulary]`` float32 from which each column is taken.

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
    real = mask
    if cache is None:
        cache = _reserved_cache(model.config, start.shape[1] + n_new)
    for _ in range(n_new):
        # No decorator on a generator: the mode would stay on in the caller between two columns.
        with torch.inference_mode():
            where = {} if real is None else _positions(real, inputs.shape[1])
            output = model.module(input_ids=inputs, use_cache=True, **options(cache), **where)
            logits = output.logits[:, -1].float()
            if observe is not None:
                observe(logits)
            column = _draw(logits, temperature, generator)
            real = None if real is None else torch.cat([real, real.new_ones(len(real), 1)], 1)
            cache = _cache_in(output)
            seen = torch.cat([seen, column[:, None]], 1)
            inputs = seen if cache is None else column[:, None]
        yield column


def _positions(mask: Tensor, length: int) -> dict[str, Tensor]:
    """Keywords of a forward pass over the last ``length`` tokens of rows that are padded on the left."""
    return {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp_min(0)[:, -length:]}


@torch.inference_mode()
def next_logits(model: Model, rows: Sequence[Tensor]) -> Tensor:
    """What a model predicts after each of many token sequences; what neighbours in their order have in common is run once.

    Questions behind the same worked examples cost their own tokens alone.

    Args:
        model: A decoder with a language-model head.
        rows: Each ``[length]``, at least one token.

    Returns:
        ``[n, vocabulary]`` float32, in the order of ``rows``.
    """
    from transformers import DynamicCache

    options = _forward_options(model.module)
    # Only plain keys and values can be cut back to what two sequences share.
    plain = set(getattr(model.config, "layer_types", None) or ()) <= {"full_attention"} and options(True) != options(None)
    cache: Any = None
    before = rows[0][:0]
    found: dict[int, Tensor] = {}
    for index in sorted(range(len(rows)), key=lambda index: rows[index].tolist()):
        row = rows[index]
        length = min(len(before), len(row) - 1)
        differs = (before[:length] != row[:length]).nonzero()
        shared = 0 if cache is None else int(differs[0]) if len(differs) else length
        if shared == 0:
            cache = DynamicCache() if plain else None
        elif shared < len(before):
            cache.crop(shared - len(before))
        output = model.module(input_ids=row[None, shared:], use_cache=plain, **options(cache))
        found[index], before = output.logits[0, -1].float(), row
    return torch.stack([found[index] for index in range(len(rows))])


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
