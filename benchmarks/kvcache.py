"""Caches of keys and values: tokens a second and bytes at growing contexts, and memory of one very long generation.

Every kind of cache has a process of its own. For the contexts, caches are filled with random states, because neither time nor bytes
depend on the values; the long generation is the model's own. What compression does to the text is measured by ``tersor reproduce gear``.
"""

from __future__ import annotations

import sys
from typing import Any

import common

MODEL = "smollm2-135m"
KINDS = ("dynamic", "gear", "kivi", "evict")
BITS = 2
LONG = f"gear written, {BITS} bits"
# The long generation is noted at its quarters, which are whole groups of tokens, so that none waits in full precision.
FULL = {"lengths": [1024, 4096, 8128], "steps": 4, "tokens": 6144, "prompt": 120, "new": 16}
QUICK = {"lengths": [256, 512], "steps": 2, "tokens": 256, "prompt": 90, "new": 4}


def measure(session: common.Session, size: dict[str, Any]) -> None:
    """Fill ``session`` with a row for each kind and context, and with those of the long generation."""
    for kind in KINDS:
        session.say(kind)
        asked = {"kind": kind, "lengths": size["lengths"], "steps": size["steps"]}
        replies = [_answer(session, asked)["rows"] for _ in range(session.repeats)]
        session.rows += [_row(kind, list(runs)) for runs in zip(*replies, strict=True)]
    session.say("the same tokens")
    for way, same in _answer(session, {"prompt": size["prompt"], "new": size["new"]})["same"].items():
        session.claims.append(common.Claim(f"nothing compressed, {way}: the tokens of DynamicCache", float(same), 1.0, at_least=True))
    session.say(f"{size['tokens']} tokens")
    session.rows += [_row(LONG, [run]) for run in _answer(session, {"kind": "gear", "tokens": size["tokens"]})["rows"]]


def _answer(session: common.Session, asked: dict[str, Any]) -> dict[str, Any]:
    return common.run_job("jobs/kvcache.py", {"model": MODEL, "bits": BITS, **asked}, threads=session.flags.threads).reply


def _row(kind: str, runs: list[dict[str, Any]]) -> common.Row:
    return {
        "cache": f"{kind}, {BITS} bits" if kind in ("gear", "kivi") else kind, "context": runs[0]["context"],
        "tokens_a_second": 1 / common.median(run["step_seconds"] for run in runs), "cache_mb": runs[0]["cache_bytes"] / 1e6,
        "memory_grown_mb": common.median(run["memory_grown"] for run in runs) / 1e6,
        "peak_grown_mb": common.median(run["peak_grown"] for run in runs) / 1e6,
    }  # fmt: skip


def conclude(session: common.Session) -> None:
    """Bounds on size, memory and what decompression costs."""

    def last(kind: str) -> common.Row:
        return next(row for row in reversed(session.rows) if row["cache"].startswith(kind))

    ours, exact = last("gear, "), last("dynamic")
    long = [row for row in session.rows if row["cache"] == LONG]
    first, end = long[0], long[-1]
    where, growth = f"{ours['context']} tokens", (end["cache_mb"] - first["cache_mb"]) / (end["context"] - first["context"])
    speed, written = ours["tokens_a_second"] / exact["tokens_a_second"], end["context"]
    # A token of DynamicCache, which grows by the same number of entries in float32.
    dense = exact["cache_mb"] / exact["context"]
    session.claims += [
        common.Claim(f"{where}: gear's bytes against float32", ours["cache_mb"] / exact["cache_mb"], 0.15),
        common.Claim(f"{where}: memory that gear adds against float32", ours["memory_grown_mb"] / exact["memory_grown_mb"], 0.5),
        common.Claim(f"{where}: peak of gear while decoding against float32", ours["peak_grown_mb"] / exact["peak_grown_mb"], 0.5),
        common.Claim(f"{where}: speed against DynamicCache", speed, 0.5, at_least=True),
        common.Claim(f"{written} tokens written: bytes of each further token against float32", growth / dense, 0.15),
        common.Claim(f"{written} tokens written: peak of memory against a float32 cache", end["peak_grown_mb"] / (dense * written), 0.5),
    ]  # fmt: skip


NOTES = (
    "the model computes in float32, so that DynamicCache holds float32 too; at 16 bits it would hold half",
    "memory_grown is what filling and decoding leave in the process, free memory that the allocator keeps not counted; peak_grown the most "
    "that decoding took on the way, what each layer reads back for its attention included",
    "tokens a second are of processor time on one thread; those of the long generation are over all of its tokens so far",
    "evict keeps 1024 tokens",
)


def main() -> int:
    """Run the benchmark."""
    flags = common.parser(__doc__, repeats=1, threads=1).parse_args()
    session = common.Session("kvcache", flags, notes=list(NOTES), data=[MODEL])
    measure(session, QUICK if flags.quick else FULL)
    conclude(session)
    return session.finish()


if __name__ == "__main__":
    sys.exit(main())
