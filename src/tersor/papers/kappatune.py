"""KappaTune: what fine-tuning a model on another domain makes it forget, by which of its matrices are trained."""

from __future__ import annotations

import copy
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.finetuning import SelectiveFineTuning, Spectrum, lora_config, random_of_equal_shapes, select_by_condition, spectral_report
from tersor.models import Model
from tersor.papers.frame import Paper, Result, Row, measured

PAPER = Paper(
    key="kappatune",
    claim="At the same loss on a new domain, a model whose best conditioned matrices were trained has forgotten less of the old one than "
    "with as many numbers trained in random matrices of equal shapes, in the worst conditioned ones or in LoRA, and than with all trained.",
    where="tersor.finetuning.kappatune, tersor.finetuning.spectral_report, tersor.finetuning.SelectiveFineTuning",
)

SEEDS = (0, 1, 2)
OURS, ASPECT, WORST, RANDOM = "lowest condition", "lowest condition for its shape", "highest condition", "random of equal shapes"
EVERYTHING, ADAPTERS = "everything", "LoRA on queries and values"
RIVALS = (RANDOM, WORST, ADAPTERS, EVERYTHING)
CONTEXT, BATCH = 128, 4


@dataclass(frozen=True)
class Plan:
    """Steps of a run, steps between two measurements, and windows that each measurement takes."""

    steps: int
    every: int
    windows: int


@dataclass(frozen=True)
class Experiment:
    """What is trained, and on what.

    Attributes:
        model: Its name.
        new: Text that it is trained on.
        old: Text of the kind that it comes from.
        tensors: Matrices trained. Fewer than there are of the flat shape that is best conditioned, so that a draw of equal shapes can
            differ.
        rates: Tried for every contestant on text that nothing is reported on.
        plan: How long.
    """

    model: str
    new: str
    old: str
    tensors: int
    rates: tuple[float, ...]
    plan: Plan


FULL = Experiment("stories260k", "tinyshakespeare", "tinystories", 5, (1e-3, 4e-3), Plan(60, 10, 24))
QUICK = replace(FULL, plan=Plan(18, 6, 12))


@dataclass(frozen=True)
class Texts:
    """Windows of tokens: what is trained on, what rates are chosen on, and both domains as they are reported."""

    train: Tensor
    pilot: Tensor
    new: Tensor
    old: Tensor


@dataclass(frozen=True)
class Curve:
    """One run: losses of the new domain and rises of the old one's, in nats a token, from before the first step on."""

    new: tuple[float, ...]
    forgotten: tuple[float, ...]
    trained: int
    seconds: float

    def forgotten_at(self, loss: float) -> float:
        """What was forgotten when the new domain's loss first came down to ``loss``, between measurements in proportion."""
        points = list(zip(self.new, self.forgotten, strict=True))
        for (above, before), (below, after) in pairwise(points):
            if below <= loss:
                share = (above - loss) / (above - below) if above > loss else 0.0
                return before + share * (after - before)
        return self.forgotten[-1]


def run(quick: bool) -> Result:
    """Fine-tune a model of children's stories on Shakespeare, and read how much worse it tells stories at equal loss."""
    return compared(QUICK if quick else FULL)


def compared(experiment: Experiment) -> Result:
    """Every contestant on ``experiment``."""
    from tersor.models import load

    plan = experiment.plan
    model = load(experiment.model)
    texts = _texts(model, experiment)
    report = _blocks(model.module)
    ours = select_by_condition(report, n_tensors=experiment.tensors)
    budget = _budget(report, ours)
    names = {
        OURS: ours,
        ASPECT: select_by_condition(report, budget_params=budget, normalize="aspect"),
        WORST: select_by_condition(report, budget_params=budget, order="high"),
        EVERYTHING: [name for name, _ in model.module.named_parameters()],
        ADAPTERS: [spectrum.name for spectrum in report if spectrum.name.endswith(("q_proj.weight", "v_proj.weight"))],
    }
    tune = partial(_tuned, model, budget)
    pilot = partial(_rate, tune, texts, plan, experiment.rates)
    rates = {method: pilot(method, names.get(method, ours)) for method in (*names, RANDOM)}
    curves: dict[str, list[Curve]] = {method: [] for method in rates}
    rows: list[Row] = []
    for seed in SEEDS:
        drawn = names | {RANDOM: random_of_equal_shapes(report, ours, seed=seed)}
        for method, rate in rates.items():
            curves[method].append(tune(method, drawn[method], texts, plan, rate, seed))
        rows += measured(_rows(curves, rates, seed))
    forgotten = {method: fmean(row["forgotten_at_equal_loss"] for row in rows if row["method"] == method) for method in curves}
    margin = min(forgotten[rival] for rival in RIVALS) - forgotten[OURS]
    against = ", ".join(f"{method} {value:.4f}" for method, value in sorted(forgotten.items(), key=lambda item: item[1]))
    notes = [f"nats a token forgotten at equal loss, mean over seeds: {against}", f"chosen in this model: {_kinds(ours)}"]
    data = (experiment.model, experiment.new, experiment.old)
    return Result(rows, ", ".join(RIVALS), margin, SEEDS, margin > 0, data, notes)


def _blocks(module: nn.Module) -> list[Spectrum]:
    """The spectra of the matrices within blocks: no embeddings and no head."""
    return [spectrum for spectrum in spectral_report(module) if "layers" in spectrum.name]


def _budget(report: Sequence[Spectrum], names: Sequence[str]) -> int:
    """Numbers in the matrices ``names``."""
    size = {spectrum.name: spectrum.parameters for spectrum in report}
    return sum(size[name] for name in names)


def _texts(model: Model, experiment: Experiment) -> Texts:
    from tersor import data

    windows = experiment.plan.windows
    new, old = (data.windows(model.encode(data.text(name)[:600_000]), CONTEXT) for name in (experiment.new, experiment.old))
    third = len(new) // 3
    return Texts(new[:third], new[third:][:windows], new[2 * third :][:windows], old[-windows:])


def _rate(tune: Callable[..., Curve], texts: Texts, plan: Plan, rates: Sequence[float], method: str, names: Sequence[str]) -> float:
    """The rate that takes the new domain's loss lowest within a third of the steps, on text of its own."""
    pilot = Texts(texts.train, texts.pilot, texts.pilot, texts.old[:1])
    short = Plan(max(plan.steps // 3, 1), max(plan.steps // 3, 1), plan.windows)
    return min(rates, key=lambda rate: tune(method, names, pilot, short, rate, len(SEEDS)).new[-1])


def _tuned(
    model: Model, budget: int, method: str, names: Sequence[str], texts: Texts, plan: Plan, rate: float, seed: int
) -> Curve:  # fmt: skip
    # A copy of its own: that of Model.copy shares the values, which are trained in place here.
    module = copy.deepcopy(model.module)
    if method == ADAPTERS:
        module = _adapted(module, names, budget, seed)
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    else:
        parameters = SelectiveFineTuning(module, names).parameters()
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    before = _loss(module, texts.old)
    new, forgotten, seconds = [_loss(module, texts.new)], [0.0], 0.0
    for step in range(1, plan.steps + 1):
        began = time.process_time()
        tokens = texts.train[torch.randint(len(texts.train), (BATCH,), generator=generator)]
        optimizer.zero_grad(set_to_none=True)
        _cross_entropy(module, tokens).backward()
        optimizer.step()
        seconds += time.process_time() - began
        if step % plan.every == 0:
            new.append(_loss(module, texts.new))
            forgotten.append(_loss(module, texts.old) - before)
    return Curve(tuple(new), tuple(forgotten), sum(parameter.numel() for parameter in parameters), seconds / plan.steps)


def _adapted(module: nn.Module, names: Sequence[str], budget: int, seed: int) -> nn.Module:
    """``module`` with adapters on ``names`` of the largest rank that ``budget`` numbers allow."""
    from peft import get_peft_model

    parameters = dict(module.named_parameters())
    rank = max(budget // sum(sum(parameters[name].shape) for name in names), 1)
    # Adapters fill themselves from the global generator, which is left as it was; then again from one of our own.
    with torch.random.fork_rng(devices=[]):
        adapted: nn.Module = get_peft_model(module, lora_config(module, names, r=rank, alpha=2 * rank, dropout=0.0))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_A" in name:
                nn.init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=generator)
    return adapted


def _cross_entropy(module: nn.Module, tokens: Tensor) -> Tensor:
    logits: Tensor = module(input_ids=tokens, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def _loss(module: nn.Module, windows: Tensor) -> float:
    return float(_cross_entropy(module, windows))


def _rows(curves: dict[str, list[Curve]], rates: dict[str, float], seed: int) -> Iterator[Row]:
    latest = {method: runs[-1] for method, runs in curves.items()}
    # The loss that the slowest learner of this seed comes down to: all have been there.
    shared = max(min(curve.new) for curve in latest.values())
    for method, curve in latest.items():
        yield {
            "method": method, "seed": seed, "rate": rates[method], "trained": curve.trained, "loss_before": curve.new[0],
            "loss_after": curve.new[-1], "forgotten": curve.forgotten[-1], "equal_loss": shared,
            "forgotten_at_equal_loss": curve.forgotten_at(shared), "step_time_of_full": curve.seconds / latest[EVERYTHING].seconds,
            "optimizer_bytes": 8 * curve.trained,
        }  # fmt: skip


def _kinds(names: Sequence[str]) -> str:
    counts = Counter(name.split(".")[-2] for name in names)
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
