"""Writing without half-written files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tersor.errors import TersorError


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` holds either its old or its whole new content, whenever the process dies.

    Raises:
        TersorError: If the disk is full or the folder cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise TersorError(f"cannot write {path}: {error.strerror}") from None


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` as indented JSON, atomically."""
    write_atomically(path, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())
