"""Train a language model with compression on board, and save what is left of it; resumable at any moment."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tersor import checkpoints
from tersor.errors import InvalidArgument
from tersor.finetuning.pv_tuning import divergence
from tersor.layerwise.checking import check_integer, check_number
from tersor.models import Model, load
from tersor.models.storage import check_target
from tersor.pipeline.progress import Progress, Silent
from tersor.pipeline.windows import state_beside, training_windows
from tersor.training import Compression, Method
from tersor.weights import LowRankWeight, SparseWeight, matrix_of

_SAVE_EVERY = 50
_WARM_UP = 0.05
# Fewer zeros are stored more cheaply as they are.
_LEAST_SPARSITY = 0.25


@dataclass(frozen=True)
class TrainedModel:
    """A model that was trained with compression on board.

    Attributes:
        model: With packed weights where the methods left zeros or low rank.
        losses: Divergence from the original on the windows of every step that this call took, in nats a token.
        held_out: Divergence from the original on windows that nothing was trained on.
        report: What the methods reached.
    """

    model: Model
    losses: list[float]
    held_out: float
    report: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the model left out."""
        return {"nbytes": self.model.nbytes, "held_out": self.held_out, "losses": self.losses, "report": self.report}

    def __str__(self) -> str:
        return f"{self.model.nbytes:,} bytes; {self.held_out:.4g} nats from the original on held-out windows after {len(self.losses)} steps"


def train(
    model: Model | str | Path, methods: Sequence[Method], text: str, output: str | Path, *,
    steps: int = 200, batch: int = 2, rate: float = 1e-4, context: int = 256, seed: int = 0, progress: Progress | None = None,
) -> TrainedModel:  # fmt: skip
    """Train ``model`` towards its own original while ``methods`` compress it, and save it; the same call resumes a killed one.

    The loss is the divergence from the original, so the text needs no labels and the model keeps its ways.

    Args:
        model: A dense language model, loaded or what :func:`tersor.load` takes; not changed.
        methods: Such as ``[tersor.training.GradualPruning(sparsity=0.5)]``.
        text: A file or a known name; its last windows are held out, never report numbers on the rest.
        output: A folder that does not exist, is empty, or is tersor's own. The state of an unfinished run is kept beside it.
        steps: Of AdamW, with warm-up and cosine decay to a tenth.
        batch: Windows a step.
        rate: Peak learning rate.
        context: Tokens of a window.
        seed: Of the order of windows and of what the methods draw.
        progress: Receives stages and steps.

    Returns:
        The model, and what was seen on the way.

    Raises:
        InvalidArgument: If an option is out of range, the text is too short, the model is compressed already, or the state beside the
            folder is of another job.
        TersorError: If the folder cannot be written; the state of the run is kept.
    """
    check_integer("steps", steps, 1)
    check_integer("batch", batch, 1)
    check_number("rate", rate, 0.0)
    target, progress = Path(output), progress or Silent()
    check_target(target)
    original = model if isinstance(model, Model) else load(model)
    if original.weights():
        raise InvalidArgument(f"model {original.name} is compressed already; train the dense one, or repair this one with tune")
    windows, held_out = training_windows(original, text, context, "training")
    student = Model(copy.deepcopy(original.module).float(), original.tokenizer, original.name)
    student.module.requires_grad_(True)
    compression = Compression(student.module, methods, total_steps=steps, seed=seed)
    optimizer = torch.optim.AdamW(student.module.parameters(), lr=rate, weight_decay=0.0)
    compression.attach(optimizer)
    state = state_beside(target, "training")
    job = {"original": original.fingerprint(), "steps": steps, "batch": batch, "rate": rate, "seed": seed, **checkpoints.tokens(windows)}
    compression.load(state, job)
    losses = _run(student, original, compression, optimizer, windows, steps, batch, state, job, progress)
    small = packed(student, compression.finalize())
    apart = _held_out(small, original, held_out)
    small.save(target)
    state.unlink(missing_ok=True)
    return TrainedModel(small, losses, apart, compression.report())


def packed(student: Model, module: nn.Module) -> Model:
    """The model of ``module`` with its zeros and its pairs of thin layers in packed form.

    Args:
        student: Gives tokenizer and name.
        module: What :meth:`tersor.training.Compression.finalize` left.
    """
    module.requires_grad_(False)
    model = Model(module, student.tokenizer, student.name)
    pairs = {name: layer for name, layer in module.named_modules() if type(layer) is nn.Sequential and _is_pair(layer)}
    for name, pair in pairs.items():
        down, up = pair[0], pair[1]
        assert isinstance(down, nn.Linear)
        assert isinstance(up, nn.Linear)
        dense = nn.Linear(down.in_features, up.out_features, up.bias is not None)
        dense.weight.data, dense.bias = up.weight @ down.weight, up.bias
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, dense)
        model.replace(name, LowRankWeight(up.weight.detach().half(), down.weight.detach().half()))
    for name, layer in model.linears().items():
        matrix = matrix_of(layer)
        if matrix is None:
            continue
        mask = matrix != 0
        if 1 - float(mask.float().mean()) >= _LEAST_SPARSITY and bool(mask.any()):
            model.replace(name, SparseWeight.from_dense(matrix.float(), mask, torch.float16))
    return model


def _is_pair(layer: nn.Sequential) -> bool:
    return len(layer) == 2 and type(layer[0]) is nn.Linear and type(layer[1]) is nn.Linear and layer[0].bias is None


def _run(
    student: Model, original: Model, compression: Compression, optimizer: torch.optim.Optimizer, windows: Tensor, steps: int, batch: int,
    state: Path, job: dict[str, Any], progress: Progress,
) -> list[float]:  # fmt: skip
    progress.start("training", steps)
    progress.advance(compression.step)
    losses: list[float] = []
    rate = job["rate"]
    for step in range(compression.step, steps):
        # Drawn anew from seed and step: a resumed run sees the windows that an undisturbed one does.
        generator = torch.Generator().manual_seed(job["seed"] * 1_000_003 + step)
        tokens = windows[torch.randint(windows.shape[0], (batch,), generator=generator)]
        for group in optimizer.param_groups:
            group["lr"] = rate * _share(step, steps)
        loss = divergence(student, original, tokens)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(student.module.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        progress.advance(1, note=f"{losses[-1]:.4g} nats")
        if compression.step % _SAVE_EVERY == 0 and compression.step < steps:
            compression.save(state, job)
    return losses


def _share(step: int, steps: int) -> float:
    warm = max(round(_WARM_UP * steps), 1)
    if step < warm:
        return (step + 1) / warm
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


@torch.no_grad()
def _held_out(model: Model, original: Model, windows: Tensor) -> float:
    return sum(float(divergence(model, original, part)) * len(part) for part in windows.split(4)) / len(windows)
