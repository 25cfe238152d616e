"""Cutting bytes into chunks of tokens that a tokenizer gives back exactly, and chunks of bytes where it does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# Characters given to the tokenizer for each token of a chunk: more than any text needs on average.
_CHARACTERS = 6
# Tokens that may be left off at the end of a chunk to end it between two characters.
_PATIENCE = 8
# Islands of text between bytes that are not UTF-8 are worth a chunk of their own from here on.
_ISLAND = 256


@dataclass(frozen=True)
class Chunk:
    """A part of the message: tokens that decode to exactly ``content``, or none for a part that is coded as bytes."""

    content: bytes
    tokens: tuple[int, ...] = ()


def cut(data: bytes, tokenizer: Any, length: int) -> list[Chunk]:
    """Chunks of at most ``length`` tokens whose contents joined are ``data``.

    Whatever the tokenizer would not give back (bytes that are not UTF-8, texts that it normalises, names of special tokens) becomes a
    chunk of bytes; neighbours of that kind are joined.
    """
    special = set(tokenizer.all_special_ids)
    chunks: list[Chunk] = []
    for content, is_text in _spans(data):
        found = _cut_text(content.decode(), tokenizer, length, special) if is_text else [Chunk(content)]
        for chunk in found:
            if chunks and not chunk.tokens and not chunks[-1].tokens:
                chunks[-1] = Chunk(chunks[-1].content + chunk.content)
            else:
                chunks.append(chunk)
    return chunks


def _spans(data: bytes) -> Iterator[tuple[bytes, bool]]:
    """Parts that are UTF-8 and parts that are not."""
    position = 0
    while position < len(data):
        try:
            data[position:].decode()
            valid, after = len(data), len(data)
        except UnicodeDecodeError as error:
            valid, after = position + error.start, position + error.end
        if valid - position >= _ISLAND or (valid == len(data) and valid > position):
            yield data[position:valid], True
            position = valid
        if after > position:
            # Bytes up to the next long run of text: short islands between two errors are not looked at one by one.
            end = max(after, min(position + _ISLAND, len(data)))
            while end < len(data) and data[end] & 0xC0 == 0x80:
                end += 1
            yield data[position:end], False
            position = end


def _cut_text(text: str, tokenizer: Any, length: int, special: set[int]) -> Iterator[Chunk]:
    position = 0
    while position < len(text):
        window = text[position : position + _CHARACTERS * length]
        ids = tokenizer(window, add_special_tokens=False)["input_ids"][:length]
        taken = _exact_prefix(window, ids, tokenizer) if not special & set(ids) else 0
        if taken:
            content = decode_tokens(tokenizer, ids[:taken])
            yield Chunk(content.encode(), tuple(ids[:taken]))
            position += len(content)
        else:
            yield Chunk(window[:length].encode())
            position += len(window[:length])


def _exact_prefix(window: str, ids: list[int], tokenizer: Any) -> int:
    """How many of ``ids`` decode to the beginning of ``window``."""
    for count in range(len(ids), max(len(ids) - _PATIENCE, 0), -1):
        content = decode_tokens(tokenizer, ids[:count])
        if content and window.startswith(content):
            return count
    return 0


def decode_tokens(tokenizer: Any, ids: list[int] | tuple[int, ...]) -> str:
    """The text of ``ids``, nothing cleaned up."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
