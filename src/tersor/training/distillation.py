"""Training of a student on what a teacher answers, or on labels; repeatable and resumable."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor import checkpoints
from tersor.errors import InvalidArgument
from tersor.training.student import PAD, SeededDropout, logits

Progress = Callable[[int, int, float], None]

_WARM_UP = 0.1


@dataclass(frozen=True)
class Distillation:
    """How a student is trained.

    Attributes:
        temperature: Softens both distributions. 10, as published.
        steps: Of AdamW, with a linear rise of the rate over a tenth of them and a linear fall.
        batch: Examples a step. 16, as published.
        learning_rate: At its highest. The paper takes 1e-4 for tens of thousands of steps; a thousand need more.
        measure_every: Steps between measurements on the validation examples and between checkpoints.
        seed: Of the order of the examples and of the dropout.
    """

    temperature: float = 10.0
    steps: int = 1000
    batch: int = 16
    learning_rate: float = 1e-3
    measure_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        positive = (self.temperature, self.steps, self.batch, self.learning_rate, self.measure_every)
        if not all(0 < value < float("inf") for value in positive):
            raise InvalidArgument(f"temperature, steps, batch, learning rate and measure_every must be positive and finite, got {positive}")

    def rate(self, step: int) -> float:
        """The learning rate of step ``step``, counted from 0."""
        warm = max(int(_WARM_UP * self.steps), 1)
        return self.learning_rate * min((step + 1) / warm, (self.steps - step) / max(self.steps - warm, 1))

    def rows(self, step: int, count: int) -> Tensor:
        """Which of ``count`` examples step ``step`` sees: all in a new order every epoch, whose last batch may be short."""
        epoch, place = divmod(step, -(-count // self.batch))
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + epoch))
        return order[place * self.batch : (place + 1) * self.batch]


@dataclass(frozen=True)
class Distilled:
    """What was seen on the way.

    Attributes:
        losses: At every step.
        accuracies: ``(step, accuracy)`` on the validation examples.
        best_step: Whose weights were kept.
    """

    losses: tuple[float, ...]
    accuracies: tuple[tuple[int, float], ...]
    best_step: int


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Divergence of the student's softened distribution from the teacher's, times the squared temperature, averaged over examples.

    The square keeps gradients of one size as the temperature grows; in the limit this is half the squared difference of the centred
    scores, divided by the number of classes.

    Args:
        student: Scores ``[n, classes]``.
        teacher: Scores ``[n, classes]``.
        temperature: Positive.

    Returns:
        Nats, a scalar.

    Reference:
        Hinton, Vinyals, Dean, Distilling the knowledge in a neural network (2015).
    """
    wanted, given = F.log_softmax(teacher / temperature, -1), F.log_softmax(student / temperature, -1)
    return F.kl_div(given, wanted, reduction="batchmean", log_target=True) * temperature**2


class TaughtStudent(nn.Module):
    """A student that says its own loss, as other loops want it: for the trainer of transformers, for accelerate, or for one of yours.

    :func:`distill` trains this with AdamW without weight decay, gradients clipped to a norm of 1, and the rates and rows of
    :class:`Distillation`. With the same of each, and without dropout, every loop ends at the same weights.

    Args:
        student: Of :func:`tersor.training.build_student`, or anything that ``forward`` runs.
        temperature: Softens both distributions.
        forward: Scores of the student on a batch of ids.
    """

    def __init__(self, student: nn.Module, temperature: float = 10.0, forward: Callable[[Any, Tensor], Tensor] = logits) -> None:
        super().__init__()
        self.student, self.temperature, self._scores = student, temperature, forward

    def forward(self, ids: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """``loss`` and ``logits [n, classes]``.

        Args:
            ids: Token ids ``[n, length]``, or pairs of them ``[n, 2, length]``.
            targets: Scores of a teacher ``[n, classes]``, or labels ``[n]`` of an integer type.
        """
        scores = self._scores(self.student, trimmed(ids))
        soft = targets.is_floating_point()
        return {"loss": soft_loss(scores, targets, self.temperature) if soft else F.cross_entropy(scores, targets), "logits": scores}


def distill(
    student: nn.Module, ids: Tensor, targets: Tensor, config: Distillation | None = None, *,
    forward: Callable[[Any, Tensor], Tensor] = logits, validation: tuple[Tensor, Tensor] | None = None,
    checkpoint: str | Path | None = None, progress: Progress | None = None,
) -> Distilled:  # fmt: skip
    """Train ``student`` in place.

    Args:
        student: Of :func:`tersor.training.build_student`, or anything that ``forward`` runs.
        ids: Token ids ``[n, length]``, or pairs of them ``[n, 2, length]``.
        targets: Scores of a teacher ``[n, classes]``, or labels ``[n]`` of an integer type for training without one.
        config: See :class:`Distillation`.
        forward: Scores of the student on a batch of ids.
        validation: Ids and labels that choose the best measurement, whose weights are kept; without them the last are.
        checkpoint: File to resume from and to write at every measurement; of another job it is refused.
        progress: Called with the step, the number of steps and the loss.

    Returns:
        Losses and measurements; the student is left in evaluation mode.

    Raises:
        InvalidArgument: If sizes do not fit, a score is not finite, or the checkpoint is of another job.
        CorruptFile: If the checkpoint is damaged.

    Reference:
        Shi et al., Compressing pre-trained models of code into 3 MB (2022).
    """
    config = config or Distillation()
    _check(ids, targets, validation)
    run = _Run(student, config, {"ids": _digest(ids), "targets": _digest(targets), "student": _digest(*student.state_dict().values())})
    if checkpoint is not None:
        run.restore(Path(checkpoint))
    taught = TaughtStudent(student, config.temperature, forward)
    dropouts = [module for module in student.modules() if isinstance(module, SeededDropout)]
    generator = torch.Generator()
    for dropout in dropouts:
        dropout.generator = generator
    try:
        while run.step < config.steps:
            # Everything random follows from the step, so that a resumed run draws the same.
            rows = config.rows(run.step, len(ids))
            generator.manual_seed(config.seed * 1_000_003 + run.step)
            run.advance(taught.train()(ids[rows], targets[rows])["loss"])
            if run.step % config.measure_every == 0 or run.step == config.steps:
                if validation is not None:
                    run.measure(accuracy(student, *validation, forward=forward))
                if checkpoint is not None:
                    run.save(Path(checkpoint))
            if progress is not None:
                progress(run.step, config.steps, run.losses[-1])
    finally:
        for dropout in dropouts:
            dropout.generator = None
    return run.finish()


def trimmed(ids: Tensor) -> Tensor:
    """Without the columns in which all rows are padding."""
    longest = int(ids.ne(PAD).sum(-1).max())
    return ids[..., : max(longest, 1)]


@torch.no_grad()
def predict(student: nn.Module, ids: Tensor, *, forward: Callable[[Any, Tensor], Tensor] = logits, batch: int = 64) -> Tensor:
    """Scores ``[n, classes]`` in evaluation mode.

    Args:
        student: A classifier; left in evaluation mode.
        ids: As in :func:`distill`.
        forward: Scores of a batch.
        batch: Examples at once.
    """
    student.eval()
    return torch.cat([forward(student, trimmed(part)) for part in ids.split(batch)])


def accuracy(student: nn.Module, ids: Tensor, labels: Tensor, *, forward: Callable[[Any, Tensor], Tensor] = logits) -> float:
    """Fraction of ``labels`` that score highest.

    Args:
        student: A classifier; left in evaluation mode.
        ids: As in :func:`distill`.
        labels: int64 ``[n]``.
        forward: Scores of a batch.
    """
    return float(predict(student, ids, forward=forward).argmax(-1).eq(labels).double().mean())


class _Run:
    """Weights, optimizer, the best measurement, and their file."""

    def __init__(self, student: nn.Module, config: Distillation, job: dict[str, str]) -> None:
        self.student, self.config = student, config
        self.identity = {**job, "config": asdict(config)}
        self.optimizer = torch.optim.AdamW(student.parameters(), lr=config.learning_rate, weight_decay=0.0)
        self.step, self.losses = 0, list[float]()
        self.accuracies: list[tuple[int, float]] = []
        self.best: dict[str, Tensor] | None = None
        self.best_step = 0

    def advance(self, loss: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.losses.append(loss.item())
        self.step += 1

    def measure(self, accuracy: float) -> None:
        if not self.accuracies or accuracy > max(value for _, value in self.accuracies):
            self.best = {name: tensor.clone() for name, tensor in self.student.state_dict().items()}
            self.best_step = self.step
        self.accuracies.append((self.step, accuracy))

    def save(self, path: Path) -> None:
        tensors = {f"student.{name}": tensor for name, tensor in self.student.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in (self.best or {}).items()}
        for place, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{place}.{name}": tensor for name, tensor in state.items()}
        facts = {"step": self.step, "losses": self.losses, "accuracies": self.accuracies, "best_step": self.best_step}
        checkpoints.write(path, tensors, facts, self.identity)

    def restore(self, path: Path) -> None:
        found = checkpoints.read(path, self.identity)
        if found is None:
            return
        tensors, facts = found
        self.step, self.losses, self.best_step = facts["step"], facts["losses"], facts["best_step"]
        self.accuracies = [(step, value) for step, value in facts["accuracies"]]
        self.student.load_state_dict(_under(tensors, "student."))
        self.best = _under(tensors, "best.") or None
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under(tensors, "optimizer.").items():
            place, _, key = name.partition(".")
            state.setdefault(int(place), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})

    def finish(self) -> Distilled:
        if self.best is not None:
            self.student.load_state_dict(self.best)
        self.student.eval()
        return Distilled(tuple(self.losses), tuple(self.accuracies), self.best_step or self.step)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _digest(*tensors: Tensor) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def _check(ids: Tensor, targets: Tensor, validation: tuple[Tensor, Tensor] | None) -> None:
    for name, some, wanted in (("training", ids, targets), *([("validation", *validation)] if validation is not None else [])):
        if len(some) == 0 or len(some) != len(wanted):
            raise InvalidArgument(f"{len(some)} {name} inputs have {len(wanted)} targets; give one for each, and at least one")
    if targets.is_floating_point() and not bool(targets.isfinite().all()):
        raise InvalidArgument("a score of the teacher is NaN or infinite; leave such examples out")
