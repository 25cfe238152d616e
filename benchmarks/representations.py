"""Every representation at equal bytes: held-out perplexity and divergence, compress time, tokens a second; and a search over all.

All methods are fitted to the same inputs of the original's layers, each at the largest setting that fits the bytes. Bytes are those of the
linear layers of the blocks, every scale, mask, index and codebook counted; embeddings stay as they are.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import common
from fitting import FRACTIONS, METHODS, Layer

ORIGINAL, MIXTURE = "original", "searched mixture"


@dataclass(frozen=True)
class Scale:
    """How much work the benchmark spends.

    Attributes:
        model: What :func:`tersor.load` takes.
        text: Fitted and searched on.
        held_out: Judged on; ``NAME.tail`` is the last fifth of ``NAME``.
        context: Tokens of a window.
        calibration: Tokens that layers are fitted to.
        search: Tokens that the search judges candidates on.
        evaluation: Tokens that rows are judged on.
        every: Compress each so many-th block.
        sweeps: Of the dictionaries.
        generations: Of the search at each size.
        offspring: Candidates a generation.
        stages: Survivors and tokens of each stage of the search.
        new_tokens: Written when the speed is measured.
    """

    model: str
    text: str
    held_out: str
    context: int
    calibration: int
    search: int
    evaluation: int
    every: int
    sweeps: int
    generations: int
    offspring: int
    stages: tuple[tuple[int, int], ...]
    new_tokens: int


FULL = Scale("smollm2-135m", "wikitext2.valid", "wikitext2.test", 512, 8192, 1024, 2048, 3, 2, 6, 8, ((2, 256), (1, 512)), 12)
QUICK = Scale("stories260k", "tinystories", "tinystories.tail", 128, 2048, 1024, 1024, 2, 2, 3, 4, ((2, 128), (1, 256)), 4)


LEVELS = [(label, fraction) for fraction in FRACTIONS for label in METHODS]


@dataclass
class Bench:
    """The original, the levels of its layers on disk, and what they are judged on.

    Attributes:
        session: Where rows go.
        scale: How much work.
        model: The original.
        database: Every level of every chosen layer, in the order of :data:`LEVELS`.
        layers: The chosen layers.
        search: Windows that candidates are judged on.
        judge: Measures models on held-out windows.
        seconds: Spent in a method at a size, over the chosen layers.
    """

    session: common.Session
    scale: Scale
    model: Any
    database: Any
    layers: list[str]
    search: Any
    judge: Any
    seconds: dict[tuple[str, float], float]

    @property
    def weights(self) -> int:
        """Entries of the chosen layers."""
        return sum(rows * columns for rows, columns in map(self.model.shape, self.layers))

    def judged(self, choices: Sequence[int]) -> Any:
        """Perplexity and divergence with the chosen levels as dense layers: the same numbers, and every method runs alike."""
        from tersor.weights.modules import bias_of, set_matrix, set_offset

        student = self.model.copy()
        for name, level in zip(self.layers, choices, strict=True):
            layer, weight = student.module.get_submodule(name), self.database.weight(name, level)
            set_matrix(layer, weight.dense())
            set_offset(layer, weight.offset, bias_of(layer))
        return self.judge(student)

    def decode(self, choices: Sequence[int] | None) -> float:
        """Tokens a second of a model in which the blocks that were left out carry the weights of the chosen block before them."""
        from tersor.evaluation.speed import measure_speed

        fast, known = self.model.copy(), self.model.linears().keys()
        for name, level in zip(self.layers, choices, strict=True) if choices is not None else ():
            weight, block = self.database.weight(name, level), block_of(name)
            twins = [name.replace(f".{block}.", f".{number}.", 1) for number in range(block, block + self.scale.every)]
            for twin in known & set(twins):
                fast.replace(twin, weight)
        return measure_speed(fast, self.judge.windows[0, :16], new_tokens=self.scale.new_tokens, repeats=self.session.repeats).decode

    def add(self, method: str, fraction: float | None, choices: Sequence[int] | None, seconds: float | None) -> None:
        """Judge a model and add its row; the original has no choices."""
        self.session.say(f"{method} at {'full size' if fraction is None else f'{fraction:.0%}'}")
        measured = self.judge(self.model) if choices is None else self.judged(choices)
        self.session.rows.append(
            {
                "budget": "" if fraction is None else f"{fraction:.0%}",
                "method": method,
                "of_bfloat16": 1.0 if choices is None else self.nbytes(choices) / (2 * self.weights),
                "perplexity": measured.perplexity,
                "kl": measured.kl,
                "compress_seconds": seconds,
                "decode_tokens_per_s": self.decode(choices),
            }
        )

    def nbytes(self, choices: Sequence[int]) -> int:
        """Stored bytes of the chosen layers."""
        return sum(self.database.levels(name)[level].nbytes for name, level in zip(self.layers, choices, strict=True))


def block_of(name: str) -> int:
    """Number of the block of a layer."""
    return next(int(part) for part in name.split(".") if part.isdigit())


def prepare(session: common.Session, scale: Scale, folder: Path) -> Bench:
    """Fit every level of the chosen layers, block by block, on the inputs that they have in the original."""
    import torch

    from tersor import data
    from tersor.models import load
    from tersor.models.blocks import BlockWalk
    from tersor.papers.workbench import Judge, split_texts
    from tersor.pipeline.levels import LevelDatabase

    torch.set_num_threads(session.flags.threads)
    model = load(scale.model)
    fitted, held_out = (data.windows(model.encode(text), scale.context) for text in split_texts(scale.text, scale.held_out))
    first = scale.calibration // scale.context
    search, windows = fitted[first : first + scale.search // scale.context], held_out[: scale.evaluation // scale.context]
    database, seconds, layers = LevelDatabase(folder / "levels"), defaultdict(float), []
    for step in BlockWalk(model, fitted[:first]):
        if step.index % scale.every:
            continue
        session.say(f"fitting {step.name}")
        found = fit({name: Layer(model.matrix(name), stats, scale.sweeps) for name, stats in step.stats.items()}, seconds)
        for name, levels in found.items():
            database.write(name, levels)
            layers.append(name)
    return Bench(session, scale, model, database, layers, search, Judge.of(model, windows), seconds)


def fit(layers: dict[str, Layer], seconds: dict[tuple[str, float], float]) -> dict[str, list[tuple[Any, Any]]]:
    """Every level of the layers of one block; what layers of one input derive from it is shared within a method, not between methods."""
    from tersor.layerwise import layer_error
    from tersor.pipeline.levels import Level

    found: dict[str, list[tuple[Any, Any]]] = {name: [] for name in layers}
    originals = {name: layer.stats for name, layer in layers.items()}
    for label, fraction in LEVELS:
        fresh = {id(stats): replace(stats, cache={}) for stats in originals.values()}
        for name, layer in layers.items():
            layer.stats = fresh[id(originals[name])]
            layer.saved, began = 0.0, time.perf_counter()
            weight = METHODS[label](layer, fraction)
            spent = time.perf_counter() - began + layer.saved
            seconds[label, fraction] = seconds.get((label, fraction), 0.0) + spent
            error = layer_error(layer.matrix, weight, layer.stats)
            found[name].append((Level(label, {"keep": fraction}, weight.nbytes, error, None, spent), weight))
    return found


def single(bench: Bench, label: str, fraction: float) -> tuple[int, ...]:
    """The choices of one method everywhere."""
    return (LEVELS.index((label, fraction)),) * len(bench.layers)


def mixtures(bench: Bench, folder: Path) -> Iterator[tuple[float, tuple[int, ...], float]]:
    """At each size, what the search finds among all levels, and its seconds; it starts from the best single method or a knapsack."""
    from tersor.allocation import Problem, Unit, evopress, fill, lgreco
    from tersor.pipeline.dtypes import fast_dtype
    from tersor.pipeline.fitness import KLFitness

    menus = {name: bench.database.levels(name) for name in bench.layers}
    units = tuple(
        Unit(name, tuple(level.nbytes for level in menu), tuple(level.error for level in menu), bench.model.matrix(name).numel())
        for name, menu in menus.items()
    )
    judge = KLFitness(bench.model, bench.database, bench.layers, bench.search, folder / "teacher.npy", fast_dtype())
    scale = bench.scale
    for fraction in FRACTIONS:
        bench.session.say(f"searching at {fraction:.0%}")
        began = time.perf_counter()
        problem = Problem(units, int(fraction * 2 * bench.weights))
        starts = [choices for label in METHODS if problem.feasible(choices := single(bench, label, fraction))]
        starts.append(lgreco(problem).choices)
        values = judge(starts, parent=starts[0], tokens=scale.stages[-1][1], seed=0)
        best = fill(problem, min(zip(values, starts, strict=True))[1])
        found = evopress(
            problem, judge, generations=scale.generations, offspring=scale.offspring, stages=scale.stages, seed=0, initial=best
        )
        yield fraction, tuple(found.choices), time.perf_counter() - began


def conclude(session: common.Session) -> None:
    """The mixture against the best single method of each size."""
    for budget in dict.fromkeys(row["budget"] for row in session.rows if row["budget"]):
        rows = [row for row in session.rows if row["budget"] == budget]
        mixed = next(row for row in rows if row["method"] == MIXTURE)
        best = min((row for row in rows if row["method"] != MIXTURE), key=lambda row: row["kl"])
        says = f"{budget} of bfloat16: divergence of the searched mixture over that of the best single method, {best['method']}"
        session.claims.append(common.Claim(says, mixed["kl"] / best["kl"], 1.0))


def plot(session: common.Session) -> None:
    """Divergence against bytes, a line a method, as ``representations.svg`` beside the record."""
    import vl_convert

    from tersor.evaluation.charts import curves

    rows = [row for row in session.rows if row["budget"]]
    values = [{"size": 100 * row["of_bfloat16"], "kl": row["kl"], "method": row["method"]} for row in rows]
    spec = curves(values, "size", "kl", "method", titles=("Bytes, % of bfloat16", "KL to the original (nats a token)"))
    if session.folder is not None:
        session.folder.mkdir(parents=True, exist_ok=True)
        svg = vl_convert.vegalite_to_svg({**spec, "width": 640, "background": "white"})
        (session.folder / f"{session.name}.svg").write_text(svg, encoding="utf-8")


def notes(scale: Scale) -> list[str]:
    """What a reader must know."""
    blocks = "" if scale.every == 1 else f"one block in {scale.every} is compressed, the others are as they were; "
    return [
        f"{blocks}compress_seconds are those of the compressed layers times {scale.every}, without the pass that collects inputs, and of "
        "the mixture those of the search; tokens a second are of a model in which all blocks are compressed",
        f"{scale.calibration:,} tokens to fit, {scale.search:,} to search, {scale.evaluation:,} held out; dictionaries took {scale.sweeps} "
        f"sweeps, the search {scale.generations} generations of {scale.offspring}: made for one core in under half an hour",
        "every method is set to the most bytes within the budget that its setting reaches in each layer: of_bfloat16 is what it takes",
        "smollm2-135m was stored in 4 bits before it was packaged: few bits lose less than they would elsewhere; grids here are symmetric",
        "the plot is representations.svg",
    ]


def main() -> int:
    """Run the benchmark."""
    parsed = common.parser(__doc__, repeats=1, threads=1).parse_args()
    scale = QUICK if parsed.quick else FULL
    session = common.Session("representations", parsed, data=[scale.model, scale.text, scale.held_out], notes=notes(scale))
    with TemporaryDirectory() as name:
        bench = prepare(session, scale, Path(name))
        bench.add(ORIGINAL, None, None, None)
        for label, fraction in LEVELS:
            bench.add(label, fraction, single(bench, label, fraction), scale.every * bench.seconds[label, fraction])
        for fraction, choices, seconds in mixtures(bench, Path(name)):
            bench.add(MIXTURE, fraction, choices, seconds)
            chosen = defaultdict(int)
            for level in choices:
                chosen[LEVELS[level][0]] += 1
            counted = ", ".join(f"{count} {label}" for label, count in sorted(chosen.items()))
            session.notes.append(f"layers of the mixture at {fraction:.0%}: {counted}")
    conclude(session)
    plot(session)
    return session.finish()


if __name__ == "__main__":
    sys.exit(main())
