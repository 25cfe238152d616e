"""The record of a finished job: measurements on held-out text, the per-layer table, and warnings."""

from __future__ import annotations

import math
import platform
import sys
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from tersor.allocation import Allocation
from tersor.evaluation import Evaluation, RunReport, disagreement, evaluate
from tersor.evaluation.run_report import LayerRow, ReportRow
from tersor.finetuning import Tuned
from tersor.limits.generalization import certify
from tersor.models import Model
from tersor.models.storage import safetensors_size
from tersor.models.structure import find_blocks
from tersor.pipeline.progress import Timed

if TYPE_CHECKING:
    from tersor.allocation.problem import Choices
    from tersor.pipeline.job import Job

FEW_TOKENS = 16  # calibration tokens an input feature below which second-order methods fit the text rather than the layer
MUCH_DAMPING = 0.1


def make_report(job: Job, found: Allocation, small: Model, clock: Timed, tuned: Tuned | None = None) -> RunReport:
    """Measure the original, the uniform assignment under the same budget, ``small`` and what it was tuned to, and how it came about."""
    rows = []
    problem = job.problem(job.budget)
    # With the sum of layer errors, which is not known of a tuned model.
    candidates: dict[str, tuple[Model, float | None]] = {"original": (job.model, None)}
    if job.budget is not None and (uniform := job.uniform(job.budget)) != found.choices:
        candidates["uniform"] = (job.assemble(uniform), problem.error(uniform))
    candidates["compressed" if job.budget is None else "searched"] = (small, problem.error(found.choices))
    if tuned is not None:
        candidates["tuned"] = (tuned.model, None)
    clock.start("evaluating", len(candidates))
    for name, (model, layer_error) in candidates.items():
        original, measured = model is job.model, None
        if job.texts.evaluation is not None:
            measured = evaluate(model, job.texts.evaluation, None if original else job.model, max_tokens=None)
        # The original is counted in 16-bit weights, whatever type it was loaded in: that is what people store.
        rows.append(_row(name, model, 2 * model.n_parameters if original else safetensors_size(model), layer_error, measured))
        clock.advance(note=name)
    layers = _layers(job, found.choices)
    return RunReport(
        model=job.model.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=" ".join(["tersor", *sys.argv[1:]]),
        versions=versions(),
        budget=job.budget,
        texts=job.texts.sources,
        rows=rows,
        layers=layers,
        search=[dict(row) for row in found.history],
        finetuning={} if tuned is None else tuned.to_dict(),
        warnings=_warnings(job, layers, rows, tuned),
        seconds={name: round(spent, 1) for name, spent in clock.finish().items()},
        predicted=job.preflight.to_dict(),
        counters=job.counters,
    )


def _row(name: str, model: Model, nbytes: int, layer_error: float | None, measured: Evaluation | None) -> ReportRow:
    row = ReportRow(name, nbytes, 8 * nbytes / model.n_parameters, layer_error=layer_error)
    if measured is None:
        return row
    perplexity = measured.perplexity if math.isfinite(measured.perplexity) else None
    stderr = measured.perplexity_stderr if perplexity is not None and math.isfinite(measured.perplexity_stderr or math.inf) else None
    row = replace(row, perplexity=perplexity, perplexity_stderr=stderr, kl=measured.kl, kl_stderr=measured.kl_stderr, top1=measured.top1)
    if perplexity is None:
        return row
    # What the windows prove of the loss on others, without and with the size of the model.
    losses = [nll / tokens for nll, tokens in zip(measured.window_nll, measured.window_tokens, strict=True)]
    held_out, fitted = (certify(losses, nbytes=nbytes, vocabulary=model.vocabulary, trained_on=trained) for trained in (False, True))
    return replace(row, certified=held_out.bound, occam=fitted.bound)


def _layers(job: Job, choices: Choices) -> list[LayerRow]:
    blocks = find_blocks(job.model).name
    tokens = 0 if job.texts.calibration is None or not job.recipe.needs_inputs else job.texts.calibration.numel()
    rows = []
    for name, levels, size, index in zip(job.menu.layers, job.menu.levels, job.menu.sizes, choices, strict=True):
        level = levels[index]
        block = int(name.removeprefix(f"{blocks}.").split(".")[0]) if name.startswith(f"{blocks}.") else None
        rows.append(LayerRow(
            name, block, name.rsplit(".", 1)[-1], level.method, level.options,
            8 * level.nbytes / size, level.nbytes, level.error, level.held_out_error, level.report.get("damping"), tokens,
        ))  # fmt: skip
    return rows


def _warnings(job: Job, layers: list[LayerRow], rows: list[ReportRow], tuned: Tuned | None) -> list[str]:
    warnings = [str(pair) for pair in disagreement(rows)]
    if job.recipe.finetuning.steps and tuned is None:
        warnings.append("nothing was tuned: no layer of the result is of codebooks, a grid or sparse floats")
    if tuned is not None and tuned.best_step == 0:
        warnings.append("no step of the finetuning came closer to the original on the tokens held out, so none was kept; give more text")
    if rows[-1].nbytes >= rows[0].nbytes:
        sizes = f"the result takes {rows[-1].nbytes} bytes, the original in 16 bits {rows[0].nbytes}"
        warnings.append(f"nothing was saved: {sizes}; take fewer bits, larger groups or smaller codebooks")
    if job.resumed and job.counters:
        warnings.append("the search went on from an earlier process: the counters beneath it are of the last process alone")
    damped = [row.name for row in layers if row.damping is not None and row.damping > MUCH_DAMPING]
    if damped:
        warnings.append(f"{len(damped)} layers needed more than {MUCH_DAMPING} damping, {damped[0]} first; more calibration text may help")
    widest = max((job.model.shape(row.name)[1] for row in layers if row.tokens), default=0)
    if layers and widest and layers[0].tokens < FEW_TOKENS * widest:
        wanted = FEW_TOKENS * widest
        warnings.append(f"{layers[0].tokens} calibration tokens are few for layers of {widest} inputs; {wanted} or more would be better")
    return warnings


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found: dict[str, Any] = {"python": platform.python_version()}
    for name in ("tersor", "torch", "transformers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
