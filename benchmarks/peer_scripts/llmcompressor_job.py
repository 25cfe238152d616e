"""The same job in llm-compressor, one process: load a dense folder, calibrate on given tokens, compress, save. ``SCRIPT REQUEST``.

Runs in the peer's environment; imports nothing of ours.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path

# A pattern: SparseGPT's modifier knows a targeted layer as "lm_head." and would not find it under its plain name.
HEAD = ["re:.*lm_head.*"]


def recipe(method: str, options: dict) -> list:
    """The peer's modifiers for one of our methods with our options."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.pruning import SparseGPTModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    if method == "sparsegpt":
        structure = f"{options['keep_n']}:{options['of_m']}"
        return [
            SparseGPTModifier(sparsity=0.5, mask_structure=structure, targets=["Linear"], ignore=HEAD, block_size=128, dampening_frac=0.01)
        ]
    weights = {
        "num_bits": options["bits"], "type": "int", "strategy": "group", "group_size": options["group_size"],
        "symmetric": options["scheme"] == "symmetric",
    }  # fmt: skip
    if method == "gptq":
        groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
        actorder = "static" if options.get("act_order") else None
        return [GPTQModifier(config_groups=groups, ignore=HEAD, actorder=actorder, block_size=128, dampening_frac=0.01)]
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    _without_pinning()
    return [AWQModifier(duo_scaling=False), QuantizationModifier(config_groups=groups, ignore=HEAD)]


def _without_pinning() -> None:
    """AWQ of release 0.14 pins host memory and so fails on a machine without an accelerator; here nothing is pinned."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.accelerator.is_available():
        IntermediatesCache.pin_memory = lambda self, batch_index, input_names=None: None


def main(request: dict) -> dict:
    """Run the job and save it in the peer's own compressed format; returns seconds of each phase and versions."""
    moments = [time.perf_counter()]
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    moments.append(time.perf_counter())
    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=getattr(torch, request["dtype"]))
    moments.append(time.perf_counter())
    tokens = load_file(request["tokens"])["calibration"]
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in tokens.tolist()]
    oneshot(
        model=model,
        dataset=Dataset.from_list(rows),
        recipe=recipe(request["method"], request["options"]),
        batch_size=request["batch_size"],
        num_calibration_samples=len(rows),
        max_seq_length=tokens.shape[1],
        shuffle_calibration_samples=False,
        pipeline="sequential",
    )
    model.save_pretrained(request["output"], save_compressed=request["method"] != "sparsegpt")
    moments.append(time.perf_counter())
    imports, loading, work = (later - earlier for earlier, later in itertools.pairwise(moments))
    return {"import_seconds": imports, "load_seconds": loading, "work_seconds": work, "versions": versions()}


def versions() -> dict:
    """What the peer consists of."""
    from importlib.metadata import version

    return {name: version(name) for name in ("llmcompressor", "compressed-tensors", "torch", "transformers")}


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(asked["reply"]).write_text(json.dumps(main(asked)), encoding="utf-8")
