"""Tokenizers of the fast kind written the way llama.cpp reads them: byte-level BPE, and sentencepiece-style BPE with byte fallback."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from tersor.errors import InvalidArgument
from tersor.models.model import Model

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How text is cut before merging: the steps, and llama.cpp's name for them.
_PRE_TOKENIZERS = {
    ("bytes with words",): "gpt-2",
    ("digits", "bytes with words"): "smollm",
    (_WORDS % r"\p{N}{1,3}", "bytes"): "llama-bpe",
    (_WORDS % r"\p{N}", "bytes"): "qwen2",
}
_SPECIAL = {"bos": "bos_token_id", "eos": "eos_token_id", "unknown": "unk_token_id", "padding": "pad_token_id"}


@dataclass(frozen=True)
class Vocabulary:
    """The ``tokenizer.ggml`` keys of a file.

    Attributes:
        model: ``"gpt2"``, ``"llama"`` or ``"no_vocab"``.
        pre: How text is cut first; ``""`` for sentencepiece-style ones.
        tokens: One a row of the embedding.
        types: The format's token types.
        scores: For ``"llama"``; higher merges first.
        merges: For ``"gpt2"``, each two pieces with a blank between them.
        special: Name in the format to token id.
        flags: ``add_bos_token`` and the like.
        chat_template: Jinja, or ``None``.
    """

    model: str
    pre: str = ""
    tokens: list[str] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    special: dict[str, int] = field(default_factory=dict)
    flags: dict[str, bool] = field(default_factory=dict)
    chat_template: str | None = None


def vocabulary_of(model: Model) -> Vocabulary:
    """The tokenizer of ``model`` for llama.cpp; a file without a vocabulary for a model without a tokenizer.

    Raises:
        InvalidArgument: If llama.cpp has no tokenizer that cuts text the same way.
    """
    if model.tokenizer is None:
        return Vocabulary("no_vocab")
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InvalidArgument(f"the tokenizer {type(model.tokenizer).__name__} is not of the fast kind, which alone can be written to GGUF")
    description = json.loads(backend.to_str())
    bpe = description["model"]
    if bpe["type"] != "BPE":
        raise InvalidArgument(f"a tokenizer of the type {bpe['type']} cannot be written to GGUF; BPE can")
    tokens, types = _tokens(model.tokenizer, bpe["vocab"], model.vocabulary)
    merges = [pair if isinstance(pair, list) else pair.split(" ", 1) for pair in bpe["merges"]]
    byte_level = not bpe.get("byte_fallback")
    special = {key: i for key, name in _SPECIAL.items() if isinstance(i := getattr(model.tokenizer, name, None), int) and i < len(tokens)}
    first, last = _added_around(model.tokenizer)
    flags = {"add_bos_token": first, "add_eos_token": last}
    template = model.tokenizer.chat_template if isinstance(getattr(model.tokenizer, "chat_template", None), str) else None
    if byte_level:
        pre = _pre_tokenizer(description)
        pieces = [f"{left} {right}" for left, right in merges]
        return Vocabulary("gpt2", pre, tokens, types, [], pieces, special, flags, template)
    flags["add_space_prefix"] = _adds_space(description)
    types = [_BYTE if _BYTE_TOKEN.fullmatch(token) and kind == _NORMAL else kind for token, kind in zip(tokens, types, strict=True)]
    if "unknown" in special:
        types[special["unknown"]] = _UNKNOWN
    return Vocabulary("llama", "default", tokens, types, _scores(tokens, merges), [], special, flags, template)


def _tokens(tokenizer: Any, vocab: dict[str, int], size: int) -> tuple[list[str], list[int]]:
    added = tokenizer.added_tokens_decoder
    highest = max([*vocab.values(), *added], default=-1)
    if highest >= size:
        raise InvalidArgument(f"the tokenizer has token ids up to {highest}, the embedding {size} rows; GGUF needs a row for each token")
    tokens, types = [f"[PAD{i}]" for i in range(size)], [_UNUSED] * size
    for token, i in vocab.items():
        tokens[i], types[i] = token, _NORMAL
    for i, token in added.items():
        tokens[i], types[i] = token.content, _CONTROL if token.special else _USER_DEFINED
    return tokens, types


def _scores(tokens: list[str], merges: list[list[str]]) -> list[float]:
    """Sentencepiece merges the neighbours with the highest score first; here the ones that come first in the list of merges."""
    rank: dict[str, int] = {}
    for i, (left, right) in enumerate(merges):
        rank.setdefault(left + right, i)
    # What no merge makes must never be preferred to what one does.
    return [-float(rank.get(token, len(merges))) for token in tokens]


def _pre_tokenizer(description: dict[str, Any]) -> str:
    normalizer = description.get("normalizer")
    if normalizer is not None and normalizer["type"] != "NFC":
        raise InvalidArgument(f"llama.cpp has no byte-level tokenizer with the normaliser {normalizer['type']}; export to another format")
    outer = description.get("pre_tokenizer") or {"type": "nothing"}
    steps = tuple(_step(step) for step in (outer["pretokenizers"] if outer["type"] == "Sequence" else [outer]))
    if (name := _PRE_TOKENIZERS.get(steps)) is None:
        cuts = " then ".join(steps)
        raise InvalidArgument(f"the tokenizer cuts text by {cuts}, for which tersor knows no name in llama.cpp; export to another format")
    return name


def _step(step: dict[str, Any]) -> str:
    if step["type"] == "ByteLevel" and not step.get("add_prefix_space"):
        return "bytes with words" if step.get("use_regex", True) else "bytes"
    if step["type"] == "Digits" and step.get("individual_digits"):
        return "digits"
    if step["type"] == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        return str(step["pattern"].get("Regex", step["pattern"]))
    return f"{step['type']} ({', '.join(f'{key} {value}' for key, value in step.items() if key != 'type')})"


def _adds_space(description: dict[str, Any]) -> bool:
    normalizer = description.get("normalizer") or {}
    pre = description.get("pre_tokenizer") or {}
    parts = normalizer.get("normalizers", [normalizer]) if normalizer else []
    known = {"Prepend", "Replace"}
    if any(part["type"] not in known for part in parts) or (pre and pre["type"] != "Metaspace"):
        raise InvalidArgument("the tokenizer normalises text as llama.cpp's sentencepiece tokenizer does not; export to another format")
    return any(part["type"] == "Prepend" for part in parts) or pre.get("prepend_scheme", "never") != "never"


def _added_around(tokenizer: Any) -> tuple[bool, bool]:
    """Whether the tokenizer puts begin- and end-of-sequence tokens around a text of its own accord."""
    ids = tokenizer("a")["input_ids"]
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    extra = len(ids) - len(plain)
    first = extra > 0 and ids[0] == tokenizer.bos_token_id and ids[1 : 1 + len(plain)] == plain
    last = extra > int(first) and ids[-1] == tokenizer.eos_token_id
    return first, last
