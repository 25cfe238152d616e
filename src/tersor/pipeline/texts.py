"""Which tokens fit layers, which judge candidates, which give the reported numbers: split here, once, disjoint by construction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.files import write_atomically
from tersor.models import Model
from tersor.pipeline.dtypes import fast_dtype
from tersor.pipeline.recipe import Recipe

SAMPLED_AT_ONCE = 128  # sequences; a matrix product of fewer rows does not fill the vector units


@dataclass(frozen=True)
class Texts:
    """Token windows of a job, each ``[n, context]`` or ``None`` where the recipe needs none.

    Attributes:
        calibration: Layers are fitted on these, and the whole is tuned on them.
        held_out: Layer errors are reported on these; rates and step of a tuning are chosen on them.
        search: Candidates are judged on these.
        evaluation: The report's numbers come from these.
        sources: What each is, for the report.
    """

    calibration: Tensor | None
    held_out: Tensor | None
    search: Tensor | None
    evaluation: Tensor | None
    sources: dict[str, str]


def needed_tokens(recipe: Recipe) -> tuple[int, int, int]:
    """Tokens to fit on, to judge layers on and to search with that ``recipe`` asks for."""
    fit = recipe.needs_inputs
    wanted = fit or recipe.finetuning.steps or recipe.search.method in ("knapsack", "greedy")
    calibration = recipe.calibration.tokens if wanted else 0
    held_out = recipe.calibration.held_out if calibration else 0
    search = recipe.search.tokens if recipe.budget is not None and recipe.search.measures else 0
    return calibration, held_out, search


def prepare_texts(model: Model, recipe: Recipe, cache: Path | None = None) -> Texts:
    """Tokenise and split the texts that ``recipe`` names.

    Calibration, held-out and search windows come from one text and share none; the evaluation text must be another one.

    Args:
        model: Its tokenizer is used, and it writes the text itself where the recipe says ``auto``.
        recipe: The job.
        cache: Folder where sampled tokens are kept, so that a resumed run does not sample again.

    Raises:
        InvalidArgument: If a text is too short (naming what is needed) or evaluation and calibration overlap.
    """
    from tersor import data

    context = min(recipe.calibration.context, model.max_context)
    counts = [-(-tokens // context) for tokens in needed_tokens(recipe)]
    total = sum(counts)
    windows = None
    raw = None
    source = "none"
    if total:
        if recipe.calibration.text == "auto":
            windows = _sampled(model, recipe, total, context, cache)
            source = f"sampled from the model itself, seed {recipe.calibration.seed}"
        else:
            raw = data.text(recipe.calibration.text)
            windows = _windows(model, raw, total, context, f"calibration text {recipe.calibration.text}", recipe.calibration.seed)
            source = recipe.calibration.text
    parts: list[Tensor | None] = []
    for count in counts:
        parts.append(windows[:count] if windows is not None and count else None)
        windows = windows[count:] if windows is not None else None
    evaluation, evaluation_source = _evaluation(model, recipe, raw)
    sources = {name: source for name, part in zip(("calibration", "held_out", "search"), parts, strict=True) if part is not None}
    if evaluation is not None:
        sources["evaluation"] = evaluation_source
    return Texts(parts[0], parts[1], parts[2], evaluation, sources)


def _windows(model: Model, text: str, count: int, context: int, what: str, seed: int | None) -> Tensor:
    tokens = model.encode(text)
    available = len(tokens) // context
    if available < count:
        needed = count * context
        raise InvalidArgument(f"the {what} has {len(tokens)} tokens but {needed} are needed; give more text or ask for fewer tokens")
    windows = tokens[: available * context].reshape(available, context)
    if seed is None:
        return windows[:count]
    order = torch.randperm(available, generator=torch.Generator().manual_seed(seed))
    return windows[order[:count]]


def _sampled(model: Model, recipe: Recipe, count: int, context: int, cache: Path | None) -> Tensor:
    from safetensors.torch import load_file, save

    from tersor import data

    path = cache / "sampled.safetensors" if cache is not None else None
    if path is not None and path.is_file():
        tokens = load_file(path)["tokens"]
        if tokens.shape == (count, context):
            return tokens
    writer, seed = model.copy(fast_dtype()), recipe.calibration.seed
    tokens = data.sample_text(writer, count * context, seed=seed, length=context, batch_size=SAMPLED_AT_ONCE)
    if path is not None:
        write_atomically(path, save({"tokens": tokens}))
    return tokens


def _evaluation(model: Model, recipe: Recipe, calibration: str | None) -> tuple[Tensor | None, str]:
    from tersor import data

    if recipe.evaluation.tokens == 0 or model.tokenizer is None:
        return None, ""
    name = "python-docs" if recipe.evaluation.text == "auto" else recipe.evaluation.text
    text = data.text(name)
    if calibration is not None:
        data.check_disjoint({"calibration": calibration, "evaluation": text})
    context = min(recipe.evaluation.context, model.max_context)
    count = max(1, recipe.evaluation.tokens // context)
    return _windows(model, text, count, context, f"evaluation text {name}", None), name
