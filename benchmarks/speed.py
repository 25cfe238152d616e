"""Prefill and decode speed of a saved 4-bit model: tersor packed, transformers in float32 and bfloat16, llama.cpp on our GGUF.

Every timing is a process of its own that loads the file and does nothing else; configurations take turns, and medians are reported.
tersor and llama.cpp read the very same 4-bit values (blocks of 32, symmetric, embeddings and head as well).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import common
import comparing

OURS, OURS_BFLOAT16 = "tersor, 4-bit packed, float32", "tersor, 4-bit packed, bfloat16"
FLOAT32, BFLOAT16, PEER = "transformers, float32", "transformers, bfloat16", "llama.cpp, our GGUF"


@dataclass(frozen=True)
class Length:
    """What is timed: tokens of the prompt, tokens written after it, and repeats inside a process."""

    prompt: int
    new: int
    inner: int


FULL, QUICK = Length(256, 64, 3), Length(64, 8, 1)


def prepare(folder: Path) -> dict[str, tuple[Path, int]]:
    """Write the three forms of the model; path and bytes of the weights file of each."""
    import torch

    from tersor import compress
    from tersor.models import load
    from tersor.pipeline.recipe import parse_recipe

    model = load("smollm2-135m")
    grid = {"method": "rtn", "bits": 4, "group_size": 32, "scheme": "symmetric"}
    small = compress(model, parse_recipe({"levels": [grid], "embeddings": [grid], "evaluation": {"tokens": 0}}))
    # Like the dense folders without a tokenizer: ours would be loaded with the model and counted as its memory.
    bare = small.copy()
    bare.tokenizer = None
    bare.save(folder / "native")
    small.export(folder / "model.gguf", format="gguf", verify=False)
    comparing.save_dense(model, folder / "float32")
    model.copy(torch.bfloat16).module.save_pretrained(folder / "bfloat16")
    native = folder / "native", (folder / "native" / "model.safetensors").stat().st_size
    return {
        OURS: native,
        OURS_BFLOAT16: native,
        FLOAT32: (folder / "float32", (folder / "float32" / "model.safetensors").stat().st_size),
        BFLOAT16: (folder / "bfloat16", (folder / "bfloat16" / "model.safetensors").stat().st_size),
        PEER: (folder / "model.gguf", (folder / "model.gguf").stat().st_size),
    }


def timing(name: str, source: Path, threads: int, length: Length, python: str) -> common.Finished:
    """One process that times one configuration."""
    request = {
        "source": str(source), "prompt_tokens": length.prompt, "new_tokens": length.new, "inner_repeats": length.inner, "threads": threads,
        "runtime": name.partition(",")[0], "dtype": name.rpartition(" ")[2],
    }  # fmt: skip
    if name == PEER:
        return common.run_job("peer_scripts/llama_speed.py", request, threads=threads, python=python)
    return common.run_job("jobs/speed.py", request, threads=threads)


def measure(session: common.Session, forms: dict[str, tuple[Path, int]], thread_counts: list[int], length: Length, python: str) -> None:
    """Fill ``session`` with a row a configuration."""
    calls: dict[str, Callable[[], common.Finished]] = {}
    for threads in thread_counts:
        for name, (source, _) in forms.items():
            calls[f"{threads} {name}"] = partial(timing, name, source, threads, length, python)
    session.say(f"{len(calls)} configurations, {session.repeats} turns")
    results = common.interleaved(session.repeats, calls)
    for key, runs in results.items():
        count, _, name = key.partition(" ")
        session.rows.append(_row(int(count), name, forms[name][1], [run.reply for run in runs]))
    for replies in results.values():
        session.versions.update(replies[0].reply.get("versions", {}))
    systems = {run.reply["system"] for key, runs in results.items() if key.endswith(PEER) for run in runs}
    session.notes += [f"llama.cpp was built with: {system.strip()}" for system in sorted(systems)]
    for threads in thread_counts:
        _conclude(session, threads)


def _row(threads: int, name: str, nbytes: int, replies: list[dict[str, Any]]) -> common.Row:
    def middle(key: str) -> float:
        return common.median(reply[key] for reply in replies)

    return {
        "threads": threads, "runtime": name, "decode": middle("decode"), "prefill": middle("prefill"), "file_mb": nbytes / 1e6,
        "memory_mb": middle("model_memory") / 1e6, "memory_to_file": middle("model_memory") / nbytes,
        "memory_after_mb": middle("memory_after") / 1e6, "libraries_mb": middle("baseline") / 1e6, "load_seconds": middle("load_seconds"),
        "first_token_seconds": middle("first_token_seconds"),
        "decode_of_each_run": ", ".join(f"{reply['decode']:.1f}" for reply in replies),
    }  # fmt: skip


def _conclude(session: common.Session, threads: int) -> None:
    rows = {row["runtime"]: row for row in session.rows if row["threads"] == threads}

    def times(key: str, other: str, own: str = OURS) -> float:
        return float(rows[own][key] / rows[other][key])

    where = f"{threads} thread" + ("s" if threads > 1 else "")
    session.claims += [
        common.Claim(f"{where}: decode against transformers float32", times("decode", FLOAT32), 2.0, at_least=True),
        common.Claim(f"{where}: decode against transformers bfloat16", times("decode", BFLOAT16), 2.0, at_least=True),
        common.Claim(f"{where}: prefill, both in bfloat16", times("prefill", BFLOAT16, OURS_BFLOAT16), 1.0, at_least=True),
        common.Claim(f"{where}: decode against llama.cpp", times("decode", PEER), 1.0, at_least=True),
        common.Claim(f"{where}: prefill against llama.cpp", times("prefill", PEER, OURS_BFLOAT16), 1.0, at_least=True),
        common.Claim(f"{where}: memory of the loaded model against its file", rows[OURS]["memory_to_file"], 1.1),
    ]


NOTES = (
    "decode and prefill are tokens a second at batch one; decode is the reciprocal of the median step with a key-value cache",
    "memory_mb is what loading and one token add to a process that has its libraries (libraries_mb); memory_after_mb also holds cache and "
    "scratch of the timed runs. llama.cpp maps its file and copies what it repacks, so both can count",
    "tersor and transformers are timed by the same loop over the same module; llama.cpp through its C interface; all compute the logits of "
    "the last position alone",
    "torch's float32 products are slow on some processors: read the bfloat16 row beside it; ours computes in bfloat16 after "
    "model.copy(torch.bfloat16), which leaves the packed weights as they are",
)


def main() -> int:
    """Run the benchmark."""
    flags = common.parser(__doc__, repeats=5)
    common.add_peer(flags, "llamacpp-python", ["llama-cpp-python==0.3.36", "numpy"])
    flags.add_argument("--thread-counts", type=int, nargs="+", default=[1, 2], help="each is measured")
    parsed = flags.parse_args()
    python = common.peer_python(parsed, "llamacpp-python")
    length = QUICK if parsed.quick else FULL
    session = common.Session("speed", parsed, notes=list(NOTES), data=["smollm2-135m, rounded to 4 bits in blocks of 32"])
    session.notes.append(
        f"{length.prompt} prompt tokens, {length.new} new tokens, {length.inner} repeats in a process, {session.repeats} processes each"
    )
    import torch

    torch.set_num_threads(max(parsed.thread_counts))
    with TemporaryDirectory() as folder:
        measure(session, prepare(Path(folder)), parsed.thread_counts, length, python)
    return session.finish()


if __name__ == "__main__":
    sys.exit(main())
