"""auto-round, hqq or quanto on a dense folder, one process; writes the matrices that its linear layers stand for. ``SCRIPT REQUEST``.

Runs in the peers' environment; imports nothing of ours.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def linear_layers(model) -> dict:
    """The linear layers of the blocks by name; the head stays dense, as in every other row."""
    import torch

    return {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear) and not name.startswith("lm_head")}


def hqq(model, options: dict, tokens) -> tuple[dict, float]:
    """Half-quadratic quantisation, data-free; scale and zero point rounded to the half precision that they are counted in."""
    from hqq.core.quantize import Quantizer

    dense, bits = {}, 0
    for name, layer in linear_layers(model).items():
        codes, meta = Quantizer.quantize(
            layer.weight.data, nbits=options["bits"], group_size=options["group_size"], optimize=True, round_zero=options["bits"] == 4,
            axis=1, bitpack=False, device="cpu",
        )  # fmt: skip
        scale, zero = meta["scale"].half().float(), meta["zero"].half().float()
        dense[name] = ((codes.float() - zero) * scale).reshape(layer.weight.shape)
        bits += options["bits"] * codes.numel() + 32 * scale.numel()
    return dense, bits / 8


def quanto(model, options: dict, tokens) -> tuple[dict, float]:
    """quanto's affine quantisation with group sizes of its own choice: 96 or 128."""
    from optimum.quanto import HqqOptimizer, MaxOptimizer, freeze, qint2, qint4, quantize

    optimizer = HqqOptimizer() if options["optimizer"] == "hqq" else MaxOptimizer()
    quantize(model, weights={2: qint2, 4: qint4}[options["bits"]], exclude=["lm_head"], optimizer=optimizer)
    freeze(model)
    dense, bits = {}, 0
    for name, layer in model.named_modules():
        weight = getattr(layer, "weight", None)
        if hasattr(weight, "dequantize") and hasattr(weight, "_scale"):
            dense[name] = weight.dequantize().float()
            bits += options["bits"] * dense[name].numel() + 32 * weight._scale.numel()
    return dense, bits / 8


def auto_round(model, options: dict, tokens) -> tuple[dict, float]:
    """Rounding learnt by signed gradients on the given windows."""
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    rows = [{"input_ids": row[None], "attention_mask": row[None] * 0 + 1} for row in tokens]
    rounder = AutoRound(
        model, AutoTokenizer.from_pretrained(options["tokenizer"]), bits=options["bits"], group_size=options["group_size"], sym=False,
        iters=options["iterations"], nsamples=len(rows), seqlen=tokens.shape[1], batch_size=8, dataset=rows, device_map="cpu",
        low_cpu_mem_usage=False, **({"lr": 5e-3} if 0 < options["iterations"] <= 50 else {}),
    )  # fmt: skip
    rounded = rounder.quantize()
    rounded = rounded[0] if isinstance(rounded, tuple) else rounded
    dense = {name: layer.weight.data.float() for name, layer in linear_layers(rounded).items()}
    numel = sum(matrix.numel() for matrix in dense.values())
    return dense, numel * (options["bits"] + (16 + options["bits"]) / options["group_size"]) / 8


def main(request: dict) -> dict:
    """Quantise, write ``target``, return seconds of the work, bytes of the quantised layers and versions."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.float32).eval()
    tokens = load_file(request["tokens"])["calibration"]
    began = time.perf_counter()
    dense, nbytes = {"hqq": hqq, "quanto": quanto, "auto-round": auto_round}[request["tool"]](model, request["options"], tokens)
    seconds = time.perf_counter() - began
    save_file({f"{name}.weight": matrix.detach().contiguous().clone() for name, matrix in dense.items()}, request["target"])
    return {"work_seconds": seconds, "nbytes": nbytes, "layers": len(dense), "versions": versions()}


def versions() -> dict:
    """What the peers consist of."""
    from importlib.metadata import version

    return {name: version(name) for name in ("auto-round", "hqq", "optimum-quanto", "torch", "transformers")}


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(asked["reply"]).write_text(json.dumps(main(asked)), encoding="utf-8")
