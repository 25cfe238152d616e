"""PV-tuning: train a compressed model to its original, values by gradients and codes by small, bounded moves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor import checkpoints
from tersor.errors import InvalidArgument
from tersor.finetuning.adaptive import Adaptive
from tersor.finetuning.discrete import DiscreteWeight, check_tunable, move
from tersor.layerwise.checking import check_choice, check_integer, check_number
from tersor.models import Model
from tersor.models.structure import logits_of
from tersor.weights.modules import set_matrix

Mode = Literal["pv", "p", "straight_through"]
Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class PVConfig:
    """How a model is tuned; the defaults are those of the released recipe unless a reason is given.

    Attributes:
        mode: ``"pv"``, ``"p"`` (values alone, codes stay) or ``"straight_through"`` (every code moves to the rounded buffer).
        steps: Optimiser steps.
        batch: Windows a step.
        learning_rate: Of codebooks, scales, kept values and norms.
        code_learning_rate: Length of a step of the buffer that codes follow, relative to that of the weight.
        max_code_change: Fraction of the codes of a layer that may change in a step.
        trust_ratio: Bound on a layer's change by its codes in a step, relative to its length.
        delta_decay: How far the buffer falls back to the stored weight after each step: 0 remembers everything, 1 needs no memory.
        force_update: Move a chosen code also where the nearest is the one it has; what ``delta_decay=1`` needs, or nothing ever moves.
        check_every: Steps between measurements on the held-out windows.
        seed: Of the order of the windows.
    """

    mode: Mode = "pv"
    steps: int = 100
    batch: int = 2
    learning_rate: float = 3e-4
    code_learning_rate: float = 3e-3
    max_code_change: float = 0.01
    trust_ratio: float = 0.01
    delta_decay: float = 0.0
    force_update: bool = False
    check_every: int = 20
    seed: int = 0

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            InvalidArgument: Naming the field and what is allowed.
        """
        check_choice("mode", self.mode, Mode)
        for name in ("steps", "batch", "check_every"):
            check_integer(name, getattr(self, name), 1)
        for name in ("learning_rate", "code_learning_rate", "trust_ratio"):
            check_number(name, getattr(self, name), 0.0)
        check_number("max_code_change", self.max_code_change, 0.0, 1.0 + 1e-12)
        check_number("delta_decay", self.delta_decay, 0.0, 1.0 + 1e-12)


@dataclass
class Tuned:
    """A tuned model and how it came about.

    Attributes:
        model: The model of the best held-out divergence, or of the last step where nothing was held out.
        losses: Divergence from the original on the windows of every step, in nats a token.
        changes: Codes that changed in every step, all layers together: zero throughout means that the rate is below the first boundary.
        held_out: ``(step, divergence)`` of every measurement, the first before any step.
        best_step: The step that ``model`` was taken at.
    """

    model: Model
    losses: list[float] = field(default_factory=list)
    changes: list[int] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    best_step: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, ``None`` for a loss that is NaN or infinite; the model left out."""
        held_out = [[step, _finite(loss)] for step, loss in self.held_out]
        return {"losses": [*map(_finite, self.losses)], "changes": self.changes, "held_out": held_out, "best_step": self.best_step}

    def __str__(self) -> str:
        changed = f"{sum(self.changes):,} codes changed in {len(self.changes)} steps"
        if not self.held_out:
            return changed
        best = min(loss for _, loss in self.held_out)
        return f"held-out divergence {self.held_out[0][1]:.4g} -> {best:.4g} nats at step {self.best_step}; {changed}"


def pv_tuning(
    model: Model, teacher: Model, windows: Tensor, config: PVConfig | None = None, *,
    held_out: Tensor | None = None, checkpoint: str | Path | None = None, progress: Progress | None = None,
) -> Tuned:  # fmt: skip
    """Tune every codebook, grid and sparse float weight of ``model``, and its norms, to the distribution of ``teacher``.

    At 2 bits and below, where one-shot methods leave most to win. The result has the format, the bytes and the speed of ``model``. Training
    needs the dense weights four times over in float32 besides the original (five with a buffer for the codes).

    Args:
        model: Compressed; left as it is. Its embeddings, biases and dense layers are not trained.
        teacher: The original, in float32.
        windows: Tokens ``[n, length]`` to train on.
        config: See :class:`PVConfig`.
        held_out: Windows to choose the best step by, step 0 among them, so that the result is not worse there than ``model``; never
            those that the result is reported on.
        checkpoint: File to resume from and to write at every measurement, in safetensors; of another job it is refused.
        progress: Called with the step, the number of steps and the loss.

    Returns:
        The tuned model with its losses and the number of codes that changed.

    Raises:
        InvalidArgument: If no layer can be tuned, the windows are not tokens of the model, an option is out of range or the checkpoint
            belongs to another job.

    Reference:
        Malinovskii, Mazur, Ilin, Kuznedelev, Burlachenko, Yi, Alistarh, Richtarik: "PV-Tuning: Beyond Straight-Through Estimation for
        Extreme LLM Compression", 2024.
    """
    config = config or PVConfig()
    config.check()
    _check_windows(windows, teacher)
    job = _Job(model, teacher, windows, config, held_out)
    if checkpoint is not None:
        job.restore(Path(checkpoint))
    if job.step == 0:
        job.measure()
    while job.step < config.steps:
        loss = job.advance()
        if progress is not None:
            progress(job.step, config.steps, loss)
        if job.step % config.check_every == 0 or job.step == config.steps:
            job.measure()
            if checkpoint is not None:
                job.save(Path(checkpoint))
    return job.result()


class _Job:
    """The state of a tuning: dense twins of the layers, the values and codes behind them, and the optimisers."""

    def __init__(self, model: Model, teacher: Model, windows: Tensor, config: PVConfig, held_out: Tensor | None) -> None:
        self.small, self.teacher, self.windows, self.config, self.unseen = model, teacher, windows, config, held_out
        self.weights: dict[str, DiscreteWeight] = check_tunable(model.weights())
        self.student = teacher.copy(torch.float32)
        self.layers = self.student.linears() | self.student.embeddings()
        for name in model.weights():
            set_matrix(self.layers[name], model.matrix(name))
            self.layers[name].requires_grad_(name in self.weights)
        self.norms = _norms(self.student.module, model.module)
        self.values = Adaptive(config.learning_rate, (0.9, 0.95), relative=False)
        self.buffer = Adaptive(config.code_learning_rate, (0.0, 0.95), relative=True)
        self.references = {} if config.mode == "p" else {name: self._matrix(name).clone() for name in self.weights}
        self.step = 0
        self.losses: list[float] = []
        self.changes: list[int] = []
        self.measured: list[tuple[int, float]] = []
        self.best: dict[str, Tensor] | None = None
        self.best_loss, self.best_step = float("inf"), 0

    def _matrix(self, name: str) -> Tensor:
        return self._parameter(name).detach()

    def _parameter(self, name: str) -> nn.Parameter:
        parameter = self.layers[name].weight
        assert isinstance(parameter, nn.Parameter)
        return parameter

    def advance(self) -> float:
        """One step; returns its loss."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        tokens = self.windows[torch.randint(self.windows.shape[0], (self.config.batch,), generator=generator)]
        loss = divergence(self.student, self.teacher, tokens)
        loss.backward()
        self.apply()
        self.losses.append(loss.item())
        return self.losses[-1]

    def apply(self) -> None:
        """Move values and codes by the gradients of the dense twins, and take those gradients off."""
        gradients, matrices = self._gradients(), {name: self._gradient(name) for name in self.weights}
        tensors = {f"{name}.{key}": value for name, weight in self.weights.items() for key, value in weight.values.items()} | self.norms
        with torch.no_grad():
            self.values.advance({key: tensor.data for key, tensor in tensors.items()}, gradients)
            self.changes.append(self._move_codes(matrices))
        self.step += 1

    def _gradient(self, name: str) -> Tensor:
        gradient = self._parameter(name).grad
        assert gradient is not None
        return gradient

    def _gradients(self) -> dict[str, Tensor]:
        """Gradients of codebooks, scales and norms: those of the dense weights, pulled back."""
        found: dict[str, Tensor] = {}
        for name, weight in self.weights.items():
            values = [value.requires_grad_(True) for value in weight.values.values()]
            pulled = torch.autograd.grad(weight.dense(), values, self._gradient(name))
            found |= {f"{name}.{key}": gradient for key, gradient in zip(weight.values, pulled, strict=True)}
            for value in values:
                value.requires_grad_(False)
        for key, norm in self.norms.items():
            assert isinstance(norm.grad, Tensor)
            found[key] = norm.grad
            norm.grad = None
        return found

    def _move_codes(self, gradients: Mapping[str, Tensor]) -> int:
        """Move the buffers, then the codes after them, then write the dense twins anew."""
        config, changed = self.config, 0
        if config.mode != "p":
            self.buffer.advance(self.references, gradients)
        free = config.mode == "straight_through"
        for name, weight in self.weights.items():
            parameter = self._parameter(name)
            parameter.grad = None
            current = weight.dense()
            if config.mode != "p":
                limits = (1.0, None, False) if free else (config.max_code_change, config.trust_ratio, config.force_update)
                changed += move(weight, self.references[name], current, *limits)
                current = weight.dense()
                if config.delta_decay > 0 and not free:
                    self.references[name].lerp_(current, config.delta_decay)
            set_matrix(self.layers[name], current)
        return changed

    def measure(self) -> None:
        """Keep this step if the held-out divergence is the lowest so far."""
        if self.unseen is None:
            return
        loss = float(self._held_out_loss())
        self.measured.append((self.step, loss))
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, self.step
            self.best = {key: tensor.detach().clone() for key, tensor in self._trained().items()}

    @torch.no_grad()
    def _held_out_loss(self) -> Tensor:
        assert self.unseen is not None
        return torch.stack([divergence(self.student, self.teacher, part) for part in self.unseen.split(self.config.batch)]).mean()

    def _trained(self) -> dict[str, Tensor]:
        """Everything that the result is made of."""
        found: dict[str, Tensor] = {f"norm:{key}": value.data for key, value in self.norms.items()}
        for name, weight in self.weights.items():
            found |= {f"value:{name}:{key}": value for key, value in weight.values.items()}
            found[f"choice:{name}"] = weight.choices
        return found

    def _take(self, tensors: Mapping[str, Tensor]) -> None:
        for key, norm in self.norms.items():
            norm.data = tensors[f"norm:{key}"].clone()
        for name, weight in self.weights.items():
            weight.values = {key: tensors[f"value:{name}:{key}"].clone() for key in weight.values}
            weight.choices = tensors[f"choice:{name}"]
            set_matrix(self.layers[name], weight.dense().detach())

    def result(self) -> Tuned:
        """The model of the best step."""
        if self.best is not None:
            self._take(self.best)
        tuned = self.small.copy()
        for name, weight in self.weights.items():
            tuned.replace(name, weight.finished())
        own = dict(tuned.module.named_parameters())
        for key, norm in self.norms.items():
            own[key].data = _as_small(norm.data, own[key].data)
        best = self.best_step if self.best is not None else self.step
        return Tuned(tuned, self.losses, self.changes, self.measured, best)

    def save(self, path: Path) -> None:
        """Write everything that the next step depends on."""
        tensors = dict(self._trained())
        tensors |= {f"reference:{name}": value for name, value in self.references.items()}
        for part, optimiser in (("values", self.values), ("buffer", self.buffer)):
            tensors |= {f"{part}:{key}": moment for key, moment in optimiser.moments.items()}
        if self.best is not None:
            tensors |= {f"best:{key}": value for key, value in self.best.items()}
        facts = {
            "step": self.step, "losses": self.losses, "changes": self.changes, "held_out": self.measured, "best_step": self.best_step,
            "best_loss": self.best_loss if self.best is not None else None,
        }  # fmt: skip
        checkpoints.write(path, tensors, facts, self._identity())

    def restore(self, path: Path) -> None:
        """Go on from ``path`` if it exists."""
        found = checkpoints.read(path, self._identity())
        if found is None:
            return
        tensors, facts = found
        self._take(tensors)
        self.references = {name: tensors[f"reference:{name}"] for name in self.references}
        self.step, self.losses, self.changes = facts["step"], facts["losses"], facts["changes"]
        self.measured = [(step, loss) for step, loss in facts["held_out"]]
        self.best_step = facts["best_step"]
        for part, optimiser in (("values", self.values), ("buffer", self.buffer)):
            prefix = f"{part}:"
            optimiser.moments = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            optimiser.steps = self.step
        if facts["best_loss"] is not None:
            self.best_loss = facts["best_loss"]
            self.best = {key.removeprefix("best:"): value for key, value in tensors.items() if key.startswith("best:")}

    def _identity(self) -> dict[str, Any]:
        fields = {key: value for key, value in vars(self.config).items() if key != "steps"}
        windows = checkpoints.tokens(self.windows)
        return {"model": self.small.fingerprint(), "teacher": self.teacher.fingerprint(), "config": fields, **windows}


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def divergence(student: Model, teacher: Model, tokens: Tensor) -> Tensor:
    """KL divergence of the student from the teacher in nats a token, on windows ``[n, length]``; differentiable in the student."""
    return loss_and_logits(student.module, teacher.module, tokens)[0]


def loss_and_logits(student: nn.Module, teacher: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`divergence`, and the student's logits ``[n, length, vocabulary]``."""
    with torch.no_grad():
        target = logits_of(teacher(tokens, use_cache=False)).flatten(0, 1).float().log_softmax(-1)
    logits = logits_of(student(tokens, use_cache=False)).float()
    return F.kl_div(logits.flatten(0, 1).log_softmax(-1), target, reduction="batchmean", log_target=True), logits


def _norms(student: nn.Module, small: nn.Module) -> dict[str, nn.Parameter]:
    """The vectors of the student's norms, with the values of the compressed model, ready to be trained."""
    values = dict(small.named_parameters())
    found = {name: parameter for name, parameter in student.named_parameters() if parameter.ndim == 1 and not name.endswith("bias")}
    for name, parameter in found.items():
        parameter.data = values[name].detach().float().clone()
        parameter.requires_grad_(True)
    return found


def _as_small(values: Tensor, before: Tensor) -> Tensor:
    """``values`` rounded to the smallest type that held what was there before, so that the saved model does not grow."""
    for dtype in (torch.float16, torch.bfloat16):
        if torch.equal(before.to(dtype).to(before.dtype), before):
            return values.to(dtype).to(before.dtype)
    return values.to(before.dtype)


def _check_windows(windows: Tensor, teacher: Model) -> None:
    if windows.ndim != 2 or windows.dtype != torch.long or windows.numel() == 0:
        raise InvalidArgument(f"windows must be token ids [n, length], got {windows.dtype} of shape {tuple(windows.shape)}")
    if int(windows.min()) < 0 or int(windows.max()) >= teacher.vocabulary:
        raise InvalidArgument(f"windows hold token {int(windows.max())} but the model knows {teacher.vocabulary}; use its own tokenizer")
