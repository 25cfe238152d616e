"""What the trainings of language models share: windows of a text, some of them held out, and a place for the unfinished state."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from tersor import data
from tersor.errors import InvalidArgument
from tersor.models import Model

# Windows that are measured or choose a step, and are never trained on.
HELD_OUT = 16


def training_windows(model: Model, text: str, context: int, what: str) -> tuple[Tensor, Tensor]:
    """Windows ``[n, context]`` of ``text`` to train on, and its last ones, held out.

    Args:
        model: Gives the tokens.
        text: A file or a known name.
        context: Tokens of a window.
        what: Needs the text, for the message.

    Raises:
        InvalidArgument: If the text is too short.
    """
    tokens = model.encode(data.text(text))
    windows = data.windows(tokens, context)
    if windows.shape[0] < 2 * HELD_OUT:
        needed = 2 * HELD_OUT * context
        raise InvalidArgument(f"the text {text} has {tokens.numel()} tokens; {what} needs {needed}: give more text or a shorter context")
    return windows[:-HELD_OUT], windows[-HELD_OUT:]


def state_beside(target: Path, what: str) -> Path:
    """Where the state of an unfinished ``what`` is kept, beside the folder ``target``."""
    state = target.absolute().with_name(f".{target.name}.{what}.safetensors")
    state.parent.mkdir(parents=True, exist_ok=True)
    return state
