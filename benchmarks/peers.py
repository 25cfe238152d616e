"""The same job in tersor and in llm-compressor: held-out perplexity, wall time and peak memory of the whole process.

Both start from one dense float32 folder and see the same calibration windows, each in an environment and a process of its own with
the same number of threads. What each tool saved is read back by its own stack and judged by one code path on the dense values.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import common
import comparing

PEER = "llm-compressor"


@dataclass(frozen=True)
class Setting:
    """Size of the experiment."""

    model: str
    calibration: str
    held_out: str
    tokens: int
    context: int
    evaluation: int
    group_size: int


FULL = Setting("smollm2-135m", "wikitext2.valid", "wikitext2.test", 24576, 512, 65536, 64)
# 4 divides 64 and 172, the widths of the small model, and both tools take it.
QUICK = Setting("stories260k", "tinystories", "tinystories.tail", 2048, 256, 2048, 4)


def jobs(setting: Setting) -> dict[str, tuple[str, dict[str, Any]]]:
    """Title to method and options, in our names."""
    group = setting.group_size
    return {
        f"GPTQ, 3-bit asymmetric, group {group}, act-order": (
            "gptq", {"bits": 3, "group_size": group, "scheme": "asymmetric", "act_order": True, "damping": 0.01}
        ),
        "SparseGPT, 2:4": ("sparsegpt", {"keep_n": 2, "of_m": 4, "damping": 0.01}),
        f"AWQ, 4-bit asymmetric, group {group}": ("awq", {"bits": 4, "group_size": group, "scheme": "asymmetric"}),
    }  # fmt: skip


def run_ours(material: comparing.Material, method: str, options: dict[str, Any], output: Path, threads: int) -> common.Finished:
    """The job in tersor."""
    request = {
        "model": str(material.dense), "method": method, "output": str(output),
        "options": {**options, "calibration": material.options, "evaluation": {"tokens": 0}},
    }  # fmt: skip
    return common.run_job("jobs/compress.py", request, threads=threads)


def run_peer(material: comparing.Material, method: str, options: dict[str, Any], output: Path, threads: int, python: str) -> common.Finished:
    """The job in llm-compressor."""
    request = {
        "model": str(material.dense), "tokens": str(material.tokens), "method": method, "options": options, "output": str(output), "batch_size": 8,
    }  # fmt: skip
    return common.run_job("peer_scripts/llmcompressor_job.py", request, threads=threads, python=python)


def compare(session: common.Session, material: comparing.Material, original: Any, title: str, job: tuple[str, dict[str, Any]], folder: Path, python: str) -> None:
    """Run one job in both tools, in turns, and add its rows and claims."""
    method, options = job
    threads = session.flags.threads
    counter = {"tersor": 0, PEER: 0}

    def output(tool: str) -> Path:
        counter[tool] += 1
        return folder / f"{method}-{tool}-{counter[tool]}"

    session.say(title)
    runs = common.interleaved(
        session.repeats,
        {
            "tersor": lambda: run_ours(material, method, options, output("tersor"), threads),
            PEER: lambda: run_peer(material, method, options, output(PEER), threads, python),
        },
    )
    session.versions.update({f"peer's {name}" if name in ("torch", "transformers") else name: v for name, v in runs[PEER][0].reply["versions"].items()})
    target = folder / f"{method}.safetensors"
    common.run_job("peer_scripts/llmcompressor_dense.py", {"folder": str(folder / f"{method}-{PEER}-1"), "target": str(target)}, threads=threads, python=python)
    from tersor.models import load

    measured = {
        "tersor": comparing.judged(load(folder / f"{method}-tersor-1"), original, material.evaluation),
        PEER: comparing.judged(comparing.with_values(original, target), original, material.evaluation),
    }
    rows = {tool: _row(title, tool, measured[tool], runs[tool]) for tool in measured}
    session.rows += rows.values()
    _conclude(session, title, rows, measured)


def _row(title: str, tool: str, measured: Any, runs: list[common.Finished]) -> common.Row:
    return {
        "job": title, "tool": tool, "perplexity": measured.perplexity, "kl": measured.kl, "top1": measured.top1,
        "seconds": common.median(run.seconds for run in runs), "work_seconds": common.median(run.reply["work_seconds"] for run in runs),
        "cpu_seconds": common.median(run.cpu_seconds for run in runs), "peak_mb": common.median(run.peak_memory / 1e6 for run in runs),
        "seconds_of_each_run": ", ".join(f"{run.seconds:.0f}" for run in runs),
    }  # fmt: skip


def _conclude(session: common.Session, title: str, rows: dict[str, common.Row], measured: dict[str, Any]) -> None:
    from tersor.evaluation import difference

    ratio = {key: rows["tersor"][key] / rows[PEER][key] for key in ("perplexity", "seconds", "peak_mb")}
    gap = difference(measured["tersor"], measured[PEER], "nll")
    # Two standard errors of the paired difference: within them one is not worse than the other.
    allowed = 2 * (gap.stderr or 0.0)
    session.claims += [
        common.Claim(f"{title}: log-perplexity minus that of {PEER} (perplexity ratio {ratio['perplexity']:.4f})", gap.value, allowed),
        common.Claim(f"{title}: wall time relative to {PEER}", ratio["seconds"], 0.5),
        common.Claim(f"{title}: peak memory relative to {PEER}", ratio["peak_mb"], 0.5),
    ]


NOTES = (
    "seconds and peak_mb are of the whole process, from start to exit, imports, loading and saving included; work_seconds are compression and saving",
    "embeddings and the tied head stay dense in both tools; both propagate the outputs of compressed blocks and damp the Hessian by 1 % of its mean diagonal",
    f"{PEER} runs its sequential pipeline with batches of 8, tersor its main job with batches of 8; both compute in float32",
    "AWQ differs: tersor stores the inverse scale with every layer (16 bits an input), the peer folds it into the neighbour before (layer norm, v or up projection) "
    "and skips v to o under grouped-query attention; tersor also clips. As released, the peer's AWQ needs an accelerator (it pins memory); that call is switched off",
    "the original of smollm2-135m lies on a 4-bit asymmetric group-32 grid, so the 4-bit row measures re-gridding as much as quantisation",
)


def main() -> int:
    """Run the benchmark."""
    flags = common.parser(__doc__, repeats=3, threads=common.cores())
    common.add_peer(flags, "llmcompressor-python", ["llmcompressor==0.14.0.1", "torch", "--extra-index-url=https://download.pytorch.org/whl/cpu"])
    flags.add_argument("--only", choices=["gptq", "sparsegpt", "awq"], help="one method alone")
    parsed = flags.parse_args()
    python = common.peer_python(parsed, "llmcompressor-python")
    session = common.Session("peers", parsed, notes=list(NOTES))
    setting = QUICK if parsed.quick else FULL
    with TemporaryDirectory() as name:
        folder = Path(name)
        material = comparing.prepare(
            setting.model, setting.calibration, setting.held_out, tokens=setting.tokens, context=setting.context, evaluation=setting.evaluation, folder=folder
        )
        from tersor.models import load

        original = load(material.dense)
        for title, job in jobs(setting).items():
            if parsed.only in (None, job[0]):
                try:
                    compare(session, material, original, title, job, folder, python)
                except common.JobFailed as failure:
                    session.say(str(failure))
                    session.notes.append(f"{title}: {failure.reason()}")
    session.data += [setting.model, f"calibration {setting.calibration} ({setting.tokens} tokens)", f"held out {setting.held_out} ({setting.evaluation} tokens)"]
    return session.finish()


if __name__ == "__main__":
    sys.exit(main())
