"""LoRD: features are of low rank where weights are not, and some kinds of layers bear a lower rank than others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from tersor.papers.frame import Paper, Result, Row
from tersor.papers.one_shot import OneShot, Size

PAPER = Paper(
    key="lord",
    claim="At every rank, layers projected on the principal components of their outputs keep the model closer to the original than layers "
    "truncated by the singular values of their weights, with inputs scaled (ASVD) or not.",
    where="tersor.layerwise.lord, tersor.layerwise.rank_sweep",
)

FULL = Size("smollm2-135m", 6144, 1024, 512, "wikitext2.valid", "wikitext2.test", every=3)
QUICK = Size("stories260k", 8192, 4096, 256, "tinystories", "tinystories.tail")
KEEPS = (0.9, 0.8, 0.6)
FRACTIONS = {True: (0.3, 0.5, 0.7, 0.9), False: (0.4, 0.6, 0.8)}
# The paper's bound on the increase of perplexity.
BOUND = 0.01
RIVALS = ("svd", "asvd")
VARIANTS: dict[str, dict[str, Any]] = {
    "lord, not centred": {"center": False}, "lord, centred": {"center": True}, "lord, auto": {"center": "auto"},
    "lord, 8-bit factors": {"center": False, "factor_bits": 8},
}  # fmt: skip


def run(quick: bool) -> Result:
    """Measure truncations at three sizes, every kind of layer at several ranks, and calibration on the wrong kind of text."""
    from tersor.models import load

    size = QUICK if quick else FULL
    bench = OneShot.prepare(load(size.model), size)
    rows = list(_truncations(bench))
    margins = [_margin(rows, keep) for keep in KEEPS]
    notes = [_centring(rows), *_tokens(bench)]
    swept, note = _swept(bench, FRACTIONS[quick])
    domain, domain_note = _domains(bench, size)
    return Result(
        [*rows, *swept, *domain], "the better of SVD and ASVD at the same rank", min(margins), (0,), min(margins) > 0,
        (size.model, size.text, size.held_out), [*notes, note, domain_note, size.note],
    )


def _truncations(bench: OneShot) -> Iterator[Row]:
    for keep in KEEPS:
        for method in RIVALS:
            yield bench.row(method, bench.everywhere(method, method, keep=keep), keep=keep)
        for label, options in VARIANTS.items():
            yield bench.row(label, bench.everywhere(label, "lord", keep=keep, **options), keep=keep)


def _of(rows: list[Row], method: str, keep: float) -> Row:
    return next(row for row in rows if row["method"] == method and row["keep"] == keep)


def _margin(rows: list[Row], keep: float) -> float:
    rival = min(_of(rows, method, keep)["kl"] for method in RIVALS)
    return 1 - _of(rows, "lord, not centred", keep)["kl"] / rival


def _centring(rows: list[Row]) -> str:
    parts = []
    for keep in KEEPS:
        plain, centred = (_of(rows, f"lord, {which}", keep) for which in ("not centred", "centred"))
        parts.append(f"keep {keep:g}: perplexity {plain['perplexity']:.4g} without and {centred['perplexity']:.4g} with the bias")
    return "the bias of the paper lowers every layer's error on calibration tokens; in the model, " + "; ".join(parts)


def _tokens(bench: OneShot) -> Iterator[str]:
    """What the bias does to the first token and to the others, in the first window."""
    from tersor.layerwise.lord import token_error

    inputs = _inputs(bench, bench.windows[:4])
    worst, note = 0.0, ""
    for name, x in inputs.items():
        weight = bench.model.matrix(name)
        plain, centred = (token_error(weight, bench.weight(name, "lord", keep=0.8, center=center), x) for center in (False, True))
        ratio = float(centred[:, 0].mean() / plain[:, 0].mean())
        if ratio > worst:
            others = float(centred[:, 1:].mean() / plain[:, 1:].mean())
            worst = ratio
            note = f"{name}, keep 0.8: the bias multiplies the squared error of first tokens by {ratio:.3g}, of the others by {others:.3g}"
    yield note


def _inputs(bench: OneShot, windows: Tensor) -> dict[str, Tensor]:
    """Inputs of the value projections and of the last matrices of the middle one of the compressed blocks."""
    import torch

    depths = sorted({int(name.split(".")[-3]) for name in bench.stats})
    depth = depths[len(depths) // 2]
    names = [name for name in bench.stats if int(name.split(".")[-3]) == depth and name.endswith(("v_proj", "up_proj", "down_proj"))]
    seen: dict[str, Tensor] = {}
    layers = bench.model.linears()
    hooks = [layers[name].register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0].detach())) for name in names]
    try:
        with torch.no_grad():
            bench.model.module(windows)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _swept(bench: OneShot, fractions: tuple[float, ...]) -> tuple[list[Row], str]:
    """Every kind of layer alone at several ranks, and the model that they allow within the paper's bound."""
    from tersor.layerwise.rank_sweep import choose_ranks, rank_sweep

    def model_of(ranks: dict[str, int]) -> Any:
        options = {"center": False, "factor_dtype": "float32"}
        return bench.assembled({name: _projected(bench, name, rank, options) for name, rank in ranks.items()})

    def measure(ranks: dict[str, int]) -> float:
        return float(bench.divergence(model_of(ranks)).perplexity)

    reference = float(bench.divergence(bench.model).perplexity)
    points = rank_sweep(bench.shapes, fractions, measure, multiple=8)
    rows: list[Row] = [
        {"method": f"sweep {point.kind}", "keep": point.parameters, "rank_fraction": point.fraction, "perplexity": point.metric}
        for point in points
    ]
    chosen = choose_ranks(bench.shapes, points, reference=reference, max_increase=BOUND, multiple=8)
    within = sorted({f"{point.kind} at {point.fraction:.0%}" for point in points if point.metric <= reference * (1 + BOUND)})
    if not chosen:
        listed = ", ".join(within) or "none"
        return rows, f"within {BOUND:.0%} more perplexity no kind of layer reaches a rank that saves parameters (kinds within it: {listed})"
    perplexity = measure(chosen)
    rows.append({"method": "ranks chosen by the sweep", "keep": None, "perplexity": perplexity})
    return rows, (
        f"{len(chosen)} of {len(bench.shapes)} layers reach a saving rank within {BOUND:.0%} a kind ({', '.join(within)}); together they "
        f"raise the perplexity from {reference:.4g} to {perplexity:.4g}"
    )


def _projected(bench: OneShot, name: str, rank: int, options: dict[str, Any]) -> Any:
    """The layer at ``rank``, also where that saves nothing, as the curve of the sweep goes up to there."""
    from tersor.layerwise.hessian import damped_cholesky
    from tersor.layerwise.low_rank import truncate

    out, width = bench.model.shape(name)
    if rank * (out + width) < out * width:
        return bench.weight(name, "lord", rank=rank, **options)
    root, _ = damped_cholesky(bench.stats[name].hessian.double(), 1e-6)
    return truncate(bench.model.matrix(name), root, rank, "float32")


def _domains(bench: OneShot, size: Size) -> tuple[list[Row], str]:
    """Perplexity on code of models calibrated on code and on the usual text."""
    rows: list[Row] = []
    inside = replace(size, text="code", held_out="code.tail")
    on_code = OneShot.prepare(bench.model, inside)
    # Both are measured on the same code.
    elsewhere = replace(bench, windows=on_code.windows)
    for label, used in (("calibrated on code", on_code), (f"calibrated on {size.text}", elsewhere)):
        rows.append(used.row(f"code, {label}", used.everywhere(label, "lord", keep=0.8, center=False), keep=0.8))
    ours, other = (row["perplexity"] for row in rows)
    return rows, f"on held-out code at keep 0.8, calibration on code gives perplexity {ours:.4g}, on {size.text} {other:.4g}"
