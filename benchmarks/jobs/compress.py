"""Our side of a comparison, one process: load a dense folder, compress it as the request says, save it. ``compress.py REQUEST``."""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path


def main(request: dict[str, object]) -> dict[str, object]:
    """Run ``tersor.compress(model, method, **options)`` with its output in ``output``; returns seconds of each phase."""
    moments = [time.perf_counter()]
    import transformers.modeling_utils  # noqa: F401 - belongs to the imports, not to loading

    import tersor

    moments.append(time.perf_counter())
    model = tersor.load(str(request["model"]))
    moments.append(time.perf_counter())
    tersor.compress(model, str(request["method"]), output=str(request["output"]), **request["options"])  # type: ignore[arg-type]
    moments.append(time.perf_counter())
    imports, loading, work = (later - earlier for earlier, later in itertools.pairwise(moments))
    return {"import_seconds": imports, "load_seconds": loading, "work_seconds": work}


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(asked["reply"]).write_text(json.dumps(main(asked)), encoding="utf-8")
