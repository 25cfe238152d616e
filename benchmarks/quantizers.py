"""tersor beside auto-round, hqq and quanto at equal bytes: held-out perplexity and divergence of weight-only quantisation.

Rows are grouped by bits a weight, every scale and zero point counted: a tool is compared only with rows of its own group.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import common
import comparing

OURS = "tersor"


@dataclass(frozen=True)
class Entry:
    """One configuration of one tool.

    Attributes:
        size: Nominal bits a weight, which groups the rows.
        tool: Who does it.
        title: What is done.
        options: For the job; of ours with ``method``.
    """

    size: str
    tool: str
    title: str
    options: dict[str, Any]


def ours(size: str, bits: int, scheme: str) -> list[Entry]:
    """Our rows of a size: calibrated and data-free."""
    grid = {"bits": bits, "group_size": 64, "scheme": scheme}
    return [
        Entry(size, OURS, f"gptq, {scheme}, act-order", {"method": "gptq", **grid, "act_order": True, "clip": "hessian"}),
        Entry(size, OURS, f"rtn, {scheme}, no data", {"method": "rtn", **grid, "clip": "mse"}),
    ]


def entries(iterations: int) -> list[Entry]:
    """Everything that is compared. Equal sizes: 4 bits in groups of 96 and 128 with 32 bits a group average to 4 bits in groups of 64 with 20."""
    return [
        *ours("3.30", 3, "asymmetric"),
        Entry("3.30", "auto-round", f"asymmetric, {iterations} iterations", {"bits": 3, "group_size": 64, "iterations": iterations}),
        *ours("3.50", 3, "float_min"),
        Entry("3.50", "hqq", "float zero point, no data", {"bits": 3, "group_size": 64}),
        *ours("4.31", 4, "asymmetric"),
        Entry("4.31", "quanto", "float shift, groups of 96 and 128, no data", {"bits": 4, "optimizer": "max"}),
        Entry("4.31", "quanto", "the same, hqq optimiser, no data", {"bits": 4, "optimizer": "hqq"}),
        *ours("4.50", 4, "float_min"),
        Entry("4.50", "hqq", "rounded zero point kept in 16 bits, no data", {"bits": 4, "group_size": 64}),
    ]


def run(session: common.Session, material: comparing.Material, original: Any, entry: Entry, folder: Path, python: str) -> tuple[common.Row, Any]:
    """Run one entry once and judge it."""
    session.say(f"{entry.size} bits: {entry.tool} {entry.title}")
    threads = session.flags.threads
    number = len(session.rows)
    if entry.tool == OURS:
        options = {**entry.options, "calibration": material.options, "evaluation": {"tokens": 0}}
        method, output = options.pop("method"), folder / str(number)
        done = common.run_job("jobs/compress.py", {"model": str(material.dense), "method": method, "options": options, "output": str(output)}, threads=threads)
        from tersor.models import load

        small = load(output)
        nbytes = sum(weight.nbytes for weight in small.weights().values())
    else:
        target = folder / f"{number}.safetensors"
        options = {**entry.options, "tokenizer": str(material.dense)}
        request = {"model": str(material.dense), "tokens": str(material.tokens), "tool": entry.tool, "options": options, "target": str(target)}
        done = common.run_job("peer_scripts/quantizers_job.py", request, threads=threads, python=python)
        session.versions.update({f"peers' {key}" if key in ("torch", "transformers") else key: v for key, v in done.reply["versions"].items()})
        small, nbytes = comparing.with_values(original, target), done.reply["nbytes"]
    measured = comparing.judged(small, original, material.evaluation)
    weights = sum(rows * columns for rows, columns in map(original.shape, original.linears()))
    row = {
        "size": entry.size, "tool": entry.tool, "what": entry.title, "bits_per_weight": 8 * nbytes / weights, "perplexity": measured.perplexity,
        "kl": measured.kl, "top1": measured.top1, "seconds": done.seconds, "peak_mb": done.peak_memory / 1e6,
    }  # fmt: skip
    return row, measured


def conclude(session: common.Session, measured: list[Any]) -> None:
    """Our best row of each size against each peer's best."""
    from tersor.evaluation import difference

    for size in dict.fromkeys(row["size"] for row in session.rows):
        numbered = [(row, result) for row, result in zip(session.rows, measured, strict=True) if row["size"] == size]
        best = {}
        for row, result in numbered:
            if row["tool"] not in best or row["kl"] < best[row["tool"]].kl:
                best[row["tool"]] = result
        for tool, result in best.items():
            if tool != OURS:
                gap = difference(best[OURS], result, "kl")
                session.claims.append(common.Claim(f"{size} bits: divergence relative to {tool}", best[OURS].kl / result.kl, 1.0))
                session.notes.append(f"{size} bits: tersor's divergence minus {tool}'s is {gap.value:.4f} nats, standard error {gap.stderr or 0:.4f}, paired by window")


NOTES = (
    "bits_per_weight are of the linear layers of the blocks, codes, scales and zero points or minima counted; embeddings stay dense everywhere",
    "hqq packs 3-bit codes ten to 32 bits, 3.2 bits each; counted here as 3. quanto has no 3-bit type",
    "auto-round learns for few iterations here (its own 'light' recipe is 50, its default 200); its time grows in proportion",
    "the original of smollm2-135m lies on a 4-bit asymmetric group-32 grid with a float minimum: 4-bit rows measure re-gridding as much as quantisation",
    "seconds are of whole processes, run once: quality is what is compared here",
)


def main() -> int:
    """Run the benchmark."""
    flags = common.parser(__doc__, repeats=1, threads=common.cores())
    packages = ["auto-round==0.16.1", "hqq==0.2.8.post1", "optimum-quanto==0.2.7", "torch", "--extra-index-url=https://download.pytorch.org/whl/cpu"]
    common.add_peer(flags, "quantizers-python", packages)
    flags.add_argument("--iterations", type=int, default=50, help="of auto-round")
    flags.add_argument("--only", help="rows of one tool and ours")
    parsed = flags.parse_args()
    python = common.peer_python(parsed, "quantizers-python")
    session = common.Session("quantizers", parsed, notes=list(NOTES))
    quick = parsed.quick
    with TemporaryDirectory() as name:
        folder = Path(name)
        material = comparing.prepare(
            "smollm2-135m", "wikitext2.valid", "wikitext2.test", tokens=1024 if quick else 24576, context=128 if quick else 512,
            evaluation=1024 if quick else 65536, folder=folder, blocks=2 if quick else None,
        )  # fmt: skip
        from tersor.models import load

        original = load(material.dense)
        results = []
        for entry in entries(2 if quick else parsed.iterations):
            if parsed.only in (None, entry.tool) or entry.tool == OURS:
                try:
                    row, measured = run(session, material, original, entry, folder, python)
                except common.JobFailed as failure:
                    session.say(str(failure))
                    session.notes.append(f"{entry.size} bits, {entry.tool}, {entry.title}: {failure.reason()}")
                    continue
                session.rows.append(row)
                results.append(measured)
        conclude(session, results)
    session.data += [material.model, "calibration wikitext2.valid", f"held out wikitext2.test ({material.evaluation.numel():,} tokens)"]
    return session.finish()


if __name__ == "__main__":
    sys.exit(main())
