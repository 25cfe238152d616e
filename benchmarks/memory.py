"""Peak memory of compressing Llamas of 30 million to a billion parameters: the weights and one block's work, not a multiple of the model.

The models have random weights, which changes no size; each is built, compressed and saved in a process of its own.
"""

from __future__ import annotations

import sys
from typing import Any

import common

# What every released model of about that size looks like; the last is TinyLlama's shape with tied embeddings.
SHAPES: dict[str, dict[str, int]] = {
    size: dict(
        zip(
            ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
            numbers,
            strict=True,
        )
    )
    for size, numbers in {
        "3M": (4096, 192, 512, 4, 3, 1),
        "30M": (32000, 384, 1024, 10, 6, 2),
        "135M": (49152, 576, 1536, 30, 9, 3),
        "350M": (49152, 960, 2560, 32, 15, 5),
        "1B": (32000, 2048, 5632, 22, 32, 4),
    }.items()
}
METHODS: dict[str, dict[str, Any]] = {
    "rtn": {"bits": 4, "group_size": 64},
    "gptq": {"bits": 4, "group_size": 64, "act_order": True},
}
FREE_TIMES_WEIGHTS = 2.5  # of the machine's free memory, to start at all


def parameters(shape: dict[str, int]) -> int:
    """Weights of a tied Llama."""
    width, inner, heads = shape["hidden_size"], shape["intermediate_size"], shape["num_attention_heads"]
    attention = 2 * width * width + 2 * width * width * shape["num_key_value_heads"] // heads
    return shape["vocab_size"] * width + shape["num_hidden_layers"] * (attention + 3 * width * inner + 2 * width) + width


def one_block(shape: dict[str, int], sequences: int, context: int, method: str) -> int:
    """What one block's work needs in theory, in bytes.

    Its matrices in float32 and the largest one a few times over; for a calibrated method also the Hessians of its four distinct inputs,
    accumulated in float64, two factors of the widest, and two hidden states a token.
    """
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    heads, kv = shape["num_attention_heads"], shape["num_key_value_heads"]
    block = 4 * (2 * width * width + 2 * width * width * kv // heads + 3 * width * inner)
    if method == "rtn":
        return block
    return block + 8 * (3 * width**2 + inner**2) + 2 * 8 * inner**2 + 2 * 4 * sequences * context * width


def measure(session: common.Session, size: str, method: str, dtype: str, sequences: int, context: int) -> None:
    """One model, one method: a row, or a note where it does not fit."""
    import psutil

    shape = SHAPES[size]
    weights = parameters(shape) * {"float32": 4, "bfloat16": 2}[dtype]
    free = psutil.virtual_memory().available
    if free < FREE_TIMES_WEIGHTS * weights + 1e9:
        session.notes.append(f"{size} in {dtype} was skipped: {free / 1e9:.1f} GB are free, its weights alone take {weights / 1e9:.1f} GB")
        return
    session.say(f"{size}, {method}, {dtype}")
    request = {"shape": shape, "method": method, "options": METHODS[method], "dtype": dtype, "sequences": sequences, "context": context}
    runs = [common.run_job("jobs/memory.py", request, threads=session.flags.threads) for _ in range(session.repeats)]
    reply = runs[0].reply
    peak = common.median(run.peak_memory for run in runs)
    work = peak - reply["baseline"] - reply["weights"]
    block = one_block(shape, sequences, context, method)
    session.rows.append(
        {
            "model": size, "parameters": reply["parameters"], "method": method, "dtype": dtype, "weights_mb": reply["weights"] / 1e6,
            "one_block_mb": block / 1e6, "libraries_mb": reply["baseline"] / 1e6, "peak_mb": peak / 1e6,
            "beside_weights_mb": work / 1e6, "to_weights_and_block": (peak - reply["baseline"]) / (reply["weights"] + block),
            "to_weights": (peak - reply["baseline"]) / reply["weights"],
            "seconds": common.median(run.reply["seconds"] for run in runs),
        }
    )  # fmt: skip


def conclude(session: common.Session) -> None:
    """The largest models decide: there the fixed costs of a process no longer matter."""
    for method in dict.fromkeys(row["method"] for row in session.rows):
        largest = max((row for row in session.rows if row["method"] == method), key=lambda row: row["parameters"])
        says = f"{method}, {largest['model']}: peak without libraries, relative to the weights and one block"
        session.claims.append(common.Claim(says, largest["to_weights_and_block"], 1.5))
        session.claims.append(
            common.Claim(f"{method}, {largest['model']}: peak without libraries, relative to the weights alone", largest["to_weights"], 2.0)
        )


NOTES = (
    "peak_mb is the largest resident size of the whole process; libraries_mb what it held after a tiny one had been compressed likewise",
    "one_block_mb is computed from the shape: a block in float32 and, for gptq, float64 Hessians of its four inputs, two factors of the "
    "widest, two hidden states a token",
    "calibration tokens are random and few (memory grows with them only by the hidden states, counted in one_block_mb); saving is included",
    "weights are random: the numbers say nothing about quality",
)


def main() -> int:
    """Run the benchmark."""
    flags = common.parser(__doc__, repeats=1, threads=common.cores())
    flags.add_argument("--sizes", nargs="+", choices=list(SHAPES), help="default: 30M to 1B, or 3M and 30M with --quick")
    flags.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="each is measured")
    flags.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the dense model; tersor.load gives float32")
    parsed = flags.parse_args()
    session = common.Session("memory", parsed, notes=list(NOTES), data=["random weights"])
    sizes = parsed.sizes or (["3M", "30M"] if parsed.quick else [size for size in SHAPES if size != "3M"])
    for size in sizes:
        for method in parsed.methods:
            measure(session, size, method, parsed.dtype, sequences=8, context=128 if parsed.quick else 256)
    if session.rows:
        conclude(session)
    return session.finish()


if __name__ == "__main__":
    sys.exit(main())
