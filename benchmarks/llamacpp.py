"""llama.cpp's own quantisers with an importance matrix against tersor's searched models of the same bytes.

llama.cpp's mixtures are made by its own code, called through its C interface, from the same original and with an importance matrix of
the same calibration windows: the mean squared input of every column, which is what its own tool collects. For each of its files tersor
searches a native model whose tensors take no more bytes. Every file is read back and judged by one code path on its values.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import common
import comparing

PEER, OURS = "llama.cpp", "tersor"


@dataclass(frozen=True)
class Setting:
    """Size of the experiment.

    Attributes:
        types: File types of llama.cpp.
        budgets: Those whose bytes are searched for.
        native_bits: Widths of the native menu, in groups of 64.
        calibration: Tokens that layers are fitted to.
        search: Tokens that candidates are judged on.
        generations: Of the evolutionary search.
        stages: Of the same, ``(survivors, tokens)``.
        initial: What the search starts from.
        context: Window length.
        evaluation: Held-out tokens.
        blocks: Keep only so many blocks of the model, for a trial run.
    """

    types: tuple[str, ...]
    budgets: tuple[str, ...]
    native_bits: tuple[int, ...]
    calibration: int
    search: int
    generations: int
    stages: tuple[tuple[int, int], ...]
    context: int
    evaluation: int
    initial: str = "fittest"
    blocks: int | None = None


# Types below IQ3_XXS gain next to nothing here: rows of 576 weights fall back to blocks of 32 in all of them.
FULL = Setting(
    types=("IQ3_XXS", "Q2_K", "Q3_K_M", "Q4_0", "IQ4_NL", "Q4_K_M", "Q5_K_M"),
    budgets=("IQ3_XXS", "Q4_K_M"),
    native_bits=(3, 4, 5, 6, 8),
    calibration=16384,
    search=4096,
    generations=16,
    stages=((3, 512), (1, 2048)),
    context=512,
    evaluation=8192,
)
QUICK = Setting(("Q2_K", "Q4_K_M"), ("Q2_K",), (4, 8), 1024, 1024, 2, ((2, 128), (1, 256)), 128, 1024, blocks=2)
GGUF_BITS = (4, 5, 8)  # Q4_0, Q5_0 and Q8_0 hold these as they are; Q4_1 would hold the original itself


@dataclass(frozen=True)
class Contest:
    """What every row is made with."""

    session: common.Session
    setting: Setting
    original: Any
    windows: Any
    folder: Path

    @property
    def threads(self) -> int:
        """Of every process."""
        return int(self.session.flags.threads)

    def add(self, tool: str, what: str, nbytes: int, small: Any, seconds: float) -> Any:
        """Judge ``small`` and add its row; returns the evaluation."""
        measured = comparing.judged(small, self.original, self.windows)
        self.session.rows.append(
            {
                "tool": tool,
                "what": what,
                "mb": nbytes / 1e6,
                "bits_per_weight": 8 * nbytes / self.original.n_parameters,
                "perplexity": measured.perplexity,
                "kl": measured.kl,
                "top1": measured.top1,
                "seconds": seconds,
            }
        )
        return measured


def importance(model: Any, tokens: Any) -> dict[str, Any]:
    """Mean squared input of every column of every layer, by its GGUF name, float32; the dense model's own activations."""
    from tersor.models.blocks import BlockWalk
    from tersor.models.export.gguf_architecture import architecture_of, tensor_names

    names = tensor_names(model, architecture_of(model))
    found: dict[str, Any] = {}
    for step in BlockWalk(model, tokens):
        found |= {names[f"{name}.weight"]: stats.mean_square.float().numpy() for name, stats in step.stats.items()}
    return found


def tensor_bytes(path: Path) -> int:
    """Bytes of the tensors in a GGUF file: vocabulary and metadata are not what quantisers differ in."""
    from tersor.models.gguf_reader import read_gguf

    return sum(tensor.nbytes for tensor in read_gguf(path).tensors)


def make_job(original: Any, setting: Setting, folder: Path, grid: dict[str, Any], bits: tuple[int, ...]) -> Any:
    """A job with GPTQ at ``bits`` for the layers and rounding for the embedding table, fitted and searched on the validation text."""
    from tersor.pipeline.job import Job
    from tersor.pipeline.recipe import parse_recipe

    recipe = {
        "levels": [{"method": "gptq", "bits": list(bits), "act_order": True, "clip": "hessian", **grid}],
        "embeddings": [{"method": "rtn", "bits": list(bits), "clip": "mse", **grid}],
        "budget": "1GB",
        "search": {"tokens": setting.search, "stages": setting.stages, "generations": setting.generations, "initial": setting.initial},
        "calibration": {"text": "wikitext2.valid", "tokens": setting.calibration, "held_out": 2048, "context": setting.context},
        "evaluation": {"tokens": 0},
    }
    return Job(original, parse_recipe(recipe), folder)


def peer_rows(contest: Contest, tokens: Any, python: str) -> dict[str, tuple[int, Any]]:
    """Quantise with every type of llama.cpp; bytes and evaluation by type."""
    import numpy as np

    from tersor.models import load

    source, matrix = contest.folder / "original.gguf", contest.folder / "importance.npz"
    contest.original.export(source, format="gguf", verify=False)
    np.savez(matrix, **importance(contest.original, tokens))
    found = {}
    for kind in contest.setting.types:
        contest.session.say(f"{PEER} {kind}")
        target = contest.folder / f"{kind}.gguf"
        request = {"source": str(source), "target": str(target), "type": kind, "importance": str(matrix), "threads": contest.threads}
        done = common.run_job("peer_scripts/llama_quantize.py", request, threads=contest.threads, python=python)
        contest.session.peer_versions(done.reply["versions"])
        nbytes = tensor_bytes(target)
        found[kind] = (nbytes, contest.add(PEER, f"{kind}, importance matrix", nbytes, load(target), done.reply["seconds"]))
    return found


def native_file(small: Any, path: Path) -> tuple[int, Any]:
    """Bytes of the native file of ``small``, and the model itself."""
    from tersor.models.storage import safetensors_size

    return safetensors_size(small), small


def gguf_file(small: Any, path: Path) -> tuple[int, Any]:
    """Bytes of the GGUF tensors of ``small``, and the model that the file holds."""
    from tersor.models import load

    small.export(path, format="gguf", verify=False)
    return tensor_bytes(path), load(path)


def own_rows(
    contest: Contest, peers: dict[str, tuple[int, Any]], form: str, job: Any, written: Callable[[Any, Path], tuple[int, Any]]
) -> None:
    """Search under the bytes of each budget type and hold the result against llama.cpp's of that type."""
    from tersor.evaluation import difference
    from tersor.pipeline.recipe import Search

    contest.session.say(f"fitting the levels of the {form} menu")
    began = time.perf_counter()
    _ = job.menu
    fitting = time.perf_counter() - began
    for kind, method in product(contest.setting.budgets, ("knapsack", "evopress")):
        budget, theirs = peers[kind]
        what = f"{form}, {method} at the bytes of {kind}"
        contest.session.say(f"{OURS} {what}")
        began = time.perf_counter()
        search = Search(**{**job.recipe.search.model_dump(), "method": method})
        found = job.search(budget, search, contest.folder / f"{form}-{kind}-{method}.json")
        seconds = fitting + time.perf_counter() - began
        nbytes, small = written(job.assemble(found.choices), contest.folder / f"{form}-{kind}-{method}.gguf")
        measured = contest.add(OURS, what, nbytes, small, seconds)
        gap = difference(measured, theirs, "kl")
        # Two standard errors of the paired difference: within them one is not worse than the other.
        says = f"{what}: divergence minus llama.cpp's, nats (ratio {measured.kl / theirs.kl:.3f})"
        contest.session.claims.append(common.Claim(says, gap.value, 2 * (gap.stderr or 0.0)))


NOTES = (
    "bytes are of all tensors; of native files the whole tensor file with its header, of GGUF without vocabulary and metadata",
    "the importance matrix is the dense model's mean squared input over the calibration windows, handed to llama_model_quantize as its "
    "command-line tool does; the tied embedding table has no entry, as in llama.cpp's own files",
    "rows of 576 weights are no multiple of 256: llama.cpp stores most matrices of this model in types of 32-blocks whatever the name "
    "says. Go by bits_per_weight; it cannot make this model smaller than its smallest row here",
    "the original lies on a 4-bit asymmetric group-32 grid (Q4_1): above about 5 bits a weight both mostly measure how they leave it",
    "the GGUF menu is Q4_0, Q5_0 and Q8_0, and its files run in llama.cpp; Q4_1 is left out because it holds this original exactly. "
    "Native files hold grids of 3 to 8 bits in groups of 64 and run in tersor",
    "seconds of llama.cpp leave the importance matrix out; ours hold the fitting of every level, which all budgets share. Bounds are two "
    "standard errors, paired by window",
)


def _asked(setting: Setting, flags: Any) -> Setting:
    """``setting`` with what the flags change."""
    types = tuple(flags.types or setting.types)
    budgets = tuple(kind for kind in setting.budgets if kind in types)
    generations = setting.generations if flags.generations is None else flags.generations
    return replace(setting, types=types, budgets=budgets, generations=generations, initial=flags.initial or setting.initial)


def main() -> int:
    """Run the benchmark."""
    flags = common.parser(__doc__, repeats=1, threads=common.cores())
    common.add_peer(flags, "llamacpp-python", ["llama-cpp-python==0.3.36", "numpy"])
    flags.add_argument("--types", nargs="+", help="of llama.cpp, instead of all")
    flags.add_argument("--generations", type=int, help="of the search")
    flags.add_argument("--initial", choices=["fittest", "knapsack"], help="what the search starts from; fittest measures every layer first")
    parsed = flags.parse_args()
    python = common.peer_python(parsed, "llamacpp-python")
    setting = _asked(QUICK if parsed.quick else FULL, parsed)
    data_used = ["smollm2-135m", "calibration and search wikitext2.valid", f"held out wikitext2.test ({setting.evaluation:,} tokens)"]
    session = common.Session("llamacpp", parsed, notes=list(NOTES), data=data_used)
    import torch

    from tersor import data
    from tersor.models import load

    torch.set_num_threads(parsed.threads)
    with TemporaryDirectory() as name:
        folder = Path(name)
        original = load("smollm2-135m")
        if setting.blocks:
            comparing.shorten(original, setting.blocks)
        windows = data.windows(original.encode(data.text("wikitext2.test")), setting.context)[: setting.evaluation // setting.context]
        contest = Contest(session, setting, original, windows, folder)
        native = make_job(original, setting, folder / "native", {"group_size": 64}, setting.native_bits)
        peers = peer_rows(contest, native.texts.calibration, python)
        own_rows(contest, peers, "native", native, native_file)
        gguf = make_job(original, setting, folder / "gguf", {"group_size": 32, "scheme": "symmetric"}, GGUF_BITS)
        own_rows(contest, peers, "GGUF", gguf, gguf_file)
    return session.finish()


if __name__ == "__main__":
    sys.exit(main())
