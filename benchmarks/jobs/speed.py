"""Load one model and time it, one process: ``speed.py REQUEST``. The threads are those of the environment."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def load(source: str, runtime: str, dtype: str) -> Any:
    """The model as its runtime holds it: ours packed and computing in ``dtype``, transformers' dense in ``dtype``."""
    import torch

    from tersor.models import Model
    from tersor.models import load as load_tersor

    if runtime == "tersor":
        loaded = load_tersor(source)
        return loaded if dtype == "float32" else loaded.copy(getattr(torch, dtype))
    from transformers import AutoModelForCausalLM

    return Model(AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype)))


def warm_libraries(runtime: str, dtype: str) -> None:
    """Import and compile what loading and running a model need, on a tiny one: libraries are part of the baseline, not of the model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tersor.layerwise import rtn
    from tersor.models import Model

    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=1, tie_word_embeddings=True
    )
    tiny = Model(LlamaForCausalLM(config))
    with TemporaryDirectory() as folder:
        if runtime == "tersor":
            for name in [*tiny.linears(), *tiny.embeddings()]:
                tiny.replace(name, rtn(tiny.matrix(name), bits=4, group_size=32, scheme="symmetric"))
            tiny.save(Path(folder) / "tiny")
        else:
            tiny.module.save_pretrained(Path(folder) / "tiny")
        again = load(str(Path(folder) / "tiny"), runtime, dtype)
        with torch.inference_mode():
            for tokens in (1, 4, 64):
                again.module(input_ids=torch.zeros(1, tokens, dtype=torch.long))


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Load, run one token, time prompt and continuation by the same code for both runtimes."""
    import torch

    from tersor.evaluation import measure_speed
    from tersor.evaluation.speed import process_memory

    warm_libraries(request["runtime"], request["dtype"])
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
