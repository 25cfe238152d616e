"""CoSpaDi: a learned dictionary with sparse codes is closer to a layer's output than a low-rank matrix of the same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from tersor.papers.frame import Paper, Result, Row
from tersor.papers.one_shot import OneShot, Size
from tersor.weights import DictionaryWeight

PAPER = Paper(
    key="cospadi",
    claim="At the same exact bytes the dictionaries fitted to the inputs keep the model closer to the original than low rank fitted to the "
    "inputs (SVD-LLM), and dictionaries fitted to nothing closer than plain SVD.",
    where="tersor.layerwise.cospadi, tersor.layerwise.cospadi_group, tersor.weights.DictionaryWeight",
)


@dataclass(frozen=True)
class Effort:
    """Sweeps of the dictionaries: of the claimed method, and of each variant."""

    keeps: tuple[float, ...]
    iterations: int
    variants: int


FULL = Size("smollm2-135m", 6144, 1024, 512, "wikitext2.valid", "wikitext2.test", every=8, together=2)
QUICK = Size("stories260k", 8192, 4096, 256, "tinystories", "tinystories.tail")
EFFORT = {False: Effort((0.8, 0.6), 4, 3), True: Effort((0.8, 0.6, 0.4), 12, 12)}
OURS, RIVAL = "cospadi", "whitened_svd"
FREE, FREE_RIVAL = "dictionary without inputs", "svd"
SEED = 42
# Neighbouring blocks that share the dictionary of a kind of layer.
GROUP = 2


def run(quick: bool) -> Result:
    """Measure dictionaries and low rank at equal bytes, with and without inputs, and the variants at the smallest size."""
    from tersor.models import load

    size, effort = QUICK if quick else FULL, EFFORT[quick]
    bench = OneShot.prepare(load(size.model), size)
    rows = list(_rows(bench, effort))
    margins = [1 - _of(rows, OURS, keep)["kl"] / _of(rows, RIVAL, keep)["kl"] for keep in effort.keeps]
    smallest = min(effort.keeps)
    margins.append(1 - _of(rows, FREE, smallest)["kl"] / _of(rows, FREE_RIVAL, smallest)["kl"])
    return Result(
        rows, "SVD-LLM at the same bytes; for dictionaries without inputs, SVD", min(margins), (SEED,), min(margins) > 0,
        (size.model, size.text, size.held_out), [*_notes(rows, effort), size.note],
    )


def _rows(bench: OneShot, effort: Effort) -> Iterator[Row]:
    for keep in effort.keeps:
        ours = bench.everywhere(OURS, "cospadi", keep=keep, iterations=effort.iterations, seed=SEED)
        rival = _as_large(bench, RIVAL, ours)
        yield bench.row(RIVAL, rival, keep=keep)
        wins = sum(_closer(bench, name, weight, rival[name]) for name, weight in ours.items())
        yield {**bench.row(OURS, ours, keep=keep), "effective": _effective(ours), "layers_won": wins / len(ours)}
    keep = min(effort.keeps)
    free = _without_inputs(bench, keep, effort.variants)
    yield bench.row(FREE_RIVAL, _as_large(bench, FREE_RIVAL, free), keep=keep)
    yield bench.row(FREE, free, keep=keep)
    variants: dict[str, dict[str, Any]] = {
        "codes by thresholding": {"coder": "iht"}, "codes by orthogonal least squares": {"coder": "ols"},
        "paper's accounting, 16-bit values": {"accounting": "effective", "code_bits": 16},
        "8-bit atoms and codes": {"dictionary_bits": 8, "code_bits": 8},
    }  # fmt: skip
    for label, options in variants.items():
        weights = bench.everywhere(label, "cospadi", keep=keep, iterations=effort.variants, seed=SEED, **options)
        yield {**bench.row(label, weights, keep=keep), "effective": _effective(weights)}
    shared = _shared(bench, keep, effort.variants)
    yield {**bench.row(f"shared by {GROUP} blocks", shared, keep=keep), "effective": _effective(shared)}


def _without_inputs(bench: OneShot, keep: float, iterations: int) -> dict[str, Any]:
    from tersor.layerwise import LayerStats, cospadi

    shapes = bench.shapes
    return {
        name: cospadi(bench.model.matrix(name), LayerStats.identity(shapes[name][1]), keep=keep, iterations=iterations, seed=SEED)
        for name in bench.stats
    }


def _shared(bench: OneShot, keep: float, iterations: int) -> dict[str, Any]:
    """One dictionary for each kind of layer of neighbouring blocks."""
    from tersor.layerwise import cospadi_group
    from tersor.layerwise.rank_sweep import kind_of

    weights: dict[str, DictionaryWeight] = {}
    names = sorted(bench.stats, key=lambda name: (kind_of(name), _block(name)))
    numbers = {block: number for number, block in enumerate(sorted({_block(name) for name in names}))}
    for _, members in groupby(names, key=lambda name: (kind_of(name), numbers[_block(name)] // GROUP)):
        group = list(members)
        matrices, stats = [bench.model.matrix(name) for name in group], [bench.stats[name] for name in group]
        made = cospadi_group(matrices, stats, keep=keep, iterations=iterations, seed=SEED)
        weights |= dict(zip(group, made, strict=True))
    return weights


def _block(name: str) -> int:
    return next(int(part) for part in name.split(".") if part.isdigit())


def _as_large(bench: OneShot, method: str, weights: dict[str, Any]) -> dict[str, Any]:
    """Low-rank matrices of the smallest ranks that take at least the bytes of ``weights``, layer by layer."""
    made = {}
    for name, weight in weights.items():
        out, width = weight.shape
        largest = (out * width - 1) // (out + width)
        made[name] = bench.weight(name, method, rank=min(-(-weight.nbytes // (2 * (out + width))), largest))
    return made


def _closer(bench: OneShot, name: str, weight: Any, rival: Any) -> bool:
    """Whether ``weight`` is closer than ``rival`` on unseen inputs."""
    from tersor.layerwise import layer_error

    matrix, unseen = bench.model.matrix(name), bench.held_out[name]
    return layer_error(matrix, weight, unseen) < layer_error(matrix, rival, unseen)


def _effective(weights: dict[str, Any]) -> float:
    """The paper's accounting: 16-bit words of atoms and code values, positions left out, as a fraction of the entries."""
    entries = [weight.shape[0] * weight.shape[1] for weight in weights.values()]
    return sum(weight.report["keep_effective"] * count for weight, count in zip(weights.values(), entries, strict=True)) / sum(entries)


def _of(rows: Sequence[Row], method: str, keep: float) -> Row:
    return next(row for row in rows if row["method"] == method and row["keep"] == keep)


def _notes(rows: Sequence[Row], effort: Effort) -> Iterator[str]:
    for keep in effort.keeps:
        ours, rival = _of(rows, OURS, keep), _of(rows, RIVAL, keep)
        yield (
            f"keep {keep:g}: perplexity {ours['perplexity']:.4g} against {rival['perplexity']:.4g}, mean held-out layer error "
            f"{ours['held_out_error']:.4g} against {rival['held_out_error']:.4g}, lower in {ours['layers_won']:.0%} of the layers"
        )
    keep = min(effort.keeps)
    free, svd = _of(rows, FREE, keep), _of(rows, FREE_RIVAL, keep)
    yield f"keep {keep:g}, nothing but the weights: perplexity {free['perplexity']:.4g} against {svd['perplexity']:.4g} of SVD"
    yield f"dictionaries took {effort.iterations} sweeps here, 60 in the paper"
