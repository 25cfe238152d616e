"""Sampling rows by how much they can matter: distortion on planted matrices, and a language model calibrated on a tenth of its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tersor.papers.frame import Paper, Result, Row

if TYPE_CHECKING:
    from tersor.information.sensitivity_sampling import ScoreKind
    from tersor.layerwise import LayerStats
    from tersor.models import BlockStep, Model
    from tersor.papers.workbench import Judge

PAPER = Paper(
    key="sensitivity-sampling",
    claim="With as many rows, sampling by sensitivities preserves the l_p norm of every combination of columns better than uniform "
    "sampling, for p of 1, 1.5, 2, 3 and 4 on heavy-tailed rows; and a tenth of a language model's tokens, chosen by leverage, leaves "
    "lower layer errors after GPTQ and whitened SVD.",
    where="tersor.information.sensitivity_sampling",
)

SEEDS = (0, 1, 2)
LABELS = {
    "error": "layer error", "held_out_error": "layer error on held-out tokens", "perplexity": "held-out perplexity",
    "kl": "held-out divergence from the original",
}  # fmt: skip
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


FULL = Size("smollm2-135m", "wikitext2.valid", "wikitext2.test", 8192, 1024, 2048, 256, (1, 7, 13, 19, 25), 400, 64)
QUICK = Size("stories260k", "tinystories", "tinystories.tail", 8192, 2048, 2048, 256, (1, 3), 300, -1)


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
    from tersor.papers.workbench import Judge, split_texts

    model = load(size.model)
    fitted, held_out = (data.windows(model.encode(text), size.context) for text in split_texts(size.text, size.held_out))
    first, apart = size.tokens // size.context, size.unseen // size.context
    bench = _Bench(model, size)
    bench.compress(fitted[:first], fitted[first : first + apart])
    judge = Judge.of(model, held_out[: size.evaluation // size.context])
    for choice, method in bench.made:
        yield bench.row(choice, method, judge)


# How tokens are chosen, and the seed.
Choice = tuple[str, int | None]
CHOICES: tuple[Choice, ...] = (("all", None), *((kind, seed) for kind in ("uniform", "leverage") for seed in SEEDS))


class _Bench:
    """The layers of some blocks, compressed by every method from every choice of tokens, block after block."""

    def __init__(self, model: Model, size: Size) -> None:
        self.model, self.size = model, size
        self.made: dict[tuple[Choice, str], dict[str, Any]] = {(choice, method): {} for choice in CHOICES for method in size.methods}
        self.errors: dict[tuple[Choice, str], list[tuple[float, float]]] = {key: [] for key in self.made}
        self.sampled: dict[Choice, list[tuple[int, float, float]]] = {choice: [] for choice in CHOICES}

    def compress(self, fitted: Tensor, unseen: Tensor) -> None:
        """Walk the model once; of the chosen blocks, keep the inputs while they are compressed."""
        from tersor.models import BlockWalk

        with _captured(self.model, fitted.numel(), self.size.blocks) as inputs:
            for step in BlockWalk(self.model, fitted, unseen):
                if step.index in self.size.blocks:
                    self._block(step, inputs)
                    inputs.clear()
                if step.index == max(self.size.blocks):
                    break

    def _block(self, step: BlockStep, inputs: dict[str, list[Tensor]]) -> None:
        groups: dict[int, list[str]] = {}
        for name, stats in step.stats.items():
            groups.setdefault(id(stats), []).append(name)
        for names in groups.values():
            # Layers that read the same inputs share the choice of tokens.
            exact, unseen = step.stats[names[0]], step.held_out[names[0]]
            for choice, stats in self._choices(names[0], inputs, exact):
                for name in names:
                    self._layer(name, choice, stats, exact, unseen)

    def _choices(self, name: str, inputs: dict[str, list[Tensor]], exact: LayerStats) -> Iterator[tuple[Choice, LayerStats]]:
        """Statistics for every choice of tokens, and how far they are off those of all."""
        import numpy as np
        import torch

        from tersor.information.sensitivity_sampling import plan_rows, row_scores

        x = torch.cat(inputs[name])
        compare = _Comparison(exact.hessian)
        scores = {"leverage": row_scores(x, 2.0, "leverage"), "uniform": np.ones(len(x))}
        yield CHOICES[0], exact
        for kind, seed in CHOICES[1:]:
            sample = plan_rows(scores[kind], SHARE * len(x)).draw(seed or 0)
            stats = sample.stats(x)
            self.sampled[kind, seed].append((len(sample), *compare(stats.hessian)))
            yield (kind, seed), stats

    def _layer(self, name: str, choice: Choice, stats: LayerStats, exact: LayerStats, unseen: LayerStats) -> None:
        from tersor.layerwise import find_method, layer_error

        weight = self.model.matrix(name)
        for method, options in self.size.methods.items():
            made = find_method(method).function(weight, stats, **options)
            self.made[choice, method][name] = made
            self.errors[choice, method].append((layer_error(weight, made, exact), layer_error(weight, made, unseen)))

    def row(self, choice: Choice, method: str, judge: Judge) -> Row:
        """Mean errors of the layers, and what the model loses on held-out tokens."""
        small = self.model.copy()
        for name, made in self.made[choice, method].items():
            small.replace(name, made)
        judged = judge(small)
        errors = self.errors[choice, method]
        row: Row = {"part": "calibration", "p": 2.0, "method": method, "tokens_by": choice[0], "seed": choice[1], "layers": len(errors)}
        if self.sampled[choice]:
            kept, off, distorted = (sum(column) / len(self.sampled[choice]) for column in zip(*self.sampled[choice], strict=True))
            row |= {"rows": kept, "of": self.size.tokens, "moment_error": off, "distortion": distorted}
        fitted, unseen = (sum(column) / len(errors) for column in zip(*errors, strict=True))
        return row | {"error": fitted, "held_out_error": unseen, "perplexity": judged.perplexity, "kl": judged.kl}


@contextmanager
def _captured(model: Model, n: int, blocks: tuple[int, ...]) -> Iterator[dict[str, list[Tensor]]]:
    """The first ``n`` rows that reach each layer of ``blocks`` while it is open, batch by batch."""
    batches: dict[str, list[Tensor]] = {}

    def keep(name: str, inputs: Tensor) -> None:
        kept = batches.setdefault(name, [])
        if sum(len(part) for part in kept) < n:
            kept.append(inputs.flatten(0, -2))

    wanted = [f".{index}." for index in blocks]
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: keep(name, args[0]))
        for name, layer in model.linears().items() if any(part in name for part in wanted)
    ]  # fmt: skip
    try:
        yield batches
    finally:
        for hook in hooks:
            hook.remove()


class _Comparison:
    """How far a sampled second moment is off the exact one."""

    def __init__(self, exact: Tensor) -> None:
        import torch

        self.exact = exact
        values, vectors = torch.linalg.eigh(exact)
        kept = values > 1e-10 * values[-1]
        self.largest, self.whitener = float(values[-1]), vectors[:, kept] / values[kept].sqrt()

    def __call__(self, sampled: Tensor) -> tuple[float, float]:
        """Spectral norm of the difference over that of the exact one, and the largest relative error in any direction."""
        import torch

        relative = torch.linalg.eigvalsh(self.whitener.T @ sampled @ self.whitener) - 1
        return float(torch.linalg.eigvalsh(sampled - self.exact).abs().max() / self.largest), float(relative.abs().max())


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
        for measure, label in LABELS.items():
            means = {kind: sum(row[measure] for row in found) / len(found) for kind, found in of.items()}
            wins = sum(ours[measure] < theirs[measure] for ours, theirs in zip(of["leverage"], of["uniform"], strict=True))
            parts.append(
                f"{label} {means['leverage']:.4g} by leverage, {means['uniform']:.4g} uniform, {means['all']:.4g} with all tokens "
                f"(leverage lower in {wins} of {len(SEEDS)} seeds)"
            )
        notes.append(f"{method} from a tenth of the tokens, means over seeds: " + "; ".join(parts))
    return notes
