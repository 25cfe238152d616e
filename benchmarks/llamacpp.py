"""llama.cpp's own quantisers with an importance matrix against tersor's searched models of the same bytes.

llama.cpp's mixtures are made by its own code, called through its C interface, from the same original and with an importance matrix of
the same calibration windows: the mean squared input of every column, which is what its own tool collects. For each of its files tersor
searches a native model whose tensors take no more bytes. Every file is read back and judged by one code path on its values.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import common
import comparing

PEER, OURS = "llama.cpp", "tersor"


@dataclass(frozen=True)
class Setting:
    """Size of the experiment."""

    types: tuple[str, ...]
    budgets: tuple[str, ...]
    bits: tuple[int, ...]
    method: dict[str, Any]
    calibration: int
    search: int
    generations: int
    stages: tuple[tuple[int, int], ...]
    evaluation: int
    blocks: int | None = None


# Types below IQ3_XXS gain next to nothing here: rows of 576 weights fall back to blocks of 32 in all of them.
FULL = Setting(
    ("IQ3_XXS", "Q2_K", "Q3_K_M", "Q4_0", "IQ4_NL", "Q4_K_M", "Q5_K_M"), ("IQ3_XXS", "Q3_K_M", "Q4_K_M"), (3, 4, 5, 6, 8),
    {"method": "gptq", "group_size": 64, "act_order": True, "clip": "hessian"}, 24576, 8192, 30, ((3, 512), (1, 2048)), 65536,
)  # fmt: skip
QUICK = Setting(("Q2_K", "Q4_K_M"), ("Q2_K",), (3, 4, 6, 8), {"method": "gptq", "group_size": 64}, 1024, 1024, 2, ((2, 128), (1, 256)), 1024, 2)


def importance(model: Any, tokens: Any) -> dict[str, Any]:
    """Mean squared input of every column of every layer, by its GGUF name, float32; the dense model's own activations."""
    from tersor.models.blocks import BlockWalk
    from tersor.models.export.gguf_architecture import architecture_of, tensor_names

    names = tensor_names(model, architecture_of(model))
    found = {}
    for step in BlockWalk(model, tokens):
        found |= {names[f"{name}.weight"]: stats.mean_square.float().numpy() for name, stats in step.stats.items()}
    return found


def tensor_bytes(path: Path) -> int:
    """Bytes of the tensors in a GGUF file: vocabulary and metadata are not what quantisers differ in."""
    from tersor.models.gguf_reader import read_gguf

    return sum(tensor.nbytes for tensor in read_gguf(path).tensors)


def make_job(original: Any, setting: Setting, folder: Path) -> Any:
    """A job over five widths for the layers and the embedding table, fitted and searched on the validation text."""
    from tersor.pipeline.job import Job
    from tersor.pipeline.recipe import parse_recipe

    context = 128 if setting.blocks else 512
    recipe = {
        "levels": [{**setting.method, "bits": list(setting.bits)}],
        "embeddings": [{"method": "rtn", "bits": list(setting.bits), "group_size": 64, "clip": "mse"}],
        "budget": "1GB",
        "search": {"tokens": setting.search, "stages": setting.stages, "generations": setting.generations},
        "calibration": {"text": "wikitext2.valid", "tokens": setting.calibration, "held_out": 2048, "context": context},
        "evaluation": {"tokens": 0},
    }
    return Job(original, parse_recipe(recipe), folder)


def peer_rows(session: common.Session, original: Any, setting: Setting, tokens: Any, windows: Any, folder: Path, python: str) -> dict[str, tuple[int, Any]]:
    """Quantise with every type of llama.cpp; bytes and evaluation by type."""
    import numpy as np

    from tersor.models import load

    source, matrix = folder / "original.gguf", folder / "importance.npz"
    original.export(source, format="gguf", verify=False)
    np.savez(matrix, **importance(original, tokens))
    found = {}
    for kind in setting.types:
        session.say(f"{PEER} {kind}")
        target = folder / f"{kind}.gguf"
        request = {"source": str(source), "target": str(target), "type": kind, "importance": str(matrix), "threads": session.flags.threads}
        done = common.run_job("peer_scripts/llama_quantize.py", request, threads=session.flags.threads, python=python)
        session.versions.update(done.reply["versions"])
        nbytes = tensor_bytes(target)
        measured = comparing.judged(load(target), original, windows)
        session.rows.append(row(PEER, f"{kind} with importance matrix", nbytes, original, measured, done.reply["seconds"]))
        found[kind] = (nbytes, measured)
    return found


def own_rows(session: common.Session, original: Any, setting: Setting, windows: Any, folder: Path, peers: dict[str, tuple[int, Any]], job: Any) -> None:
    """Search a native model under the bytes of each budget type, and export the searched model as GGUF where its types hold it."""
    import time

    from tersor.evaluation import difference
    from tersor.models.storage import safetensors_size
    from tersor.pipeline.recipe import Search

    session.say("fitting levels")
    began = time.perf_counter()
    _ = job.menu
    fitting = time.perf_counter() - began
    for kind in setting.budgets:
        budget, theirs = peers[kind]
        for method in ("knapsack", "evopress"):
            session.say(f"{OURS} {method} at the bytes of {kind}")
            began = time.perf_counter()
            options = job.recipe.search.model_dump() | {"method": method}
            small = job.assemble(job.search(budget, Search(**options), folder / f"{kind}-{method}.json").choices)
            seconds = fitting + time.perf_counter() - began
            measured = comparing.judged(small, original, windows)
            nbytes = safetensors_size(small)
            session.rows.append(row(OURS, f"{method}, native, at the bytes of {kind}", nbytes, original, measured, seconds))
            gap = difference(measured, theirs, "kl")
            session.claims.append(common.Claim(f"{method} at the bytes of {kind}: divergence relative to llama.cpp", measured.kl / theirs.kl, 1.0))
            session.notes.append(f"{method} at the bytes of {kind}: divergence minus llama.cpp's {gap.value:.4f} nats, standard error {gap.stderr or 0:.4f}")


def row(tool: str, what: str, nbytes: int, original: Any, measured: Any, seconds: float) -> common.Row:
    """A row of the table."""
    return {
        "tool": tool, "what": what, "mb": nbytes / 1e6, "bits_per_weight": 8 * nbytes / original.n_parameters, "perplexity": measured.perplexity,
        "kl": measured.kl, "top1": measured.top1, "seconds": seconds,
    }  # fmt: skip


NOTES = (
    "bytes are of all tensors; of ours the whole tensor file with its header, of llama.cpp without vocabulary and metadata",
    "the importance matrix is the dense model's mean squared input over the calibration windows, handed to llama_model_quantize as its tool does; "
    "the tied embedding table has no entry, as in llama.cpp's own files",
    "rows of 576 weights are no multiple of 256: llama.cpp stores most matrices of this model in types of 32-blocks whatever the name says. "
    "Go by bits_per_weight; it cannot make this model smaller than its smallest row here, tersor can",
    "the original lies on a 4-bit asymmetric group-32 grid (Q4_1): above about 5 bits a weight both tools mostly measure how they leave that grid",
    "ours are native files; llama.cpp has no type for grids of 3, 5 and 6 bits in groups of 64, so they do not run there at this size",
    "seconds of llama.cpp leave the importance matrix out; ours hold the fitting of every level, shared by all budgets",
)


def main() -> int:
    """Run the benchmark."""
    flags = common.parser(__doc__, repeats=1, threads=common.cores())
    common.add_peer(flags, "llamacpp-python", ["llama-cpp-python==0.3.36", "numpy"])
    parsed = flags.parse_args()
    python = common.peer_python(parsed, "llamacpp-python")
    setting = QUICK if parsed.quick else FULL
    session = common.Session("llamacpp", parsed, notes=list(NOTES))
    import torch

    torch.set_num_threads(parsed.threads)
    with TemporaryDirectory() as name:
        folder = Path(name)
        from tersor import data
        from tersor.models import load

        original = load("smollm2-135m")
        if setting.blocks:
            comparing.shorten(original, setting.blocks)
        job = make_job(original, setting, folder / "job")
        tokens = job.texts.calibration
        windows = data.windows(original.encode(data.text("wikitext2.test")), tokens.shape[1])[: setting.evaluation // tokens.shape[1]]
        peers = peer_rows(session, original, setting, tokens, windows, folder, python)
        own_rows(session, original, setting, windows, folder, peers, job)
    session.data += ["smollm2-135m", "calibration and search wikitext2.valid", f"held out wikitext2.test ({windows.numel():,} tokens)"]
    return session.finish()


if __name__ == "__main__":
    sys.exit(main())
