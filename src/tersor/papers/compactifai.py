"""CompactifAI: tensor networks lose more than low rank at first; which layers bear them is measured, and training heals them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tersor.papers.frame import Paper, Result, Row
from tersor.papers.one_shot import OneShot, Size

PAPER = Paper(
    key="compactifai",
    claim="A schedule of bond dimensions guided by the measured sensitivity of the layers keeps the model closer to the original than one "
    "ratio everywhere at the same parameters, and a short training from the decomposed cores ends closer than from random ones.",
    where="tersor.layerwise.tensor_network, tersor.weights.TensorTrainWeight",
)

FULL = Size("smollm2-135m", 4096, 1024, 512, "wikitext2.valid", "wikitext2.test", every=4)
QUICK = Size("stories260k", 8192, 4096, 256, "tinystories", "tinystories.tail")
KEEP = 0.5
# Levels of the profile; 1 leaves a layer as it is.
PROFILE = (1.0, 0.7, 0.5, 0.3, 0.15)
# Left out by the paper, as too sensitive.
SKIPPED = ("down_proj",)


@dataclass(frozen=True)
class Effort:
    """Sites of the networks, windows that a level of the profile is measured on, and steps of healing."""

    sites: tuple[int, ...]
    windows: int
    steps: int
    batch: int
    context: int


EFFORT = {False: Effort((2, 3, 4), 1, 24, 1, 128), True: Effort((2, 3), 4, 120, 4, 256)}
UNIFORM, GUIDED = "2 sites, one ratio everywhere", "2 sites, guided by the profile"
HEALED, RANDOM, LOW_RANK = "2 sites, healed", "random cores, trained as long", "low rank, healed"


def run(quick: bool) -> Result:
    """Measure networks beside low rank, the profile and its schedule, and healing."""
    from tersor.models import load

    size, effort = QUICK if quick else FULL, EFFORT[quick]
    bench = OneShot.prepare(load(size.model), size)
    names = [name for name in bench.stats if not name.endswith(SKIPPED)]
    rows = list(_decompositions(bench, names, effort.sites))
    scheduled, profile = _scheduled(bench, names, effort)
    rows += scheduled
    rows += list(_healed(bench, names, effort))
    by_name = {row["method"]: row for row in rows}
    margins = [1 - by_name[GUIDED]["kl"] / by_name[UNIFORM]["kl"], 1 - by_name[HEALED]["kl"] / by_name[RANDOM]["kl"]]
    return Result(
        rows, "one ratio everywhere; random cores trained as long", min(margins), (0,), min(margins) > 0,
        (size.model, size.text, size.held_out), [*_notes(by_name), *profile, f"{size.note}; {effort.steps} steps of healing"],
    )


def _made(bench: OneShot, names: Sequence[str], method: str, **options: Any) -> dict[str, Any]:
    return {name: bench.weight(name, method, **options) for name in names}


def _decompositions(bench: OneShot, names: Sequence[str], every: Sequence[int]) -> Iterator[Row]:
    yield _row(bench, "svd", _made(bench, names, "svd", keep=KEEP))
    yield _row(bench, "whitened_svd", _made(bench, names, "whitened_svd", keep=KEEP))
    for sites in every:
        label = UNIFORM if sites == 2 else f"{sites} sites"
        yield _row(bench, label, _made(bench, names, "tensor_network", keep=KEEP, sites=sites))
    yield _row(bench, "2 sites, refitted to the inputs", _made(bench, names, "tensor_network", keep=KEEP, refit_sweeps=2))
    yield _row(bench, "2 sites, 8-bit cores", _made(bench, names, "tensor_network", keep=KEEP, core_bits=8))


def _row(bench: OneShot, method: str, weights: Mapping[str, Any]) -> Row:
    from tersor.weights import TensorTrainWeight

    row = bench.row(method, weights)
    del row["seconds"]
    trains = [weight for weight in weights.values() if isinstance(weight, TensorTrainWeight)]
    if trains:
        dense = sum(weight.shape[0] * weight.shape[1] for weight in trains)
        row["multiplications_1_token"] = sum(weight.order(1).cost for weight in trains) / dense
        row["multiplications_512_tokens"] = sum(weight.order(512).cost for weight in trains) / (512 * dense)
    return row


def _units(names: Sequence[str]) -> dict[str, list[str]]:
    """Layers by what the profile varies together: the attention, and the other matrices, of a block."""
    units: dict[str, list[str]] = {}
    for name in names:
        units.setdefault(name.rpartition(".")[0], []).append(name)
    return units


def _scheduled(bench: OneShot, names: Sequence[str], effort: Effort) -> tuple[list[Row], list[str]]:
    """The model whose levels minimise the sum of the profile's divergences at the parameters of the uniform one."""
    from tersor.allocation import Problem, Unit, lgreco
    from tersor.papers.workbench import Judge

    levels = {keep: _made(bench, names, "tensor_network", keep=keep) for keep in PROFILE if keep < 1}
    judge = Judge.of(bench.model, bench.fitted[: effort.windows])

    def measured(weights: Mapping[str, Any]) -> float:
        return judge(bench.assembled(weights)).kl

    def parameters(name: str, keep: float) -> int:
        out, width = bench.model.shape(name)
        return int(levels[keep][name].n_parameters) if keep < 1 else out * width

    units = []
    for unit, members in _units(names).items():
        errors = tuple(0.0 if keep == 1 else measured({name: levels[keep][name] for name in members}) for keep in PROFILE)
        units.append(Unit(unit, tuple(sum(parameters(name, keep) for name in members) for keep in PROFILE), errors))
    budget = sum(parameters(name, KEEP) for name in names)
    found = lgreco(Problem(tuple(units), budget))
    chosen: dict[str, Any] = {}
    for (_, members), choice in zip(_units(names).items(), found.choices, strict=True):
        chosen |= {name: bench.weight(name, "keep") if PROFILE[choice] == 1 else levels[PROFILE[choice]][name] for name in members}
    return [_row(bench, GUIDED, chosen)], list(_profile_notes(units, found.choices))


def _profile_notes(units: Sequence[Any], choices: Sequence[int]) -> Iterator[str]:
    column = PROFILE.index(0.3)
    ordered = sorted(units, key=lambda unit: unit.errors[column])
    least, most = ordered[0], ordered[-1]
    schedule = " ".join(f"{PROFILE[choice]:g}" for choice in choices)
    yield (
        f"profile at keep 0.3: least sensitive {least.name} ({least.errors[column]:.3g} nats), most {most.name} "
        f"({most.errors[column]:.3g}); kept fractions in the schedule, from the first block on: {schedule}"
    )


def _healed(bench: OneShot, names: Sequence[str], effort: Effort) -> Iterator[Row]:
    from tersor.papers.healing import heal

    windows = bench.fitted.reshape(-1, effort.context)
    options = {"keep": KEEP, "factor_dtype": "float32"}
    starts = {
        HEALED: _made(bench, names, "tensor_network", **options),
        RANDOM: _randomised(_made(bench, names, "tensor_network", **options)),
        LOW_RANK: _made(bench, names, "svd", **options),
    }
    for label, weights in starts.items():
        heal(bench.assembled(weights), bench.model, weights.values(), windows, steps=effort.steps, batch=effort.batch)
        yield _row(bench, label, weights)


def _randomised(weights: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """The same shapes and the same root mean square of every core, nothing else of the decomposition."""
    generator = torch.Generator().manual_seed(seed)
    for weight in weights.values():
        for core in weight.buffers():
            core.copy_(core.square().mean().sqrt() * torch.randn(core.shape, generator=generator))
    return weights


def _notes(rows: Mapping[str, Row]) -> Iterator[str]:
    networks = ", ".join(f"{row['perplexity']:.4g} ({name})" for name, row in rows.items() if "sites" in name and "healed" not in name)
    yield f"perplexity before healing at keep {KEEP:g} of all but {', '.join(SKIPPED)}: {rows['svd']['perplexity']:.4g} (svd), {networks}"
    yield (
        f"after healing: {rows[HEALED]['perplexity']:.4g} from decomposed cores, {rows[RANDOM]['perplexity']:.4g} from random ones, "
        f"{rows[LOW_RANK]['perplexity']:.4g} for low rank of the same parameters, healed alike"
    )
    yield "rows of healed models are in 32 bits; all others in 16, or 8 where they say so"
