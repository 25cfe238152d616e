"""From a language model and a text to a structurally smaller model in a folder that transformers loads by itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor.errors import InvalidArgument
from tersor.files import write_json
from tersor.models import Model, load
from tersor.models.export.output import check_output
from tersor.pipeline.progress import Progress, Silent, counted
from tersor.pipeline.windows import state_beside, training_windows

if TYPE_CHECKING:
    from tersor.training import Compresso, Pruned, Schedule

REPORT = "compresso.json"


@dataclass(frozen=True)
class PrunedModel:
    """A model that was made smaller in structure.

    Attributes:
        model: With the tokenizer of the original.
        pruned: What was seen on the way.
        prompt: Text to put in front of what the model is asked; empty if it was trained without.
        verified: How the logits of the folder, loaded by transformers, compare with its own.
    """

    model: Model
    pruned: Pruned
    prompt: str
    verified: dict[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the model left out."""
        return {"prompt": self.prompt, "verified": self.verified, **self.pruned.to_dict()}

    def __str__(self) -> str:
        return str(self.pruned)


def prune(
    model: Model | str | Path, text: str, output: str | Path, *,
    method: Compresso | None = None, schedule: Schedule | None = None, context: int = 256, prompt: str = "",
    progress: Progress | None = None,
) -> PrunedModel:  # fmt: skip
    """Prune the structure of a model by Compresso on ``text`` and write it; the same call goes on where a killed one stopped.

    Args:
        model: Loaded or what :func:`tersor.load` takes; a decoder of the Llama or Qwen kind that is not compressed.
        text: A file or a known name; its last windows are held out to choose the adapters, so never report numbers on it.
        output: A folder that does not exist, is empty, or is an earlier export. The state of an unfinished run is kept beside it.
        method: See :class:`tersor.training.Compresso`; the layers must be alike, or no folder of transformers could hold them.
        schedule: See :class:`tersor.training.Schedule`.
        context: Tokens of a window.
        prompt: Text in front of every window, such as :data:`tersor.training.COLLABORATIVE_PROMPT`; not scored.
        progress: Receives stages and steps.

    Returns:
        The smaller model; its folder also holds ``compresso.json``, which says how it came about.

    Raises:
        InvalidArgument: If the model is of another type or compressed, the text too short, the size out of reach, or the state
            beside the folder of another job.
        TersorError: If the folder cannot be written; the state of the run is kept.
    """
    from tersor.training import Compresso, compresso

    target, progress, method = Path(output), progress or Silent(), method or Compresso()
    check_output(target, is_folder=True)
    if method.per_layer:
        raise InvalidArgument("a folder of transformers cannot hold layers of different sizes; leave per_layer off")
    original = model if isinstance(model, Model) else load(model)
    if original.weights():
        raise InvalidArgument(f"{original.name} is compressed already; prune the original and compress what comes out")
    windows, held_out = training_windows(original, text, context, "pruning")
    front = original.encode(prompt) if prompt else None
    state = state_beside(target, "pruning")
    pruned = compresso(
        original.module, windows, method, schedule, held_out=held_out, prompt=front, checkpoint=state,
        progress=counted(progress, "pruning"),
    )  # fmt: skip
    small = Model(pruned.model, original.tokenizer, original.name)
    report = small.export(target, format="safetensors")
    made = PrunedModel(small, pruned, prompt, report.verified)
    write_json(target / REPORT, made.to_dict())
    state.unlink(missing_ok=True)
    return made
