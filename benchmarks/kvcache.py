"""Caches of keys and values: tokens a second and bytes at growing contexts, and memory of one very long generation.

Every kind of cache has a process of its own. Caches are filled with random states, because neither time nor bytes depend on the values;
what compression does to the text is measured by ``tersor reproduce gear``.
"""

from __future__ import annotations

import sys
from typing import Any

import common

MODEL, LONG_MODEL = "smollm2-135m", "stories260k"
KINDS = ("dynamic", "gear", "kivi", "evict")
LONG_KIND = "kivi"
# Entries of the keys of a token: 5 layers, 4 heads, 8 channels.
LONG_ENTRIES = 160
BITS = 2
FULL = {"lengths": [1024, 4096, 8128], "steps": 4, "tokens": 6000}
QUICK = {"lengths": [256, 512], "steps": 2, "tokens": 200}


def measure(session: common.Session, size: dict[str, Any]) -> None:
    """Fill ``session`` with a row for each kind and context."""
    threads = session.flags.threads
    for kind in KINDS:
        session.say(kind)
        request = {"model": MODEL, "kind": kind, "bits": BITS, "lengths": size["lengths"], "steps": size["steps"]}
        replies = [common.run_job("jobs/kvcache.py", request, threads=threads).reply["rows"] for _ in range(session.repeats)]
        for runs in zip(*replies, strict=True):
            session.rows.append(_row(kind, MODEL, list(runs)))
    session.say(f"{size['tokens']} tokens")
    request = {"model": LONG_MODEL, "kind": LONG_KIND, "bits": BITS, "tokens": size["tokens"]}
    for run in common.run_job("jobs/kvcache.py", request, threads=threads).reply["rows"]:
        session.rows.append(_row(LONG_KIND, LONG_MODEL, [run]))


def _row(kind: str, model: str, runs: list[dict[str, Any]]) -> common.Row:
    name = f"{kind}, {BITS} bits" if kind in ("gear", "kivi") else kind
    return {
        "model": model, "cache": name, "context": runs[0]["context"],
        "tokens_a_second": 1 / common.median(run["step_seconds"] for run in runs), "cache_mb": runs[0]["cache_bytes"] / 1e6,
        "memory_grown_mb": common.median(run["memory_grown"] for run in runs) / 1e6,
    }  # fmt: skip


def conclude(session: common.Session) -> None:
    """Bounds on size, memory and what decompression costs."""

    def last(kind: str, model: str) -> common.Row:
        return next(row for row in reversed(session.rows) if row["cache"].startswith(kind) and row["model"] == model)

    ours, exact = last("gear", MODEL), last("dynamic", MODEL)
    long = [row for row in session.rows if row["model"] == LONG_MODEL]
    growth = (long[-1]["cache_mb"] - long[0]["cache_mb"]) / (long[-1]["context"] - long[0]["context"]) * 1e6 / (2 * LONG_ENTRIES)
    where = f"{ours['context']} tokens"
    speed = ours["tokens_a_second"] / exact["tokens_a_second"]
    session.claims += [
        common.Claim(f"{where}: gear's bytes against float32", ours["cache_mb"] / exact["cache_mb"], 0.15),
        common.Claim(f"{where}: memory that gear adds against float32", ours["memory_grown_mb"] / exact["memory_grown_mb"], 0.5),
        common.Claim(f"{where}: speed against DynamicCache", speed, 0.5, at_least=True),
        common.Claim(f"up to {long[-1]['context']} tokens written: bytes for each further entry", growth, 0.4),
    ]  # fmt: skip


NOTES = (
    "the model computes in float32, so that DynamicCache holds float32 too; at 16 bits it would hold half",
    "memory_grown is what filling and decoding leave in the process, free memory that the allocator keeps not counted",
    "tokens a second are of processor time on one thread; those of the long generation are over all of its tokens so far",
    f"the long generation is that of {LONG_MODEL}, whose heads have 8 channels, for which factors of any rank would be half a copy",
)


def main() -> int:
    """Run the benchmark."""
    flags = common.parser(__doc__, repeats=1, threads=1).parse_args()
    session = common.Session("kvcache", flags, notes=list(NOTES), data=[MODEL, LONG_MODEL])
    measure(session, QUICK if flags.quick else FULL)
    conclude(session)
    return session.finish()


if __name__ == "__main__":
    sys.exit(main())
