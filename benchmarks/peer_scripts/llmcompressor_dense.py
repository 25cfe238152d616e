"""Read a folder that llm-compressor saved with its own stack and write what every linear layer stands for. ``SCRIPT REQUEST``."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(request: dict) -> dict:
    """Write ``target``, a safetensors file of float32 matrices: of the linear layers, and of norms that were changed with them."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    folder = Path(request["folder"])
    quantized = "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    options = {"quantization_config": CompressedTensorsConfig(run_compressed=False)} if quantized else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    model(torch.zeros(1, 1, dtype=torch.long))  # releases that decompress on the first forward do it now
    tied = model.config.tie_word_embeddings
    values = {
        name: tensor.float().contiguous().clone() for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and name.endswith((".weight", ".bias")) and not (tied and name.startswith("lm_head"))
    }  # fmt: skip
    save_file(values, request["target"])
    return {"tensors": len(values), "bytes_in_folder": sum(file.stat().st_size for file in folder.glob("*.safetensors"))}


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(asked["reply"]).write_text(json.dumps(main(asked)), encoding="utf-8")
