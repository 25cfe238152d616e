"""From a text, a file or token ids to the windows that are scored, and the refusal of text that a model was fitted to."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.models import Model

Text = str | Path | Tensor | Sequence[str | Tensor]
CONTEXT = 512


@dataclass(frozen=True)
class Windows:
    """Sequences that are scored one by one, each from its second token on.

    Attributes:
        sequences: Token ids, each ``[length]`` with at least two tokens.
        source: What they were cut from, for tables.
        context: Longest allowed sequence.
    """

    sequences: tuple[Tensor, ...]
    source: str
    context: int

    @property
    def scored(self) -> Tensor:
        """Tokens predicted in each sequence, ``[n]``."""
        return torch.tensor([len(sequence) - 1 for sequence in self.sequences])

    @property
    def digest(self) -> str:
        """SHA-256 of tokens and cuts: two measurements are comparable if it is equal."""
        digest = hashlib.sha256()
        for sequence in self.sequences:
            digest.update(len(sequence).to_bytes(8, "little") + sequence.numpy().tobytes())
        return digest.hexdigest()


def make_windows(model: Model, text: Text | None, *, context: int | None = None, max_tokens: int | None = None) -> Windows:
    """Cut ``text`` into windows for ``model``.

    A running text or a row of tokens is cut into windows of ``context`` tokens that do not overlap; what is left over is
    dropped. Separate documents, and rows of a matrix, are windows of their own, cut off after ``context`` tokens.

    Args:
        model: Its tokenizer and limits are used.
        text: A name or file known to :func:`tersor.data.text`, the text itself (anything with blanks that is no file), token
            ids ``[n]`` or ``[n_windows, length]``, or a list of documents. ``None`` is the Python language reference.
        context: Window length. Without it, that of the matrix; for anything else 512 or the model's limit, whichever is shorter.
        max_tokens: Use at most so many tokens, but at least one window.

    Raises:
        InvalidArgument: If the context exceeds the model, ids are not in its vocabulary, or there is not one whole window.
    """
    length = context
    if length is None:
        length = text.shape[1] if isinstance(text, Tensor) and text.ndim == 2 else min(CONTEXT, model.max_context)
    if not 2 <= length <= model.max_context:
        raise InvalidArgument(f"context must be from 2 to the {model.max_context} tokens that {model.name} takes, got {length}")
    if max_tokens is not None and max_tokens < 2:
        raise InvalidArgument(f"max_tokens must be at least 2, got {max_tokens}")
    source, documents = describe(text), None
    if isinstance(text, Tensor):
        documents = list(_ids(text)) if text.ndim == 2 else None
        running = _ids(text) if text.ndim == 1 else None
        if documents is None and running is None:
            raise InvalidArgument(f"token ids must be [n] or [n_windows, length], got shape {tuple(text.shape)}")
    elif text is None or isinstance(text, (str, Path)):
        running = model.encode(read(text))
    else:
        documents = [model.encode(part) if isinstance(part, str) else _ids(part) for part in text]
        running = None
    sequences = _cut(running, length, source) if running is not None else _documents(documents or [], length, source)
    chosen = _up_to(sequences, max_tokens)
    _check_vocabulary(model, chosen)
    return Windows(tuple(chosen), source, length)


def read(text: str | Path | None) -> str:
    """The text that ``text`` is or names; see :func:`make_windows`."""
    from tersor import data

    if text is None:
        return data.text(data.PYTHON_DOCS)
    if isinstance(text, str) and not _is_name(text):
        return text
    return data.text(text)


def describe(text: Text | None) -> str:
    """What to call ``text`` in a table."""
    from tersor import data

    if text is None:
        return data.PYTHON_DOCS
    if isinstance(text, Path) or (isinstance(text, str) and _is_name(text)):
        return str(text)
    return "given text" if isinstance(text, str) else "given tokens" if isinstance(text, Tensor) else f"{len(text)} documents"


def check_overlap(model: Model, windows: Windows, text: Text | None, calibration: Text) -> None:
    """Refuse to measure on what the model was fitted to.

    Args:
        model: Its tokenizer makes tokens comparable with text.
        windows: What is to be scored, cut from ``text``.
        text: The evaluation text, compared whole where it is a text.
        calibration: What the model was fitted to, in any form that :func:`make_windows` takes.

    Raises:
        InvalidArgument: If the two are the same or share a passage.
    """
    from tersor import data

    by_text = model.tokenizer is not None
    evaluation = read(text) if text is None or isinstance(text, (str, Path)) else _joined(model, windows.sequences, by_text)
    if isinstance(calibration, (str, Path)):
        fitted = read(calibration)
    else:
        rows = calibration[None] if isinstance(calibration, Tensor) and calibration.ndim == 1 else calibration
        parts = [model.encode(part) if isinstance(part, str) else _ids(part) for part in rows]
        fitted = _joined(model, parts, by_text)
    try:
        data.check_disjoint({"calibration": fitted, "evaluation": evaluation})
    except InvalidArgument as error:
        raise InvalidArgument(f"{error}; allow_overlap=True measures all the same") from None


def _is_name(text: str) -> bool:
    if "\n" in text or len(text) > 1024:
        return False
    try:
        return Path(text).expanduser().is_file() or not any(map(str.isspace, text))
    except (OSError, ValueError):
        return False


def _joined(model: Model, sequences: Sequence[Tensor], by_text: bool) -> str:
    # In one piece: windows that follow each other in a text are that text again, however short they are.
    tokens = torch.cat(list(sequences)).tolist() if sequences else []
    return str(model.tokenizer.decode(tokens, skip_special_tokens=True)) if by_text else " ".join(map(str, tokens))  # type: ignore[union-attr]


def _ids(tokens: Tensor) -> Tensor:
    if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise InvalidArgument("token ids must be an integer tensor")
    return tokens.detach().cpu().long()


def _cut(tokens: Tensor, length: int, source: str) -> list[Tensor]:
    from tersor import data

    if tokens.shape[0] < length:
        raise InvalidArgument(
            f"the evaluation needs at least one window of {length} tokens but {source} has {tokens.shape[0]}; "
            "give more text or a shorter context"
        )
    return list(data.windows(tokens, length))


def _documents(documents: list[Tensor], length: int, source: str) -> list[Tensor]:
    kept = [document[:length] for document in documents if document.ndim == 1 and len(document) >= 2]
    if not kept:
        raise InvalidArgument(f"the evaluation needs at least one document of 2 tokens but {source} hold none")
    return kept


def _up_to(sequences: list[Tensor], max_tokens: int | None) -> list[Tensor]:
    if max_tokens is None:
        return sequences
    chosen, total = sequences[:1], len(sequences[0])
    for sequence in sequences[1:]:
        total += len(sequence)
        if total > max_tokens:
            break
        chosen.append(sequence)
    return chosen


def _check_vocabulary(model: Model, sequences: list[Tensor]) -> None:
    lowest, highest = (int(pick(pick(sequence) for sequence in sequences)) for pick in (min, max))
    if lowest < 0 or highest >= model.vocabulary:
        raise InvalidArgument(
            f"token ids run from {lowest} to {highest}, but {model.name} knows 0 to {model.vocabulary - 1}; use its own tokenizer"
        )
