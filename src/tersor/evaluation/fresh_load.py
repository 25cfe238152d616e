"""Run as ``python -m tersor.evaluation.fresh_load SOURCE``: loads a model and prints what that took, as JSON."""

from __future__ import annotations

import json
import sys
import time


def main(source: str) -> None:
    """Load ``source``, run one token through it, and print time and memory."""
    import torch
    import transformers.modeling_utils  # noqa: F401 - part of the baseline, not of the model

    from tersor.evaluation.speed import process_memory
    from tersor.models import load
    from tersor.models.structure import run_model

    baseline, _ = process_memory()
    began = time.perf_counter()
    model = load(source)
    seconds = time.perf_counter() - began
    with torch.inference_mode():
        run_model(model.module, torch.zeros(1, 1, dtype=torch.long))
    resident, peak = process_memory()
    print(json.dumps({"seconds": seconds, "baseline_memory": baseline, "resident_memory": resident, "peak_memory": peak}))


if __name__ == "__main__":
    main(sys.argv[1])
