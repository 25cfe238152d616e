"""Compress a Llama with random weights, one process: ``memory.py REQUEST``. The model is built here, so that nothing else is in memory."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# Compressed first: lazily imported libraries and compiled kernels belong to the baseline, not to the model.
TINY = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def build(shape: dict[str, Any], dtype: str) -> Any:
    """A Llama of ``shape`` with small random weights, made in ``dtype`` from the start."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tersor.models import Model

    config = LlamaConfig(**shape, max_position_embeddings=1024, tie_word_embeddings=True)
    torch.set_default_dtype(getattr(torch, dtype))  # this process is ours alone
    try:
        module = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    return Model(module, name="synthetic")


def run(model: Any, request: dict[str, Any], folder: Path) -> None:
    """The main job on given tokens: level database on disk, assembly, saved model."""
    import torch

    from tersor.pipeline.job import Job, single_method
    from tersor.pipeline.texts import Texts

    options = {**request["options"], "evaluation": {"tokens": 0}}
    job = Job(model, single_method(request["method"], options), folder)
    sequences, length = request["sequences"], request["context"]
    tokens = torch.randint(model.vocabulary, (sequences, length), generator=torch.Generator().manual_seed(0))
    if request["method"] == "rtn":
        tokens = None
    job.texts = Texts(tokens, None, None, None, {})
    small = job.assemble(job.search().choices)
    small.save(job.run.output)


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Build, compress and save; returns memory before and after building, and sizes."""
    from tersor.evaluation.speed import process_memory
    from tersor.models.structure import find_blocks

    with TemporaryDirectory() as folder:
        run(build(TINY, request["dtype"]), request, Path(folder) / "out")
    baseline, _ = process_memory()
    model = build(request["shape"], request["dtype"])
    built, built_peak = process_memory()
    weights = sum(parameter.nbytes for parameter in model.module.parameters())
    block = sum(parameter.nbytes for parameter in find_blocks(model.module)[0].parameters())
    began = time.perf_counter()
    with TemporaryDirectory() as folder:
        run(model, request, Path(folder) / "out")
    _, peak = process_memory()
    return {
        "baseline": baseline, "built": built, "built_peak": built_peak, "peak": peak, "weights": weights, "block": block,
        "parameters": model.n_parameters, "seconds": time.perf_counter() - began,
    }  # fmt: skip


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(asked["reply"]).write_text(json.dumps(main(asked)), encoding="utf-8")
