"""The same job in tersor and in llm-compressor: held-out perplexity, wall time and peak memory of the whole process.

Both start from one dense float32 folder and see the same calibration windows, each in an environment and a process of its own with
the same number of threads. What each tool saved is read back by its own stack and judged by one code path on the dense values.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import common
import comparing

OURS, PEER, FASTER_PEER = "tersor", "llm-compressor, float32", "llm-compressor, bfloat16"


FULL = comparing.Setting("smollm2-135m", "wikitext2.valid", "wikitext2.test", 24576, 512, 32768)
# 4 divides 64 and 172, the widths of the small model, and both tools take it.
QUICK = comparing.Setting("stories260k", "tinystories", "tinystories.tail", 2048, 256, 2048, group_size=4)


@dataclass(frozen=True)
class Contest:
    """What every comparison of this benchmark uses: the record, the material, where to write, and the peer's interpreter."""

    session: common.Session
    material: comparing.Material
    folder: Path
    python: str

    @property
    def threads(self) -> int:
        """Of every process."""
        return int(self.session.flags.threads)


def jobs(setting: comparing.Setting, refit: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Title to method and options, in our names."""
    group = setting.group_size
    return {
        f"GPTQ, 3-bit asymmetric, group {group}, act-order": (
            "gptq", {"bits": 3, "group_size": group, "scheme": "asymmetric", "act_order": True, "damping": 0.01}
        ),
        "SparseGPT, 2:4": ("sparsegpt", {"keep_n": 2, "of_m": 4, "damping": 0.01, "refit": refit}),
        f"AWQ, 4-bit asymmetric, group {group}": ("awq", {"bits": 4, "group_size": group, "scheme": "asymmetric"}),
    }  # fmt: skip


def run_ours(contest: Contest, method: str, options: dict[str, Any], output: Path) -> common.Finished:
    """The job in tersor."""
    material = contest.material
    full = {**options, "calibration": material.options, "evaluation": {"tokens": 0}}
    request = {"model": str(material.dense), "method": method, "options": full, "output": str(output)}
    return common.run_job("jobs/compress.py", request, threads=contest.threads)


def run_peer(contest: Contest, method: str, options: dict[str, Any], output: Path, dtype: str) -> common.Finished:
    """The job in llm-compressor, the model loaded in ``dtype``."""
    material = contest.material
    request = {
        "model": str(material.dense),
        "tokens": str(material.tokens),
        "method": method,
        "options": {name: value for name, value in options.items() if name != "refit"},  # it has nothing of the kind
        "output": str(output),
        "batch_size": 8,  # as ours
        "dtype": dtype,
    }
    return common.run_job("peer_scripts/llmcompressor_job.py", request, threads=contest.threads, python=contest.python)


def read_peer(contest: Contest, output: Path) -> Any:
    """The model that the peer saved at ``output``, as its own stack reads it."""
    target = output.with_suffix(".safetensors")
    request = {"folder": str(output), "target": str(target)}
    common.run_job("peer_scripts/llmcompressor_dense.py", request, threads=contest.threads, python=contest.python)
    return comparing.with_values(contest.material.original, target)


def compare(contest: Contest, title: str, method: str, options: dict[str, Any]) -> None:
    """Run one job in both tools, in turns, and add its rows and claims."""
    from tersor.models import load

    contest.session.say(title)
    outputs: dict[str, list[Path]] = {OURS: [], PEER: [], FASTER_PEER: []}

    def run(tool: str) -> common.Finished:
        output = contest.folder / f"{method}-{list(outputs).index(tool)}-{len(outputs[tool])}"
        outputs[tool].append(output)
        if tool == OURS:
            return run_ours(contest, method, options, output)
        return run_peer(contest, method, options, output, tool.rpartition(" ")[2])

    runs = common.interleaved(contest.session.repeats, {tool: partial(run, tool) for tool in outputs})
    contest.session.peer_versions(runs[PEER][0].reply["versions"])
    models = {tool: load(made[0]) if tool == OURS else read_peer(contest, made[0]) for tool, made in outputs.items()}
    material = contest.material
    measured = {tool: comparing.judged(model, material.original, material.evaluation) for tool, model in models.items()}
    rows = {tool: _row(title, tool, measured[tool], runs[tool]) for tool in measured}
    contest.session.rows += rows.values()
    for peer in (PEER, FASTER_PEER):
        _conclude(contest.session, title, peer, rows, measured)


def _row(title: str, tool: str, measured: Any, runs: list[common.Finished]) -> common.Row:
    return {
        "job": title, "tool": tool, "perplexity": measured.perplexity, "kl": measured.kl, "top1": measured.top1,
        "seconds": common.median(run.seconds for run in runs), "work_seconds": common.median(run.reply["work_seconds"] for run in runs),
        "cpu_seconds": common.median(run.cpu_seconds for run in runs), "peak_mb": common.median(run.peak_memory / 1e6 for run in runs),
        "seconds_of_each_run": ", ".join(f"{run.seconds:.0f}" for run in runs),
    }  # fmt: skip


def _conclude(session: common.Session, title: str, peer: str, rows: dict[str, common.Row], measured: dict[str, Any]) -> None:
    from tersor.evaluation import difference

    ratio = {key: rows[OURS][key] / rows[peer][key] for key in ("perplexity", "seconds", "peak_mb")}
    gap = difference(measured[OURS], measured[peer], "nll")
    # Two standard errors of the paired difference: within them one is not worse than the other.
    allowed = 2 * (gap.stderr or 0.0)
    session.claims += [
        common.Claim(f"{title}: log-perplexity minus that of {peer} (perplexity ratio {ratio['perplexity']:.4f})", gap.value, allowed),
        common.Claim(f"{title}: wall time relative to {peer}", ratio["seconds"], 0.5),
        common.Claim(f"{title}: peak memory relative to {peer}", ratio["peak_mb"], 0.5),
    ]


NOTES = (
    "seconds and peak_mb are of the whole process, from start to exit: imports, loading and saving included; work_seconds are compression "
    "and saving",
    "embeddings and the tied head stay dense in both; both fit each block on the outputs of compressed blocks, damp the Hessian by 1 % of "
    "its mean diagonal and run batches of 8 windows",
    "tersor keeps weights in float32 and runs the forward passes of calibration in bfloat16 where the processor multiplies it; the peer "
    "runs in the type that its model was loaded in, so it is shown in both. In bfloat16 it also rounds the weights that it starts from",
    "SparseGPT: the peer's is as published; ours refits the kept values on the published mask by as many conjugate gradient "
    "steps as --refit says, none unless asked",
    "AWQ differs: tersor stores an inverse scale with every layer (16 bits an input) and clips; the peer folds the scale into the norm or "
    "projection before, and skips v to o under grouped-query attention. As released, its AWQ pins memory and so needs an accelerator; that "
    "call is switched off here",
    "the original of smollm2-135m lies on a 4-bit asymmetric group-32 grid, so the 4-bit row measures re-gridding as much as quantisation",
)


def main() -> int:
    """Run the benchmark."""
    flags = common.parser(__doc__, repeats=3, threads=common.cores())
    common.add_peer(flags, "llmcompressor-python", ["llmcompressor==0.14.0.1"])
    flags.add_argument("--only", choices=["gptq", "sparsegpt", "awq"], help="one method alone, in a record of its own")
    flags.add_argument("--tokens", type=int, help="to fit on; AWQ of the peer was at block 11 of 30 after 860 s with the default")
    flags.add_argument("--refit", type=int, default=0, help="steps by which our SparseGPT refits what it keeps")
    parsed = flags.parse_args()
    python = common.peer_python(parsed, "llmcompressor-python")
    setting = QUICK if parsed.quick else FULL
    setting = replace(setting, tokens=parsed.tokens or setting.tokens)
    session = common.Session("peers" if parsed.only is None else f"peers_{parsed.only}", parsed, notes=list(NOTES), data=setting.data)
    with TemporaryDirectory() as name:
        contest = Contest(session, comparing.prepare(setting, Path(name), parsed.threads), Path(name), python)
        for title, (method, options) in jobs(setting, parsed.refit).items():
            if parsed.only not in (None, method):
                continue
            try:
                compare(contest, title, method, options)
            except common.JobFailed as failure:
                session.failed(title, failure)
    return session.finish()


if __name__ == "__main__":
    sys.exit(main())
