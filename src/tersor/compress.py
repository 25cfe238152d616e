"""The main job: recipe -> calibrate -> build level database -> allocate -> assemble."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tersor.models import Model
    from tersor.pipeline.progress import Progress
    from tersor.pipeline.recipe import Recipe


def compress(
    model: Model | str | Path,
    recipe: Recipe | str | None = None,
    *,
    budget: str | float | int | None = None,
    output: str | Path | None = None,
    on: str | None = None,
    restart: bool = False,
    progress: Progress | None = None,
    confirm: Callable[[str], None] | None = None,
    **options: Any,
) -> Model:
    """Make ``model`` smaller.

    Args:
        model: A loaded model, or what :func:`tersor.load` takes.
        recipe: A :class:`tersor.Recipe`, or the name of one layerwise method whose options follow as keywords
            (``compress(model, "gptq", bits=3, group_size=64)``); such a call leaves the embeddings as they are.
        budget: ``"60MB"``, ``"45MiB"``, a ratio of the 16-bit size such as ``0.25``, ``"3.2bpw"``, or bytes: the size
            that the written tensor file must not exceed. Replaces the budget of the recipe.
        output: Folder of the run. A run that was stopped resumes there; without one the job works in a temporary folder.
        on: ``"ray"`` or ``"ray://host:port"`` spreads layers and candidates over a Ray cluster, with the same result.
        restart: Throw away the state of an earlier run in ``output``.
        progress: Receives stages and steps.
        confirm: Called with the pre-flight sentence before any work; raise in it to stop.
        **options: Options of the method, when ``recipe`` is the name of one; also ``calibration``, ``evaluation`` and
            ``search`` mappings as in a recipe.

    Returns:
        The compressed model; its ``report`` attribute holds the run's :class:`tersor.evaluation.RunReport`.

    Raises:
        InvalidArgument: On an unknown method or key, a value out of range, a missing or impossible budget, or overlapping texts.
        TersorError: If memory or disk do not suffice, or the folder belongs to another run.
    """
    from contextlib import nullcontext
    from tempfile import TemporaryDirectory

    from tersor.models import Model, load
    from tersor.pipeline.job import run_job, single_method
    from tersor.pipeline.progress import Silent
    from tersor.pipeline.recipe import Recipe

    chosen = recipe if isinstance(recipe, Recipe) else single_method(recipe, options)
    if isinstance(recipe, Recipe) and options:
        from tersor.errors import InvalidArgument

        raise InvalidArgument(f"{next(iter(options))!r} belongs in the recipe; options go with a method name only")
    if budget is not None:
        chosen = chosen.model_copy(update={"budget": budget})
    chosen.check_decided()
    loaded = model if isinstance(model, Model) else load(model)
    with TemporaryDirectory() if output is None else nullcontext(output) as folder:
        keep = output is not None
        return run_job(loaded, chosen, Path(folder), keep=keep, on=on, restart=restart, progress=progress or Silent(), confirm=confirm)
