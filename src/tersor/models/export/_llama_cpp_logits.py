"""Run as a script in a process of its own: llama.cpp's logits and tokens for a GGUF file.

A damaged file makes the C++ library abort the whole process, which must not be the caller's. Nothing of tersor is imported.
Arguments: the GGUF file, a JSON file ``{"tokens": [...], "texts": [...]}``, the ``.npz`` file to write.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

import llama_cpp
import numpy as np


def main(model_path: str, request_path: str, output_path: str) -> None:
    with open(request_path, encoding="utf-8") as file:
        request = json.load(file)
    llama_cpp.llama_backend_init()
    options = llama_cpp.llama_model_default_params()
    options.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(model_path.encode(), options)
    if not model:
        sys.exit("llama.cpp cannot load the file")
    vocab = llama_cpp.llama_model_get_vocab(model)
    texts = [tokenize(vocab, text) for text in request["texts"]]
    arrays: dict[str, Any] = {f"text{i}": ids for i, ids in enumerate(texts)}
    np.savez(output_path, logits=logits(model, vocab, request["tokens"]), **arrays)


def tokenize(vocab: object, text: str) -> np.ndarray:
    data = text.encode()
    buffer = (llama_cpp.llama_token * (len(data) + 8))()
    count = llama_cpp.llama_tokenize(vocab, data, len(data), buffer, len(buffer), True, True)
    return np.array(buffer[: max(count, 0)], dtype=np.int64)


def logits(model: object, vocab: object, tokens: list[int]) -> np.ndarray:
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = max(len(tokens), 32)
    options.n_threads = options.n_threads_batch = 1
    # Half-precision caches would blur what is compared.
    options.type_k = options.type_v = 0
    options.flash_attn_type = 0
    context = llama_cpp.llama_init_from_model(model, options)
    if not context:
        sys.exit("llama.cpp cannot make a context for the model")
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
        batch.seq_id[i][0] = 0
    if llama_cpp.llama_decode(context, batch) != 0:
        sys.exit("llama.cpp cannot evaluate the model")
    width = llama_cpp.llama_vocab_n_tokens(vocab)
    pointer = ctypes.cast(llama_cpp.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))
    return np.ctypeslib.as_array(pointer, shape=(len(tokens), width)).copy()


if __name__ == "__main__":
    main(*sys.argv[1:])
