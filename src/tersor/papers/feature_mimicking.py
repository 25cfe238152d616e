"""Feature mimicking: click models keep their ranking at a third of the parameters if their features choose what is kept."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import fmean, median, pstdev

from tersor.papers.ctr import ClickData, CTRModel, Ranks, build, compress, latency, load_clicks, pack, score, train
from tersor.papers.frame import Paper, Result, Row, measured

PAPER = Paper(
    key="feature-mimicking",
    claim="On every click log, averaged over models and seeds: compressed to at most a third of the parameters along the principal "
    "components of their features, models rank clicks better than truncated by the singular values of their weights, and after "
    "fine-tuning no worse than the originals trained as long.",
    where="tersor.layerwise.feature_mimicking, tersor.layerwise.mimic_embedding",
)

SEEDS = (0, 1, 2)
KEPT = 1 / 3
# From small to large; the largest that fit are tried on the validation part.
CANDIDATES = (Ranks(2, 8), Ranks(2, 16), Ranks(2, 32), Ranks(4, 8), Ranks(4, 16), Ranks(4, 32))
BATCH, LEARNING_RATE, TUNING_RATE = 512, 3e-3, 1e-3
ORIGINAL, LONGER, SCRATCH = "original", "original, trained on", "small, from scratch"
FEATURES, WEIGHTS = "features", "weights"
TUNED = ("features, tuned", "features and ReLU, tuned")


@dataclass(frozen=True)
class Plan:
    """What is trained: logs, kinds of models, rows of each part at most, epochs from scratch and of fine-tuning."""

    logs: tuple[str, ...]
    kinds: tuple[str, ...]
    rows: tuple[int, int, int]
    epochs: int
    tuning: int


FULL = Plan(("frappe", "criteo", "avazu"), ("deepfm", "dcn", "autoint", "nfm"), (15_000, 6_000, 30_000), 6, 2)
QUICK = Plan(("frappe",), ("deepfm",), (8_000, 3_000, 6_000), 4, 1)


@dataclass(frozen=True)
class Trial:
    """One model of one seed: what it scores where choices are made, where results are read, and what it takes."""

    log: str
    kind: str
    method: str
    validation: float
    auc: float
    logloss: float
    parameters: int
    bytes: int
    speedup: float


def run(quick: bool) -> Result:
    """Train, compress by features and by weights, fine-tune, and train small models from scratch, over three seeds each."""
    plan = QUICK if quick else FULL
    rows: list[Row] = []
    trials: list[Trial] = []
    notes, parts = [], []
    for log in plan.logs:
        data = load_clicks(log).subset(*plan.rows)
        parts.append(f"{log} (test part of {len(data.test):,} rows)")
        for kind in plan.kinds:
            done, note = _trials(data, kind, plan)
            trials += done
            notes.append(note)
            rows += measured(_means(done))
    gains = {log: _gains([trial for trial in trials if trial.log == log]) for log in plan.logs}
    margin = min(gain for pair in gains.values() for gain in pair)
    verdicts = [
        f"{log}: area by features less that by weights {by_weights:+.4f} before fine-tuning, "
        f"less that of the original trained as long {by_original:+.4f} after it"
        for log, (by_weights, by_original) in gains.items()
    ]
    return Result(
        rows, "singular values of the weights at the same ranks; the original trained as long", margin, SEEDS, margin > 0, parts,
        [*verdicts, *notes],
    )  # fmt: skip


def _trials(data: ClickData, kind: str, plan: Plan) -> tuple[list[Trial], str]:
    trials: list[Trial] = []
    ranks, note = None, ""
    for seed in SEEDS:
        original = _fitted(build(kind, data.sizes, seed=seed), data, plan.epochs, LEARNING_RATE, seed)
        if ranks is None:
            ranks = _chosen(original, data)
            chosen = f"tables of {ranks.embedding} columns, layers of rank {ranks.tower}"
            note = f"{data.name}, {kind}: {chosen}; {_feature_errors(original, data, ranks)}"
        models = _models(original, data, ranks, plan, seed)
        seconds = latency(models, data.test.ids[:1024])
        for method, model in models.items():
            packed, stored = pack(model)
            test = score(packed, data.test)
            trials.append(
                Trial(data.name, kind, method, score(model, data.validation).auc, test.auc, test.logloss, _size(model), stored,
                      seconds[ORIGINAL] / seconds[method])
            )  # fmt: skip
    return trials, note


def _models(original: CTRModel, data: ClickData, ranks: Ranks, plan: Plan, seed: int) -> dict[str, CTRModel]:
    """Every contestant under its name."""

    def tuned(model: CTRModel) -> CTRModel:
        return _fitted(model, data, plan.tuning, TUNING_RATE, seed + len(SEEDS))

    by_features = compress(original, data.train, ranks)
    by_weights = compress(original, data.train, ranks, guide="weights")
    scratch = _equally_large(original, ranks, _size(by_features), seed)
    return {
        ORIGINAL: original,
        LONGER: tuned(original),
        WEIGHTS: by_weights,
        FEATURES: by_features,
        "weights, tuned": tuned(by_weights),
        TUNED[0]: tuned(by_features),
        TUNED[1]: tuned(compress(original, data.train, ranks, activation=True)),
        SCRATCH: _fitted(scratch, data, plan.epochs + plan.tuning, LEARNING_RATE, seed),
    }


def _fitted(model: CTRModel, data: ClickData, epochs: int, rate: float, seed: int) -> CTRModel:
    return train(model, data, epochs=epochs, learning_rate=rate, seed=seed, batch=BATCH)


def _chosen(original: CTRModel, data: ClickData) -> Ranks:
    """Of the ranks within the budget, those that cost the least on the validation part before fine-tuning."""
    fitting = {ranks: compress(original, data.train, ranks) for ranks in CANDIDATES}
    fitting = {ranks: model for ranks, model in fitting.items() if _size(model) <= KEPT * _size(original)}
    return min(fitting, key=lambda ranks: score(fitting[ranks], data.validation).logloss)


def _equally_large(original: CTRModel, ranks: Ranks, parameters: int, seed: int) -> CTRModel:
    """An untrained model with tables as narrow as the codes and the widest tower that ``parameters`` allow."""
    sizes = original.embedding.sizes
    dim = ranks.embedding or original.embedding.table.embedding_dim

    def made(width: int) -> CTRModel:
        return build(original.kind, sizes, seed=seed, dim=dim, hidden=(width,) * 3)

    widths = range(1, original.tower.out.in_features + 1)
    return made(max(bisect_right(widths, parameters, key=lambda width: _size(made(width))), 1))


def _size(model: CTRModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _feature_errors(original: CTRModel, data: ClickData, ranks: Ranks) -> str:
    """How much of the looked-up rows either guide loses on the training part."""
    from tersor import layerwise

    tables = original.embedding.table.weight.detach().split(data.sizes)
    lost: dict[str, list[float]] = {FEATURES: [], WEIGHTS: []}
    for table, counts in zip(tables, data.counts(), strict=True):
        for guide, seen in ((FEATURES, counts), (WEIGHTS, None)):
            made = layerwise.mimic_embedding(table, seen, rank=ranks.embedding, center=guide == FEATURES)
            lost[guide].append(layerwise.embedding_error(table, made, counts))
    by_features, by_weights = (fmean(lost[guide]) for guide in (FEATURES, WEIGHTS))
    return f"mean relative squared error of the looked-up rows {by_features:.3g} by features, {by_weights:.3g} by weights"


def _means(trials: list[Trial]) -> Iterator[Row]:
    for method in dict.fromkeys(trial.method for trial in trials):
        same = [trial for trial in trials if trial.method == method]
        yield {
            "log": same[0].log, "model": same[0].kind, "method": method, "parameters": same[0].parameters, "bytes": same[0].bytes,
            "auc": fmean(trial.auc for trial in same), "auc_spread": pstdev(trial.auc for trial in same),
            "logloss": fmean(trial.logloss for trial in same), "speedup": median(trial.speedup for trial in same),
        }  # fmt: skip


def _gains(trials: list[Trial]) -> tuple[float, float]:
    """Mean area by features less that by weights, untuned, and tuned less that of the original trained as long."""

    def area(methods: Iterable[str], of: str = "auc") -> float:
        return fmean(getattr(trial, of) for trial in trials if trial.method in methods)

    # With or without a ReLU is a choice, so the validation part makes it.
    best = max(TUNED, key=lambda method: area([method], "validation"))
    return area([FEATURES]) - area([WEIGHTS]), area([best]) - area([LONGER])
