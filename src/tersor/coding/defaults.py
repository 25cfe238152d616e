"""The small default of each trained codec: trained once, on first use, and kept for all later ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tersor.coding.training import TrainedCodec

VARIABLE = "TERSOR_CACHE"


def default_folder(name: str) -> Path:
    """Where the default codec ``name`` is kept: under ``$TERSOR_CACHE``, or the user's cache directory without it."""
    root = os.environ.get(VARIABLE) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tersor"
    return Path(root) / "codecs" / name


def default_codec(name: str, progress: Callable[[int, int, float], object] | None = None) -> TrainedCodec:
    """The default codec ``name``, trained first if it is not there yet: some minutes of one core, resumed where it was stopped.

    A file can be decoded only with the very codec that wrote it. Give the folder of :func:`default_folder` along with files that others
    are to decode, or train a codec of your own by :func:`tersor.coding.training.train_codec`.

    Args:
        name: Key of :data:`tersor.coding.training.TRAINABLE`.
        progress: Called with steps done, steps in all and the loss, if it is trained.

    Raises:
        InvalidArgument: If there is no such codec, or nothing to train it on.
        TersorError: If the folder cannot be written.
    """
    from tersor.coding.training import find_trainable, is_codec, load_codec, train_codec

    find_trainable(name)
    folder = default_folder(name)
    if not is_codec(folder):
        train_codec(name, folder, progress=progress)
    return load_codec(folder)


def kept_codec(name: str, fingerprint: object) -> TrainedCodec | None:
    """The default codec ``name`` if it has been trained here and is the one whose fingerprint begins so; never trains."""
    from tersor.coding.training import is_codec, load_codec

    folder = default_folder(name)
    if not isinstance(fingerprint, str) or not fingerprint or not is_codec(folder):
        return None
    codec = load_codec(folder)
    return codec if codec.fingerprint.startswith(fingerprint) else None
