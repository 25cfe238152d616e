"""Load one model and time it, one process: ``speed.py REQUEST``. The threads are those of the environment."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def load(source: str, runtime: str, dtype: str) -> Any:
    """The model as its runtime holds it: ours packed, transformers' dense in ``dtype``."""
    import torch

    from tersor.models import Model
    from tersor.models import load as load_tersor

    if runtime == "tersor":
        return load_tersor(source)
    from transformers import AutoModelForCausalLM

    return Model(AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype)))


def warm_libraries() -> None:
    """Import and compile what running a packed weight needs, on a tiny one: libraries are part of the baseline, not of the model."""
    import torch

    from tersor.layerwise import rtn

    weight = rtn(torch.ones(64, 64), bits=4, group_size=32, scheme="symmetric")
    with torch.inference_mode():
        for rows in (1, 4, 64):
            weight(torch.ones(rows, 64))


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Load, run one token, time prompt and continuation by the same code for both runtimes."""
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401 - as in warm_libraries

    from tersor.evaluation import measure_speed
    from tersor.evaluation.speed import process_memory

    warm_libraries()
    baseline, _ = process_memory()
    began = time.perf_counter()
    model = load(request["source"], request["runtime"], request["dtype"])
    loading = time.perf_counter() - began
    with torch.inference_mode():
        model.module(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=False)
    first = time.perf_counter() - began - loading
    resident, _ = process_memory()
    prompt = torch.arange(request["prompt_tokens"]) * 7919 % model.vocabulary
    speed = measure_speed(model, prompt, new_tokens=request["new_tokens"], repeats=request["inner_repeats"])
    return {
        "prefill": speed.prefill, "decode": speed.decode, "threads": speed.threads, "load_seconds": loading, "first_token_seconds": first,
        "model_memory": resident - baseline, "baseline": baseline, "memory_after": speed.resident_memory - baseline,
    }  # fmt: skip


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(asked["reply"]).write_text(json.dumps(main(asked)), encoding="utf-8")
