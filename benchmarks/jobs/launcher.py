"""Run a command and write what it took as JSON: ``launcher.py REPLY COMMAND...``.

The kernel reports the memory of a child as at least that of the process that started it, so a benchmark that holds a model
cannot measure its children itself; this process holds nothing.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

_UNIT = 1 if sys.platform == "darwin" else 1024


def main(reply: str, command: list[str]) -> int:
    """Run ``command``, leave its wall time, processor time and largest resident size in ``reply``, return its exit code."""
    began = time.perf_counter()
    code = subprocess.run(command, check=False).returncode
    seconds = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = {"seconds": seconds, "cpu_seconds": used.ru_utime + used.ru_stime, "peak_memory": used.ru_maxrss * _UNIT}
    with open(reply, "w", encoding="utf-8") as file:
        json.dump(took, file)
    if code < 0:
        print(f"\nended by signal {-code} after {seconds:.0f} s", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
