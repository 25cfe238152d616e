"""One file that a training goes on from: tensors, facts and what job they belong to, in safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor

from tersor.errors import CorruptFile, InvalidArgument
from tersor.files import write_atomically


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], identity: Mapping[str, Any] | None = None) -> None:
    """Replace ``path`` in one move, so that a kill at any moment leaves a whole file.

    Args:
        path: File to write.
        tensors: What the next step depends on.
        facts: Plain JSON values.
        identity: Plain JSON values that name the job; none where something beside the file does.
    """
    from safetensors.torch import save

    metadata = {"facts": json.dumps(facts), "identity": json.dumps(identity or {}, sort_keys=True, default=str)}
    write_atomically(path, save({key: tensor.detach().contiguous() for key, tensor in tensors.items()}, metadata))


def read(path: Path, identity: Mapping[str, Any] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and facts of ``path``, or ``None`` if there is no such file.

    Raises:
        CorruptFile: If it is damaged.
        InvalidArgument: If it belongs to another job; the message names what differs.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            facts, known = json.loads(metadata["facts"]), json.loads(metadata["identity"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise CorruptFile(f"the checkpoint {path} cannot be read ({error}); take an earlier one, or delete it to start again") from None
    wanted = json.loads(json.dumps(identity or {}, sort_keys=True, default=str))
    if known != wanted:
        differing = ", ".join(sorted(key for key in known.keys() | wanted.keys() if known.get(key) != wanted.get(key)))
        raise InvalidArgument(f"the checkpoint {path} is of another job (other {differing}); delete it or name another file")
    return tensors, facts


def tokens(windows: Tensor) -> dict[str, str]:
    """What tells one set of windows from another."""
    return {"windows": sha256(windows.contiguous().numpy().tobytes()).hexdigest()}
