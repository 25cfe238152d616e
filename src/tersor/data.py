"""Where texts come from, how they are cut, and that no text is used for two purposes."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tersor.errors import CorruptFile, InvalidArgument

if TYPE_CHECKING:
    from tersor.models.model import Model

PYTHON_DOCS = "python-docs"
# Tried in this order behind a bare name: rows first, because joining them is the protocol that published perplexities use.
_SUFFIXES = ("", ".rows.jsonl", ".jsonl", ".txt", ".raw")
_DECOMPRESSORS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".bz2": bz2.decompress}
_COMMON = 512  # bytes; a shared passage twice as long is always found, one shorter than this never
_MIN_DISTINCT = 12  # different bytes in a passage; rulers and runs of blanks are not evidence
_CHUNK = 1 << 20
_RADIX = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64


def text(source: str | Path) -> str:
    """A text by path or by name.

    Names are looked up in this order: a path; ``"python-docs"``, the language reference that ships with Python and is
    therefore always there; the folder ``$TERSOR_DATA/text``. A ``.jsonl`` file holds one ``{"text": ...}`` a line, and its
    rows are joined by blank lines, ``"\\n\\n".join(rows)``, the protocol of published WikiText perplexities.

    Args:
        source: A path to a plain, ``.jsonl``, ``.gz`` or ``.bz2`` file, or a name such as ``"wikitext2.valid"``.

    Raises:
        InvalidArgument: If there is no such text (the names that exist are listed) or it is empty.
        CorruptFile: If the file is not UTF-8 text, or its rows are damaged.
    """
    found = _find(source)
    content = _python_docs() if found is None else _read(found)
    if not content.strip():
        raise InvalidArgument(f"the text {source} is empty")
    return content


def folder(name: str) -> Path:
    """The folder ``$TERSOR_DATA/name`` of real data that is not text: images, click logs, meshes.

    Raises:
        InvalidArgument: If ``TERSOR_DATA`` is not set or has no such folder.
    """
    data = os.environ.get("TERSOR_DATA")
    if not data:
        raise InvalidArgument(f"the data {name!r} is looked up in the folder that TERSOR_DATA names; set it")
    path = Path(data) / name
    if not path.is_dir():
        raise InvalidArgument(f"there is no folder {path}; TERSOR_DATA must name the folder that holds {name!r}")
    return path


def windows(tokens: Tensor, length: int) -> Tensor:
    """Cut ``tokens`` ``[n]`` into windows ``[n // length, length]`` that do not overlap; what is left over is dropped.

    Raises:
        InvalidArgument: If there is not one whole window.
    """
    if tokens.ndim != 1 or length < 1:
        raise InvalidArgument(f"windows need a row of tokens and a positive length, got shape {tuple(tokens.shape)} and length {length}")
    count = tokens.shape[0] // length
    if count == 0:
        raise InvalidArgument(f"a text of {tokens.shape[0]} tokens has no window of {length}; give more text or a shorter context")
    return tokens[: count * length].reshape(count, length)


def sample_text(
    model: Model, n_tokens: int, seed: int, length: int | None = None, *, temperature: float = 1.0, batch_size: int = 64,
) -> Tensor:  # fmt: skip
    """Calibration sequences that the model writes itself: no data needed, and none that it has not seen.

    Every sequence begins with the token that the tokenizer puts in front of a text, or, where there is none, with a token drawn
    uniformly from the ordinary ones, and continues by sampling at ``temperature``; an end of text is written over, not stopped at.

    Args:
        model: A decoder.
        n_tokens: Tokens wanted at least; rounded up to whole sequences.
        seed: The same seed gives the same tokens on the same machine; sampling follows rounding, so another CPU may differ.
        length: Tokens of a sequence, the first included; 512 or the model's context, whichever is shorter, without it.
        temperature: Above 0; 1 samples from the model's own distribution.
        batch_size: Sequences written at once.

    Returns:
        int64 ``[ceil(n_tokens / length), length]``.

    Raises:
        InvalidArgument: If the model cannot write, or an argument is out of range.

    Reference:
        Liu et al., LLM-QAT: data-free quantization aware training for large language models (2023).
    """
    from tersor.models.generation import sample_tokens

    length = min(512, model.max_context) if length is None else length
    if n_tokens < 1 or length < 2 or batch_size < 1 or temperature <= 0:
        raise InvalidArgument(
            "sampling needs at least 1 token, sequences of 2, a batch of 1 and a positive temperature; "
            f"got {n_tokens}, {length}, {batch_size} and {temperature}"
        )
    generator = torch.Generator().manual_seed(seed)
    count = -(-n_tokens // length)
    parts = []
    for begin in range(0, count, batch_size):
        start = _first_tokens(model, min(batch_size, count - begin), generator)
        columns = sample_tokens(model, start, length - 1, temperature=temperature, generator=generator)
        parts.append(torch.cat([start, *(column[:, None] for column in columns)], 1))
    return torch.cat(parts)


def check_disjoint(texts: Mapping[str, str]) -> None:
    """Refuse texts that share passages: numbers measured on what a model was fitted to mean nothing.

    Args:
        texts: What each text is for, and the text. Passages of 1024 bytes in common are always found, shorter than 512 never.

    Raises:
        InvalidArgument: If two are equal or share a passage, which is quoted.
    """
    contents = {name: content.encode() for name, content in texts.items()}
    hashes = {name: hashlib.sha256(content.strip()).digest() for name, content in contents.items()}
    for first, second in combinations(contents, 2):
        if hashes[first] == hashes[second]:
            raise InvalidArgument(f"the {first} text and the {second} text are the same; name another for one of them")
        passage = _common_passage(contents[first], contents[second])
        if passage is not None:
            quote = passage.decode("utf-8", "replace").strip()[:60]
            raise InvalidArgument(f"the {first} text and the {second} text share a passage ({quote!r}...); name another for one of them")


def _find(source: str | Path) -> Path | None:
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if str(source) == PYTHON_DOCS:
        return None
    data = os.environ.get("TERSOR_DATA")
    folder = Path(data) / "text" if data else None
    if folder is not None and ".." not in path.parts and not path.is_absolute():
        for suffix in _SUFFIXES:
            if (candidate := folder / f"{source}{suffix}").is_file():
                return candidate
    names = [PYTHON_DOCS, *(sorted(file.name for file in folder.iterdir()) if folder is not None and folder.is_dir() else [])]
    place = f"in {folder}" if folder is not None else "because TERSOR_DATA is not set"
    raise InvalidArgument(f"no text {str(source)!r}: there is no such file and no such name {place}; the names are {', '.join(names)}")


def _read(path: Path) -> str:
    decompress = _DECOMPRESSORS.get(path.suffix, bytes)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InvalidArgument(f"cannot read {path}: {error.strerror or error}") from None
    try:
        content = decompress(raw).decode("utf-8")
        rows = ".jsonl" in path.suffixes
        return "\n\n".join(json.loads(line)["text"] for line in content.split("\n") if line.strip()) if rows else content
    except (UnicodeDecodeError, EOFError, OSError, zlib.error) as error:
        raise CorruptFile(f"{path} is not UTF-8 text: {error}") from None
    except (ValueError, KeyError, TypeError):
        raise CorruptFile(f'{path} must hold one {{"text": ...}} object a line') from None


def _python_docs() -> str:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def _first_tokens(model: Model, count: int, generator: torch.Generator) -> Tensor:
    prefix = model.encode("") if model.tokenizer is not None else torch.empty(0, dtype=torch.long)
    if prefix.numel():
        return prefix[:1].repeat(count, 1)
    special = set(model.tokenizer.all_special_ids) if model.tokenizer is not None else set()
    ordinary = torch.tensor([token for token in range(model.vocabulary) if token not in special])
    return ordinary[torch.randint(len(ordinary), (count, 1), generator=generator)]


def _common_passage(first: bytes, second: bytes) -> bytes | None:
    """A block of ``first`` that ``second`` holds at any offset."""
    if min(len(first), len(second)) < _COMMON:
        return None
    starts = np.arange(0, len(first) - _COMMON + 1, _COMMON)
    blocks: dict[int, int] = {}
    for chunk_start, hashes in _rolling_hashes(first):
        inside = starts[(starts >= chunk_start) & (starts < chunk_start + len(hashes))]
        blocks.update(zip(hashes[inside - chunk_start].tolist(), inside.tolist(), strict=True))
    known = np.array(sorted(blocks), dtype=np.uint64)
    for chunk_start, hashes in _rolling_hashes(second):
        nearest = known[np.minimum(np.searchsorted(known, hashes), len(known) - 1)]
        for offset in np.flatnonzero(nearest == hashes):
            place = blocks[int(hashes[offset])]
            passage = first[place : place + _COMMON]
            if second[chunk_start + offset : chunk_start + offset + _COMMON] == passage and len(set(passage)) >= _MIN_DISTINCT:
                return passage
    return None


def _rolling_hashes(content: bytes) -> Iterator[tuple[int, np.ndarray]]:
    """Hashes of every window of ``_COMMON`` bytes, chunk by chunk with the position of the chunk's first window."""
    powers = np.cumprod(np.full(_CHUNK + _COMMON, _RADIX, dtype=np.uint64))
    inverse = np.cumprod(np.full(_CHUNK + _COMMON, np.uint64(pow(int(_RADIX), -1, 1 << 64)), dtype=np.uint64))
    for start in range(0, len(content) - _COMMON + 1, _CHUNK):
        values = np.frombuffer(content[start : start + _CHUNK + _COMMON - 1], dtype=np.uint8).astype(np.uint64) + np.uint64(1)
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values * powers[: len(values)], dtype=np.uint64)])
        count = len(values) - _COMMON + 1
        yield start, (sums[_COMMON:] - sums[:count]) * inverse[:count]
