"""Sampling rows by how much they can matter: distortion on planted matrices, and a language model calibrated on a tenth of its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tersor.papers.frame import Paper, Result, Row

if TYPE_CHECKING:
    from tersor.information.sensitivity_sampling import ScoreKind
    from tersor.layerwise import LayerStats
    from tersor.models import Model

PAPER = Paper(
    key="sensitivity-sampling",
    claim="With as many rows, sampling by sensitivities preserves the l_p norm of every combination of columns better than uniform "
    "sampling, for p of 1, 1.5, 2, 3 and 4 on heavy-tailed rows; and a tenth of a language model's tokens, chosen by leverage, serves GPTQ "
    "and whitened SVD better.",
    where="tersor.information.sensitivity_sampling",
)

SEEDS = (0, 1, 2)
# The share of calibration tokens that is kept.
SHARE = 0.1
METHODS = ("gptq", "whitened_svd")
KINDS: dict[float, tuple[ScoreKind, ...]] = {
    1.0: ("uniform", "leverage", "root_leverage", "lewis", "sensitivity+leverage"),
    1.5: ("uniform", "root_leverage", "lewis", "sensitivity+leverage"),
    2.0: ("uniform", "leverage"), 3.0: ("uniform", "leverage", "sensitivity"), 4.0: ("uniform", "leverage", "sensitivity"),
}  # fmt: skip
# What the paper's bounds speak of at each p, which has to beat uniform sampling.
OURS = {1.0: "sensitivity+leverage", 1.5: "sensitivity+leverage", 2.0: "leverage", 3.0: "sensitivity", 4.0: "sensitivity"}


@dataclass(frozen=True)
class Size:
    """How much work the experiment spends; the blocks are those whose layers are compressed."""

    model: str
    text: str
    held_out: str
    tokens: int
    unseen: int
    evaluation: int
    context: int
    blocks: tuple[int, ...]
    planted_rows: int
    group_size: int

    @property
    def methods(self) -> dict[str, dict[str, Any]]:
        """What layers are compressed by, with its options."""
        return {"gptq": {"bits": 3, "group_size": self.group_size}, "whitened_svd": {"keep": 0.6}}


FULL = Size("smollm2-135m", "wikitext2.valid", "wikitext2.test", 8192, 1024, 512, 256, (1,), 400, 64)
QUICK = Size("stories260k", "tinystories", "tinystories.tail", 8192, 2048, 2048, 256, (1,), 300, -1)


def run(quick: bool) -> Result:
    """Planted matrices at five values of p, then a language model calibrated on all tokens and on a tenth of them, chosen in two ways."""
    size = QUICK if quick else FULL
    planted = list(_planted(size.planted_rows))
    calibration = list(_calibrated(size))
    margins = [*_planted_margins(planted), *_calibration_margins(calibration)]
    return Result(
        [*planted, *calibration], "uniform sampling of as many rows", min(margins), SEEDS, min(margins) > 0,
        ("planted matrices", size.model, size.text, size.held_out), _notes(calibration),
    )  # fmt: skip


def _planted(n: int) -> Iterator[Row]:
    """Rows with Student's t distribution of 1.5 degrees of freedom: a few of them are most of every norm."""
    import numpy as np

    from tersor.information.sensitivity_sampling import distortion, plan_rows, root_leverage_sample, row_scores

    d, count = 5, n // 8
    for seed in SEEDS:
        random = np.random.default_rng(seed)
        matrix = random.standard_t(1.5, size=(n, d))
        for p, kinds in KINDS.items():
            for kind in kinds:
                scores = None
                if kind == "root_leverage":
                    sample = root_leverage_sample(matrix, count, p, seed=seed)
                else:
                    # Below 2 a sensitivity is a problem of its own for every row; its bound by Lewis weights is what one would use.
                    chosen: ScoreKind = "auto" if kind == "sensitivity+leverage" else kind
                    scores = row_scores(matrix, p, chosen)
                    sample = plan_rows(scores, count, p).draw(seed)
                yield {
                    "part": "planted", "p": p, "method": kind, "seed": seed, "rows": len(sample), "of": n,
                    "distortion": distortion(matrix, sample, starts=10),
                    "total_sensitivity": float(scores.sum()) if scores is not None and kind == "sensitivity" else None,
                }  # fmt: skip


def _planted_margins(rows: list[Row]) -> Iterator[float]:
    """Part of uniform sampling's distortion that goes away, by p and seed."""
    for p, ours in OURS.items():
        for seed in SEEDS:
            found = {row["method"]: row["distortion"] for row in rows if row["p"] == p and row["seed"] == seed}
            yield 1 - found[ours] / found["uniform"]


def _calibrated(size: Size) -> Iterator[Row]:
    from tersor import data
    from tersor.models import load
    from tersor.papers.workbench import split_texts

    model = load(size.model)
    fitted, held_out = (data.windows(model.encode(text), size.context) for text in split_texts(size.text, size.held_out))
    first, apart = size.tokens // size.context, size.unseen // size.context
    bench = _Bench(model, size, fitted[:first], fitted[first : first + apart], held_out[: size.evaluation // size.context])
    for kind in ("all", "uniform", "leverage"):
        for seed in SEEDS if kind != "all" else (None,):
            yield from bench.rows(kind, seed)


class _Bench:
    """Everything that does not depend on which tokens are chosen, once."""

    def __init__(self, model: Model, size: Size, fitted: Tensor, unseen: Tensor, windows: Tensor) -> None:
        from tersor.information.sensitivity_sampling import row_scores
        from tersor.models import BlockWalk

        self.model, self.methods, self.windows = model, size.methods, windows
        self.stats: dict[str, LayerStats] = {}
        self.unseen: dict[str, LayerStats] = {}
        last = max(size.blocks)
        with _captured(model, fitted.numel()) as inputs:
            for step in BlockWalk(model, fitted, unseen):
                if step.index in size.blocks:
                    self.stats |= step.stats
                    self.unseen |= step.held_out
                if step.index == last:
                    break
        self.names = list(self.stats)
        made: dict[int, Tensor] = {}
        self.inputs = {name: _joined(name, self.stats, inputs, made) for name in self.names}
        self.scores = {id(x): row_scores(x, 2.0, "leverage") for x in made.values()}

    def rows(self, kind: str, seed: int | None) -> Iterator[Row]:
        """One row a method, the statistics of all layers taken from one choice of tokens."""
        chosen, spectral = self._chosen(kind, seed)
        for method, options in self.methods.items():
            row = {"part": "calibration", "p": 2.0, "method": method, "tokens_by": kind, "seed": seed}
            yield row | spectral | self._measured(method, options, chosen)

    def _chosen(self, kind: str, seed: int | None) -> tuple[Mapping[str, Any], Row]:
        """Statistics by layer, and how far the sampled second moments are off, averaged over the distinct inputs."""
        import numpy as np

        from tersor.information.sensitivity_sampling import plan_rows

        if seed is None:
            return self.stats, {}
        made: dict[int, Any] = {}
        off, distorted, kept = [], [], []
        for name in self.names:
            x = self.inputs[name]
            if id(x) in made:
                continue
            scores = self.scores[id(x)] if kind == "leverage" else np.ones(len(x))
            sample = plan_rows(scores, SHARE * len(x)).draw(seed)
            made[id(x)] = sample.stats(x)
            difference, distortion = _compared(made[id(x)].hessian, self.stats[name].hessian)
            off.append(difference)
            distorted.append(distortion)
            kept.append(len(sample))
        return {name: made[id(self.inputs[name])] for name in self.names}, {
            "rows": float(np.mean(kept)), "of": len(x), "moment_error": float(np.mean(off)), "distortion": float(np.mean(distorted)),
        }  # fmt: skip

    def _measured(self, method: str, options: dict[str, Any], stats: Mapping[str, Any]) -> Row:
        from tersor.evaluation import evaluate
        from tersor.layerwise import find_method, layer_error

        small = self.model.copy()
        errors = []
        for name in self.names:
            weight = self.model.matrix(name)
            made = find_method(method).function(weight, stats[name], **options)
            errors.append([layer_error(weight, made, reference[name]) for reference in (self.stats, self.unseen)])
            small.replace(name, made)
        measured = evaluate(small, self.windows.reshape(-1), context=self.windows.shape[1], max_tokens=self.windows.numel())
        fitted, unseen = (sum(column) / len(errors) for column in zip(*errors, strict=True))
        return {"error": fitted, "held_out_error": unseen, "perplexity": measured.perplexity}


@contextmanager
def _captured(model: Model, n: int) -> Iterator[dict[str, list[Tensor]]]:
    """The first ``n`` rows that reach each layer while it is open, batch by batch."""
    batches: dict[str, list[Tensor]] = {}

    def keep(name: str, inputs: Tensor) -> None:
        kept = batches.setdefault(name, [])
        if sum(len(part) for part in kept) < n:
            kept.append(inputs.flatten(0, -2))

    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: keep(name, args[0])) for name, layer in model.linears().items()
    ]  # fmt: skip
    try:
        yield batches
    finally:
        for hook in hooks:
            hook.remove()


def _joined(name: str, stats: dict[str, LayerStats], batches: dict[str, list[Tensor]], made: dict[int, Tensor]) -> Tensor:
    """Inputs ``[tokens, in_features]`` of a layer; layers that share statistics share one tensor."""
    import torch

    key = id(stats[name])
    if key not in made:
        made[key] = torch.cat(batches[name])
    return made[key]


def _compared(sampled: Tensor, exact: Tensor) -> tuple[float, float]:
    """Spectral norm of the difference of two second moments over that of the exact one, and the largest relative error in any direction."""
    import torch

    values, vectors = torch.linalg.eigh(exact)
    kept = values > 1e-10 * values[-1]
    whitener = vectors[:, kept] / values[kept].sqrt()
    relative = torch.linalg.eigvalsh(whitener.T @ sampled @ whitener) - 1
    return float(torch.linalg.eigvalsh(sampled - exact).abs().max() / values[-1]), float(relative.abs().max())


def _calibration_margins(rows: list[Row]) -> Iterator[float]:
    """Part of the layer error by uniform sampling that goes away, on all calibration tokens, by method and seed."""
    for method in METHODS:
        for seed in SEEDS:
            found = {row["tokens_by"]: row["error"] for row in rows if row["seed"] == seed and row["method"] == method}
            yield 1 - found["leverage"] / found["uniform"]


def _notes(rows: list[Row]) -> list[str]:
    notes = [
        "distortions are exact for p = 2 and the best of a search, a lower estimate, for the others; sensitivities below p = 2 are the "
        "upper bounds from Lewis weights",
        "leverage scores cost as much as the second moment of all tokens, so sampling saves nothing where that moment is all that is "
        "needed; it pays where rows are stored, sent, or used many times",
    ]
    for method in METHODS:
        own = [row for row in rows if row["method"] == method]
        of = {kind: [row for row in own if row["tokens_by"] == kind] for kind in ("all", "uniform", "leverage")}
        parts = []
        for measure in ("error", "held_out_error", "perplexity"):
            means = {kind: sum(row[measure] for row in found) / len(found) for kind, found in of.items()}
            wins = sum(ours[measure] < theirs[measure] for ours, theirs in zip(of["leverage"], of["uniform"], strict=True))
            label = measure.replace("_", "-", 1).replace("_", " ")
            parts.append(
                f"{label} {means['leverage']:.4g} by leverage, {means['uniform']:.4g} uniform, {means['all']:.4g} with all tokens "
                f"(leverage lower in {wins} of {len(SEEDS)} seeds)"
            )
        notes.append(f"{method} from a tenth of the tokens, means over seeds: " + "; ".join(parts))
    return notes
