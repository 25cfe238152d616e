"""From a compressed model and its original to a tuned one, resumable at any moment."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from tersor.finetuning import PVConfig, Tuned, choose_rates, pv_tuning
from tersor.finetuning.rates import default_steps, rates_beside
from tersor.models import Model, load
from tersor.models.storage import check_target
from tersor.pipeline.progress import Progress, Silent, counted
from tersor.pipeline.windows import state_beside, training_windows


def tune(
    model: Model | str | Path, reference: Model | str | Path, text: str, output: str | Path, *,
    config: PVConfig | None = None, context: int = 256, pilot: int | None = None, progress: Progress | None = None,
) -> Tuned:  # fmt: skip
    """Tune a compressed model towards its original on ``text`` and save it; the same call goes on where a killed one stopped.

    Args:
        model: Compressed, loaded or what :func:`tersor.load` takes.
        reference: The original.
        text: A file or a known name; its last windows are held out to choose rates and the best step, so never report numbers on it.
        output: A folder that does not exist, is empty, or is tersor's own. The state of an unfinished run is kept beside it.
        config: See :class:`tersor.finetuning.PVConfig`.
        context: Tokens of a window.
        pilot: See :func:`tune_windows`.
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
    state = state_beside(target, "tuning")
    tuned = tune_windows(small, original, windows, held_out, config or PVConfig(), pilot, state, progress)
    tuned.model.save(target)
    forget(state)
    return tuned


def tune_windows(
    small: Model, original: Model, windows: Tensor, held_out: Tensor, config: PVConfig, pilot: int | None, state: Path,
    progress: Progress,
) -> Tuned:  # fmt: skip
    """Choose rates, then tune; see :func:`tersor.finetuning.choose_rates` and :func:`tersor.finetuning.pv_tuning`.

    Args:
        small: Compressed; left as it is.
        original: What it was made from.
        windows: Tokens ``[n, length]`` to train on.
        held_out: Windows that choose rates and the step that is kept.
        config: Everything but the rates, and these too without a pilot.
        pilot: Steps of each of the short tunings that choose the rates; the best of them is gone on from. 0: those of ``config``;
            ``None``: a fifth of all steps.
        state: File that a killed tuning goes on from; to be left with :func:`forget` once the result is written.
        progress: Receives stages and steps.
    """
    pilot = default_steps(config.steps) if pilot is None else pilot
    if pilot:
        choosing = counted(progress, "choosing rates")
        chosen = choose_rates(small, original, windows, held_out, config, steps=pilot, checkpoint=state, progress=choosing)
        config = chosen.config
        progress.message(str(chosen))
    return pv_tuning(small, original, windows, config, held_out=held_out, checkpoint=state, progress=counted(progress, "tuning"))


def forget(state: Path) -> None:
    """Delete the state of a tuning whose result is written."""
    state.unlink(missing_ok=True)
    rates_beside(state).unlink(missing_ok=True)
