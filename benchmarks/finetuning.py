"""What a step of each way to train costs: tokens a second and peak memory as ratios to dense training of the same model.

Every method takes a few steps of the same batches in a process of its own. Language models are trained with AdamW; PV-tuning and the row
"towards its original" also run the original beside, which dense training does not. The two rows of Compressor are of classifiers: a large
one on labels, and the small one that is taught what the large one said.
"""

from __future__ import annotations

import sys
from typing import Any

import common

LAPS = "laps"  # of jobs/finetuning.py: processor seconds of each step
DENSE, TEACHER, STUDENT = "dense", "classifier, dense", "Compressor"
METHODS = (
    DENSE, "dense, towards its original", "KappaTune", "LoRA", "QuEST, W4A4", "LSQ, W4A4", "Compresso, gates", "Compresso, healing",
    "gradual pruning", "PV-tuning",
)  # fmt: skip
# The shapes of a MiniLM, and of the student that the recorded run of compressor searched at half a megabyte.
LARGE = {"num_attention_heads": 12, "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "vocab_size": 30522}
SMALL = {"num_attention_heads": 2, "hidden_size": 48, "intermediate_size": 352, "num_hidden_layers": 1, "vocab_size": 1500}


def requests(quick: bool, steps: int, batch: int, context: int) -> dict[str, dict[str, Any]]:
    """What each process is asked."""
    # The width of the small model is no multiple of 64.
    size = {"steps": steps, "batch": batch, "context": context, "group_size": -1 if quick else 64}
    model = "stories260k" if quick else "smollm2-135m"
    asked: dict[str, dict[str, Any]] = {name: {"method": name, "model": model, **size} for name in METHODS}
    small = {"steps": max(steps, 5), "batch": 16, "context": 128}
    asked[TEACHER] = {"architecture": LARGE, "labels": True, **small}
    asked[STUDENT] = {"architecture": SMALL, "labels": False, **small}
    return asked


def measure(session: common.Session, name: str, request: dict[str, Any]) -> common.Row | None:
    """One method: numbers of its own, before they are compared."""
    session.say(name)
    try:
        done = common.run_job("jobs/finetuning.py", request, threads=session.flags.threads)
    except common.JobFailed as failure:
        session.failed(name, failure)
        return None
    reply = done.reply
    return {
        "method": name, "trained": reply["trained"], "tokens_a_second": reply["tokens"] / common.median(reply[LAPS]),
        "peak_mb": done.peak_memory / 1e6, "beside_libraries_mb": (done.peak_memory - reply["libraries"]) / 1e6,
    }  # fmt: skip


def compared(rows: list[common.Row]) -> list[common.Row]:
    """Rows with their ratios to the dense training of the same family."""
    known = {row["method"]: row for row in rows}
    full = []
    for row in rows:
        base = known.get(TEACHER if row["method"] in (TEACHER, STUDENT) else DENSE)
        ratios = {} if base is None else {
            "speed_of_dense": row["tokens_a_second"] / base["tokens_a_second"],
            "memory_of_dense": row["beside_libraries_mb"] / base["beside_libraries_mb"],
        }  # fmt: skip
        full.append({**row, **ratios})
    return full


NOTES = (
    "tokens_a_second are of processor time, on one thread: unlike those of wall time they hardly depend on what else runs; the median of "
    "the steps after the first",
    "memory_of_dense compares peaks of whole processes without what the libraries hold before a model is loaded",
    "KappaTune and LoRA train about a tenth of the numbers; the forward and half of the backward pass stay whole",
    "Compresso computes whole matrices until the cut at its end; a fast step comes after it",
    "PV-tuning counts the weights whose codes it moves; the original runs beside, as in the row towards it",
    "Compressor's answers were written down before: asking the teacher once is not in its row",
    "tokens are random, so nothing is said about what is learned",
)


def main() -> int:
    """Run the benchmark."""
    flags = common.parser(__doc__, repeats=1, threads=1)
    flags.add_argument("--steps", type=int, default=3, help="timed steps of each method, after one that is not")
    flags.add_argument("--context", type=int, default=128, help="tokens of a window")
    flags.add_argument("--batch", type=int, default=2, help="windows a step")
    flags.add_argument("--methods", nargs="+", choices=[*METHODS, TEACHER, STUDENT], default=[*METHODS, TEACHER, STUDENT], help="rows")
    parsed = flags.parse_args()
    everything = requests(parsed.quick, parsed.steps, parsed.batch, parsed.context)
    model = everything[DENSE]["model"]
    asked = {name: everything[name] for name in parsed.methods}
    session = common.Session("finetuning", parsed, data=[model, "random tokens"], notes=list(NOTES))
    rows = [row for name, request in asked.items() if (row := measure(session, name, request)) is not None]
    session.rows.extend(compared(rows))
    return session.finish()


if __name__ == "__main__":
    sys.exit(main())
