"""llama.cpp's own quantiser, called as its command-line tool calls it, with an importance matrix. ``SCRIPT REQUEST``.

Runs in the peer's environment.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path

import llama_cpp
import numpy as np


def importance(path: str) -> tuple:
    """The importance matrix as the C interface takes it: one entry a tensor, ended by one without a name; and what it points to."""
    stored = np.load(path)
    arrays = {name: np.ascontiguousarray(stored[name], dtype=np.float32) for name in stored.files}
    entries = (llama_cpp.llama_model_imatrix_data * (len(arrays) + 1))()
    for entry, (name, array) in zip(entries, arrays.items(), strict=False):
        entry.name, entry.size = name.encode(), array.size
        entry.data = array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return entries, arrays


def main(request: dict) -> dict:
    """Write ``target``, of llama.cpp's file type ``type``; returns seconds and versions."""
    llama_cpp.llama_backend_init()
    options = llama_cpp.llama_model_quantize_default_params()
    options.nthread = request["threads"]
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{request['type']}")
    options.allow_requantize = True  # the source holds the original exactly, in a quantised type
    kept = importance(request["importance"])
    options.imatrix = ctypes.cast(kept[0], ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    began = time.perf_counter()
    code = llama_cpp.llama_model_quantize(request["source"].encode(), request["target"].encode(), ctypes.byref(options))
    if code != 0:
        sys.exit(f"llama.cpp could not quantise to {request['type']}")
    return {"seconds": time.perf_counter() - began, "entries": len(kept[1]), "versions": {"llama-cpp-python": llama_cpp.__version__}}


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(asked["reply"]).write_text(json.dumps(main(asked)), encoding="utf-8")
