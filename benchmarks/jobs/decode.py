"""Decode files in a new process that has seen nothing else: ``decode.py REQUEST``; tells what came out, and how long each took."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path


def main(request: dict) -> dict:
    """Digests and processor seconds of the files of ``request["files"]``, decoded with ``request["model"]`` if that is named."""
    import tersor
    from tersor import coding

    model = tersor.load(request["model"]) if request["model"] else None
    # Compiled loops are loaded before anything is timed.
    coding.decode(coding.encode(b"warm", codec="bytes"))
    found = []
    for name in request["files"]:
        data = Path(name).read_bytes()
        began = time.process_time()
        decoded = coding.decode(data, model=model)
        found.append({"sha256": hashlib.sha256(decoded).hexdigest(), "seconds": time.process_time() - began})
    return {"files": found}


if __name__ == "__main__":
    wanted = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(wanted["reply"]).write_text(json.dumps(main(wanted)), encoding="utf-8")
