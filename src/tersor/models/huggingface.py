"""Models from Hugging Face folders: safetensors only, checked before they are read, quiet while they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tersor.errors import CorruptFile, InvalidArgument
from tersor.models.model import Model
from tersor.models.tensorfile import read_header

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Tried in this order when a configuration does not name its class.
_AUTO_MAPPINGS = ("MODEL_FOR_CAUSAL_LM_MAPPING", "MODEL_FOR_MASKED_LM_MAPPING", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING", "MODEL_MAPPING")


def load_folder(path: Path, name: str | None = None) -> Model:
    """A model from a folder with ``config.json`` and ``*.safetensors``, in float32.

    Args:
        path: The folder.
        name: What reports call it; the folder's name without it.

    Raises:
        CorruptFile: If a tensor file is truncated or lacks tensors, or a weight is not finite.
        InvalidArgument: If the weights are pickled or already quantised, or the architecture is unknown.
    """
    check_weight_files(path)
    config = read_config(path)
    if getattr(config, "quantization_config", None) is not None:
        method = config.quantization_config.get("quant_method", "an unknown method")
        raise InvalidArgument(f"{path} is already quantised by {method}; load the original weights, or the file that tersor saved")
    cls = model_class(config)
    with quiet_transformers():
        try:
            module, report = cls.from_pretrained(
                path, config=config, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True,
            )  # fmt: skip
        except (RuntimeError, ValueError, OSError, KeyError) as error:
            raise CorruptFile(f"{path} cannot be loaded as {cls.__name__}: {first_line(error)}") from None
    if missing := report["missing_keys"]:
        raise CorruptFile(f"{path} lacks {len(missing)} tensors of {cls.__name__}, the first is {min(missing)}")
    check_finite(module, str(path))
    return Model(module, load_tokenizer(path), name or path.resolve().name)


def check_weight_files(path: Path) -> None:
    """Refuse a folder without weights, with pickled ones only, or with tensor files that contradict their headers."""
    files = sorted(path.glob("*.safetensors"))
    if not files:
        pickles = [file.name for file in path.iterdir() if file.suffix in _PICKLES]
        if pickles:
            raise InvalidArgument(f"{path} holds pickled weights only ({pickles[0]}), which can run code; convert them to safetensors")
        raise InvalidArgument(f"{path} has no *.safetensors file with weights")
    index = path / "model.safetensors.index.json"
    if index.is_file() and not (path / "model.safetensors").is_file():
        try:
            named = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError):
            raise CorruptFile(f"{index} is damaged; fetch it again") from None
        if missing := sorted(name for name in named if not (path / name).is_file()):
            raise CorruptFile(f"{path} lacks {missing[0]}, which its index names")
    for file in files:
        read_header(file)


def read_config(path: Path) -> Any:
    """The transformers configuration in a folder.

    Raises:
        InvalidArgument: If transformers does not know the architecture.
        CorruptFile: If the file is not a configuration.
    """
    from transformers import AutoConfig

    try:
        content = json.loads((path / "config.json").read_text())
        model_type = content["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise CorruptFile(f"{path / 'config.json'} is not a model configuration: it must be JSON with a model_type") from None
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        if "does not recognize this architecture" in str(error) or "contains custom code" in str(error):
            raise InvalidArgument(f"{path} is of the architecture {model_type!r}, which the installed transformers does not know") from None
        raise CorruptFile(f"{path / 'config.json'} is not a valid {model_type} configuration: {first_line(error)}") from None


def model_class(config: Any, name: str | None = None) -> Any:
    """The transformers class for a configuration: ``name``, else what the configuration names, else its language model.

    Raises:
        InvalidArgument: If there is none.
    """
    import transformers
    from transformers import PreTrainedModel

    for candidate in (name, *(getattr(config, "architectures", None) or ())):
        found = getattr(transformers, candidate, None) if isinstance(candidate, str) else None
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            return found
    for mapping in _AUTO_MAPPINGS:
        try:
            return getattr(transformers, mapping)[type(config)]
        except KeyError:
            continue
    raise InvalidArgument(f"transformers has no language model or encoder for the configuration {type(config).__name__}")


def skeleton(config: Any, name: str | None = None) -> Any:
    """The module that a configuration describes, on the meta device.

    Args:
        config: A transformers configuration.
        name: See :func:`model_class`.

    Raises:
        InvalidArgument: If transformers has no class for it.
        CorruptFile: If the class cannot be built from it.
    """
    cls = model_class(config, name)
    try:
        with quiet_transformers(), torch.device("meta"):
            return cls(config)
    except Exception as error:
        raise CorruptFile(f"the configuration does not describe a {cls.__name__}: {first_line(error)}") from None


def load_tokenizer(path: Path) -> Any | None:
    """The tokenizer in a folder, or ``None`` if the folder has no file of one.

    Raises:
        CorruptFile: If its files are there but cannot be read.
    """
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
    if not any((path / name).is_file() for name in names):
        return None
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise CorruptFile(f"the tokenizer in {path} cannot be read: {first_line(error)}") from None


def check_finite(module: nn.Module, source: str) -> None:
    """Refuse a model with NaN or Inf in a stored tensor, by name."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise CorruptFile(f"{source}: tensor {name} of shape {list(tensor.shape)} holds {bad} NaN or Inf values")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no advice from transformers inside; its settings are put back afterwards."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def first_line(error: Exception) -> str:
    """The first line of an error of another library, shortened, for use inside a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
