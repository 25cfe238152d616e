"""From a compressed model and its original to a tuned one in a folder, resumable at any moment."""

from __future__ import annotations

from pathlib import Path

from tersor.finetuning import PVConfig, Tuned, choose_rates, pv_tuning
from tersor.finetuning.rates import rates_beside
from tersor.models import Model, load
from tersor.models.storage import check_target
from tersor.pipeline.progress import Progress, Silent, counted
from tersor.pipeline.windows import state_beside, training_windows


def tune(
    model: Model | str | Path, reference: Model | str | Path, text: str, output: str | Path, *,
    config: PVConfig | None = None, context: int = 256, pilot: int = 0, progress: Progress | None = None,
) -> Tuned:  # fmt: skip
    """Tune a compressed model towards its original on ``text`` and save it; the same call goes on where a killed one stopped.

    Args:
        model: Compressed, loaded or what :func:`tersor.load` takes.
        reference: The original.
        text: A file or a known name; its last windows are held out to choose the best step, so never report numbers on it.
        output: A folder that does not exist, is empty, or is tersor's own. The state of an unfinished run is kept beside it.
        config: See :class:`tersor.finetuning.PVConfig`.
        context: Tokens of a window.
        pilot: Steps of each of the short tunings that choose the rates on the held-out windows first (see
            :func:`tersor.finetuning.choose_rates`); 0 takes those of ``config``. The best of them is gone on from.
        progress: Receives stages and steps.

    Returns:
        The tuned model and what was seen on the way.

    Raises:
        InvalidArgument: If the text is too short, nothing can be tuned, or the state beside the folder is of another job.
        TersorError: If the folder cannot be written; the state of the run is kept.
    """
    target, progress = Path(output), progress or Silent()
    check_target(target)
    small, original = (part if isinstance(part, Model) else load(part) for part in (model, reference))
    windows, held_out = training_windows(original, text, context, "tuning")
    config = config or PVConfig()
    state = state_beside(target, "tuning")
    if pilot:
        chosen = choose_rates(
            small, original, windows, held_out, config, steps=pilot, checkpoint=state, progress=counted(progress, "choosing rates"),
        )  # fmt: skip
        config = chosen.config
        progress.message(str(chosen))
    tuned = pv_tuning(small, original, windows, config, held_out=held_out, checkpoint=state, progress=counted(progress, "tuning"))
    tuned.model.save(target)
    rates_beside(state).unlink(missing_ok=True)
    state.unlink(missing_ok=True)
    return tuned
