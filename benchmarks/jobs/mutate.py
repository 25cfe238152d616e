"""Give one decoder its cases in a process whose memory is bounded: ``mutate.py TARGET FIRST END SEED MEGABYTES SECONDS TALLY``.

``TALLY`` is a file of integers that is kept up while cases run, so that whoever started this process knows which case ended it.
"""

from __future__ import annotations

import json
import mmap
import resource
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import decoders
import mutating

# Cases done, then one count an outcome, cases out of time, the slowest in microseconds, and growth of resident memory in KiB.
FIELDS = ("done", *mutating.OUTCOMES, "slow", "slowest", "growth")
TALLY = struct.Struct(f"<{len(FIELDS)}q")
# Cases before memory is bounded: lazy imports and compiled loops belong to the process, not to a case.
WARM = 40


class OutOfTime(BaseException):
    """A case took more processor time than it may."""


def run(name: str, first: int, end: int, seed: int, megabytes: int, seconds: float, place: mmap.mmap) -> None:
    """Cases ``first`` to ``end`` of a decoder."""
    target = decoders.targets()[name]()
    right = target.decode(target.valid)
    for case in range(WARM):
        mutating.outcome(target, right, case, seed + 1)
    bound(megabytes)
    signal.signal(signal.SIGPROF, out_of_time)
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts = dict(zip(FIELDS, TALLY.unpack(place[: TALLY.size]), strict=True))
    for case in range(first, end):
        began = time.process_time()
        said = one(target, right, case, seed, seconds)
        counts["slowest"] = max(counts["slowest"], round((time.process_time() - began) * 1e6))
        counts[said[0]] += 1
        counts["done"] = case + 1
        counts["growth"] = max(counts["growth"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begin)
        place[: TALLY.size] = TALLY.pack(*counts.values())
        if said[1]:
            print(json.dumps({"case": case, "outcome": said[0], "says": said[1][:300]}), flush=True)


def one(target: Any, right: Any, case: int, seed: int, seconds: float) -> tuple[str, str]:
    """One case, within its time: the processor's, as a busy machine may stop a process at any moment."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        return mutating.outcome(target, right, case, seed)
    except OutOfTime:
        return "slow", f"more than {seconds} s"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def out_of_time(number: int, frame: object) -> None:
    """The alarm."""
    raise OutOfTime


def bound(megabytes: int) -> None:
    """No more address space than now and so much more; beyond it allocations fail."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main(arguments: list[str]) -> int:
    """Parse, map the tally, run."""
    name, first, end, seed, megabytes, seconds, tally = arguments
    with open(tally, "r+b") as file, mmap.mmap(file.fileno(), TALLY.size) as place:
        run(name, int(first), int(end), int(seed), int(megabytes), float(seconds), place)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
