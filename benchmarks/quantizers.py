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
CORRECTION = 0.25
FULL = comparing.Setting("smollm2-135m", "wikitext2.valid", "wikitext2.test", 16384, 512, 8192)
QUICK = comparing.Setting("smollm2-135m", "wikitext2.valid", "wikitext2.test", 1024, 128, 1024, blocks=2)


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
    fitted = {"method": "gptq", **grid, "act_order": True, "clip": "hessian"}
    return [
        Entry(size, OURS, f"gptq, {scheme}, act-order", fitted),
        Entry(size, OURS, f"gptq, {scheme}, act-order, correction {CORRECTION}", {**fitted, "correction": CORRECTION}),
        Entry(size, OURS, f"rtn, {scheme}, no data", {"method": "rtn", **grid, "clip": "mse"}),
    ]


def entries(iterations: int) -> list[Entry]:
    """Everything that is compared.

    quanto's 4 bits in groups of 96 and 128 with 32 bits a group average to what 4 bits in groups of 64 with 20 bits a group take.
    """
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


def quick_entries() -> list[Entry]:
    """One size with our rows, and every peer once."""
    return [entry for entry in entries(2) if entry.size == "3.30" or entry.tool != OURS][:6]


@dataclass(frozen=True)
class Contest:
    """What every entry is run with."""

    session: common.Session
    material: comparing.Material
    folder: Path
    python: str

    @property
    def threads(self) -> int:
        """Of every process."""
        return int(self.session.flags.threads)


def run_ours(contest: Contest, entry: Entry) -> tuple[common.Finished, Any, int]:
    """One of our entries: what it took, the model, bytes of its quantised layers."""
    from tersor.models import load

    options = {**entry.options, "evaluation": {"tokens": 0}}
    options["calibration"] = {**contest.material.options, "correction": options.pop("correction", 0)}
    output = contest.folder / f"{len(contest.session.rows)}"
    request = {"model": str(contest.material.dense), "method": options.pop("method"), "options": options, "output": str(output)}
    done = common.run_job("jobs/compress.py", request, threads=contest.threads)
    small = load(output)
    return done, small, sum(weight.nbytes for weight in small.weights().values())


def run_peer(contest: Contest, entry: Entry) -> tuple[common.Finished, Any, int]:
    """An entry of a peer, likewise."""
    target = contest.folder / f"{len(contest.session.rows)}.safetensors"
    request = {
        "model": str(contest.material.dense),
        "tokens": str(contest.material.tokens),
        "tool": entry.tool,
        "options": {**entry.options, "tokenizer": str(contest.material.dense)},
        "target": str(target),
    }
    done = common.run_job("peer_scripts/quantizers_job.py", request, threads=contest.threads, python=contest.python)
    contest.session.peer_versions(done.reply["versions"])
    return done, comparing.with_values(contest.material.original, target), done.reply["nbytes"]


def run(contest: Contest, entry: Entry) -> Any:
    """Run one entry, add its row, return its evaluation."""
    contest.session.say(f"{entry.size} bits: {entry.tool} {entry.title}")
    done, small, nbytes = (run_ours if entry.tool == OURS else run_peer)(contest, entry)
    original = contest.material.original
    measured = comparing.judged(small, original, contest.material.evaluation)
    weights = sum(rows * columns for rows, columns in map(original.shape, original.linears()))
    contest.session.rows.append(
        {
            "size": entry.size,
            "tool": entry.tool,
            "what": entry.title,
            "bits_per_weight": 8 * nbytes / weights,
            "perplexity": measured.perplexity,
            "kl": measured.kl,
            "top1": measured.top1,
            "seconds": done.seconds,
            "peak_mb": done.peak_memory / 1e6,
        }
    )
    return measured


def conclude(session: common.Session, measured: list[Any]) -> None:
    """Our best row of each size against each peer's best."""
    from tersor.evaluation import difference

    for size in dict.fromkeys(row["size"] for row in session.rows):
        best: dict[str, Any] = {}
        for row, result in zip(session.rows, measured, strict=True):
            if row["size"] == size and (row["tool"] not in best or row["kl"] < best[row["tool"]].kl):
                best[row["tool"]] = result
        for tool in best.keys() - {OURS} if OURS in best else ():
            gap = difference(best[OURS], best[tool], "kl")
            # Two standard errors of the paired difference: within them one is not worse than the other.
            says = f"{size} bits: divergence minus that of {tool}, nats (ratio {best[OURS].kl / best[tool].kl:.3f})"
            session.claims.append(common.Claim(says, gap.value, 2 * (gap.stderr or 0.0)))


NOTES = (
    "bits_per_weight are of the linear layers of the blocks: codes, scales, zero points or minima; embeddings stay dense everywhere",
    "hqq packs 3-bit codes ten to 32 bits, 3.2 bits each; counted here as 3. quanto has no 3-bit type",
    "auto-round learns for few iterations here (its own 'light' recipe is 50, its default 200); its time grows in proportion",
    "the original of smollm2-135m lies on a 4-bit asymmetric group-32 grid with a float minimum: 4-bit rows measure re-gridding as much as "
    "quantisation",
    "seconds are of whole processes, run once: quality is what is compared here. Bounds are two standard errors, paired by window",
)


def main() -> int:
    """Run the benchmark."""
    flags = common.parser(__doc__, repeats=1, threads=common.cores())
    packages = ["auto-round==0.16.1", "hqq==0.2.8.post1", "optimum-quanto==0.2.7"]
    common.add_peer(flags, "quantizers-python", packages)
    flags.add_argument("--iterations", type=int, default=50, help="of auto-round")
    flags.add_argument("--only", help="one peer, and our rows")
    flags.add_argument("--size", help="one size, such as 3.30; its record is its own")
    parsed = flags.parse_args()
    python = common.peer_python(parsed, "quantizers-python")
    setting = QUICK if parsed.quick else FULL
    record = "quantizers" if parsed.size is None else f"quantizers_{parsed.size.replace('.', '')}"
    session = common.Session(record, parsed, notes=list(NOTES), data=setting.data)
    with TemporaryDirectory() as name:
        contest = Contest(session, comparing.prepare(setting, Path(name), parsed.threads), Path(name), python)
        results = []
        for entry in quick_entries() if parsed.quick else entries(parsed.iterations):
            if parsed.size not in (None, entry.size) or (parsed.only not in (None, entry.tool) and entry.tool != OURS):
                continue
            try:
                results.append(run(contest, entry))
            except common.JobFailed as failure:
                session.failed(f"{entry.size} bits, {entry.tool}, {entry.title}", failure)
        conclude(session, results)
    return session.finish()


if __name__ == "__main__":
    sys.exit(main())
