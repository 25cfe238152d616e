"""Outputs that are there whole or not at all, and that never take the place of somebody else's files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tersor.errors import CorruptFile, InvalidArgument, TersorError

MARKER = "tersor_export.json"
GGUF_MARK = "tersor.version"


def check_output(target: Path, is_folder: bool) -> None:
    """Refuse a target that an export must not replace.

    Raises:
        InvalidArgument: If something is there that an earlier export did not write.
    """
    if not target.exists() and not target.is_symlink():
        return
    if is_folder:
        ours = target.is_dir() and ((target / MARKER).is_file() or not any(target.iterdir()))
        mend = "name a new folder or empty it"
    else:
        ours = target.is_file() and _is_own_gguf(target)
        mend = "name a new file or remove it"
    if not ours:
        raise InvalidArgument(f"{target} exists and was not written by tersor export; {mend}")


@contextmanager
def staged(target: Path, is_folder: bool) -> Iterator[Path]:
    """A place beside ``target`` to write to; it becomes ``target`` if the body ends without an error and vanishes otherwise.

    Raises:
        InvalidArgument: As :func:`check_output`.
        TersorError: If the disk is full or the place cannot be written.
    """
    check_output(target, is_folder)
    work = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if is_folder:
            work.mkdir()
        else:
            work.touch(exist_ok=False)
        yield work
        _flush(work)
        _put(work, target)
    except OSError as error:
        raise TersorError(f"cannot write {target}: {error.strerror or error}; nothing was left behind") from None
    finally:
        _remove(work)


def write_marker(folder: Path, content: dict[str, Any]) -> None:
    """The file that says that a folder is an export, and what is in it."""
    (folder / MARKER).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _is_own_gguf(path: Path) -> bool:
    from tersor.models.gguf_reader import read_gguf

    try:
        return GGUF_MARK in read_gguf(path).metadata
    except (CorruptFile, InvalidArgument):
        return False


def _flush(work: Path) -> None:
    for path in [work] if work.is_file() else [path for path in work.rglob("*") if path.is_file()]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _put(work: Path, target: Path) -> None:
    if not target.is_dir():
        work.replace(target)
        return
    aside = target.with_name(f".{target.name}.{os.getpid()}.old")
    target.replace(aside)
    work.replace(target)
    shutil.rmtree(aside, ignore_errors=True)


def _remove(work: Path) -> None:
    if work.is_dir():
        shutil.rmtree(work, ignore_errors=True)
    else:
        with suppress(OSError):
            work.unlink()
