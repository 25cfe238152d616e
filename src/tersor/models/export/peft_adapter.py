"""Low-rank corrections as an adapter for the ``peft`` library, beside the model that they correct."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.models.export.output import staged, write_marker
from tersor.models.model import Model
from tersor.weights import CompressedWeight, LowRankWeight, SumWeight

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def split_corrections(model: Model) -> tuple[Model, dict[str, LowRankWeight]]:
    """The model without its low-rank corrections, and the corrections by layer name.

    A correction is a low-rank last part of a :class:`tersor.weights.SumWeight`, as :func:`tersor.layerwise.eora` makes it.

    Args:
        model: Not changed; the result shares its tensors.
    """
    base, corrections = model.copy(), {}
    for name, weight in model.weights().items():
        if isinstance(weight, SumWeight) and isinstance(last := list(weight)[-1], LowRankWeight):
            rest: list[CompressedWeight] = list(weight)[:-1]
            if rest:
                corrections[name] = last
                base.replace(name, rest[0] if len(rest) == 1 else SumWeight(rest))
    return base, corrections


def export_peft_adapter(model: Model, path: str | Path, base_model: str = "") -> Model:
    """Write the low-rank corrections of ``model`` as a LoRA adapter.

    Export the model that is returned to any format that transformers reads; ``PeftModel.from_pretrained(base, path)`` then computes
    what ``model`` computes, and the corrections can be trained on from there.

    Args:
        model: Some of its layers hold a compressed base plus a low-rank correction.
        path: A folder that does not exist, is empty, or is an earlier export.
        base_model: Where the base model will be found, recorded for ``peft``'s automatic loading.

    Returns:
        The base model without the corrections.

    Raises:
        InvalidArgument: If no layer has a correction, or the folder holds something else.
        TersorError: If the folder cannot be written; nothing is left behind.
    """
    from safetensors.torch import save_file

    base, corrections = split_corrections(model)
    if not corrections:
        raise InvalidArgument("no layer of the model holds a base with a low-rank correction; compress it with the method 'eora' first")
    tensors: dict[str, Tensor] = {}
    for name, correction in corrections.items():
        # The names of peft: A is applied first and has the shape [rank, in_features].
        tensors[f"base_model.model.{name}.lora_A.weight"] = _smallest(correction.right.dense())
        tensors[f"base_model.model.{name}.lora_B.weight"] = _smallest(correction.left.dense())
    config = _config({name: correction.rank for name, correction in corrections.items()}, base_model)
    with staged(Path(path), is_folder=True) as work:
        save_file(tensors, work / WEIGHTS, metadata={"format": "pt"})
        (work / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        write_marker(work, {"format": "peft", "model": model.name, "layers": len(corrections)})
    return base


def _config(ranks: dict[str, int], base_model: str) -> dict[str, Any]:
    usual = max(set(ranks.values()), key=list(ranks.values()).count)
    special = {name: rank for name, rank in ranks.items() if rank != usual}
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_model, "inference_mode": True, "bias": "none",
        # Equal to the rank, so that the product of the factors is added as it is.
        "r": usual, "lora_alpha": usual, "rank_pattern": special, "alpha_pattern": special,
        "target_modules": sorted(ranks), "lora_dropout": 0.0, "init_lora_weights": True,
    }  # fmt: skip


def _smallest(factor: Tensor) -> Tensor:
    half = factor.to(torch.float16)
    return (half if torch.equal(half.to(factor.dtype), factor) else factor).contiguous()
