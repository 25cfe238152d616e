"""Time llama.cpp on a GGUF file through its C interface, one process. ``SCRIPT REQUEST``. Runs in the peer's environment."""

from __future__ import annotations

import ctypes
import itertools
import json
import statistics
import sys
import time
from pathlib import Path

import llama_cpp
import numpy as np


def resident() -> int:
    """Resident bytes of this process, mapped pages of the file included."""
    import os

    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def decode(context, tokens: list) -> None:
    """Run ``tokens`` behind what the context has seen."""
    array = (llama_cpp.llama_token * len(tokens))(*tokens)
    if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens))) != 0:
        sys.exit("llama.cpp cannot evaluate the model")


def best(context, width: int) -> int:
    """The likeliest next token."""
    pointer = ctypes.cast(llama_cpp.llama_get_logits_ith(context, -1), ctypes.POINTER(ctypes.c_float))
    return int(np.ctypeslib.as_array(pointer, shape=(width,)).argmax())


def timed(context, width: int, prompt: list, new_tokens: int) -> tuple[float, list]:
    """Seconds of the prompt with its first token, and of each step after it; what the context saw before is forgotten."""
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    moments = [time.perf_counter()]
    step = prompt
    for _ in range(new_tokens):
        decode(context, step)
        step = [best(context, width)]
        moments.append(time.perf_counter())
    steps = [later - earlier for earlier, later in itertools.pairwise(moments)]
    return steps[0], steps[1:]


def main(request: dict) -> dict:
    """Load, run one token, time prompt and continuation exactly as our own timing does."""
    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(SILENT, None)
    baseline = resident()
    began = time.perf_counter()
    options = llama_cpp.llama_model_default_params()
    options.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(request["source"].encode(), options)
    if not model:
        sys.exit("llama.cpp cannot load the file")
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = request["prompt_tokens"] + request["new_tokens"] + 8
    settings.n_batch = settings.n_ubatch = 512
    settings.n_threads = settings.n_threads_batch = request["threads"]
    context = llama_cpp.llama_init_from_model(model, settings)
    loading = time.perf_counter() - began
    width = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    decode(context, [0])
    first = time.perf_counter() - began - loading
    loaded = resident()
    prompt = [index * 7919 % width for index in range(request["prompt_tokens"])]
    timed(context, width, prompt, 2)
    prefills, steps = [], []
    for _ in range(request["inner_repeats"]):
        prefill, rest = timed(context, width, prompt, request["new_tokens"])
        prefills.append(prefill)
        steps += rest
    return {
        "prefill": len(prompt) / statistics.median(prefills), "decode": 1 / statistics.median(steps), "threads": request["threads"],
        "load_seconds": loading, "first_token_seconds": first, "model_memory": loaded - baseline,
        "baseline": baseline, "memory_after": resident() - baseline,
        "versions": {"llama-cpp-python": llama_cpp.__version__}, "system": llama_cpp.llama_print_system_info().decode(),
    }  # fmt: skip


@llama_cpp.llama_log_callback
def SILENT(level, text, data):
    """Say nothing."""


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(asked["reply"]).write_text(json.dumps(main(asked)), encoding="utf-8")
