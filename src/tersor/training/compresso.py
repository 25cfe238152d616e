"""From a language model and text to a smaller one, resumable at any moment."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor import checkpoints
from tersor.errors import InvalidArgument, TersorError
from tersor.layerwise.checking import check_integer, check_number
from tersor.training.compression import Compression
from tersor.training.decoder import Masks
from tersor.training.gated import Compresso

# Of the learning rate while gates are learned: 5e-5 of 4e-4 in the published scripts. Adapters that learn fast under noise heal slowly.
GATED_SHARE = 1 / 8

Progress = Callable[[int, int, float], None]

# Says to the model, in words of ours, what the paper's prompt says.
COLLABORATIVE_PROMPT = (
    "You are a language model that is being made smaller while you read this. A pruning algorithm tries out which of your attention heads, "
    "inner units and dimensions can be spared, and you learn at the same time to work without them. Cooperate with it: keep what you know, "
    "move what matters into the parts that stay, and answer as accurately, fluently and helpfully as the full model would, with fewer "
    "parameters and less time.\n\n"
)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a model is trained.

    Attributes:
        steps: Optimiser steps, the gates' and the healing together.
        batch: Windows a step.
        learning_rate: Of the adapters when gates are fixed, linearly down to zero; an eighth of it while gates are learned, as published.
        check_every: Steps between measurements on the held-out windows, and between checkpoints.
        seed: Of adapters, gates, noise and the order of the windows.
    """

    steps: int = 600
    batch: int = 8
    learning_rate: float = 2e-3
    check_every: int = 25
    seed: int = 0

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            InvalidArgument: Naming the field and what is allowed.
        """
        for name in ("steps", "batch", "check_every"):
            check_integer(name, getattr(self, name), 1)
        check_number("learning_rate", self.learning_rate, 0.0)

    def rate(self, step: int, fixed: int = 0) -> float:
        """The learning rate of step ``step``, counted from 0, if gates are fixed at step ``fixed``."""
        healing = max(self.steps - fixed, 1)
        rise = max(0.03 * healing, 1.0)
        if step < fixed:
            return GATED_SHARE * self.learning_rate
        return self.learning_rate * min((step - fixed + 1) / rise, (self.steps - step) / healing)


@dataclass
class Pruned:
    """A smaller model and how it came about.

    Attributes:
        model: Plain and of the class of the original, see :func:`tersor.training.slice_decoder`.
        masks: Of the original: 0 where a part was cut out, 1 where it stays, which it does whole.
        parameters: Of the model.
        original_parameters: Of the original.
        losses: Of every step, in nats a token.
        expected_keep: After every step, the expected fraction of the parameters that is left.
        held_out: ``(step, loss)`` on the held-out windows, without noise.
        best_step: The step that the adapters were taken from: of those after the gates were fixed, the best on the held-out windows.
        masked_loss: Held-out loss before the cut, and
        sliced_loss: after it: equal but for rounding. ``None`` if nothing was held out.
    """

    model: nn.Module
    masks: Masks
    parameters: int
    original_parameters: int
    losses: list[float] = field(default_factory=list)
    expected_keep: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    best_step: int = 0
    masked_loss: float | None = None
    sliced_loss: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, model and masks left out but for the sizes."""
        facts = {key: value for key, value in vars(self).items() if key not in ("model", "masks")}
        return facts | vars(self.masks.shape)

    def __str__(self) -> str:
        share = self.parameters / self.original_parameters
        shape = self.masks.shape
        text = f"{self.original_parameters:,} -> {self.parameters:,} parameters ({share:.1%}), width {shape.width}"
        if shape.uniform:
            text += f", {shape.groups[0]} key-value heads and {shape.units[0]} units a layer"
        if self.masked_loss is not None and self.sliced_loss is not None:
            text += (
                f"; held-out perplexity {math.exp(self.held_out[0][1]):.4g} -> {math.exp(self.masked_loss):.4g} masked, "
                f"{math.exp(self.sliced_loss):.4g} cut (adapters of step {self.best_step})"
            )
        return text


def compresso(
    model: nn.Module, windows: Tensor, method: Compresso | None = None, schedule: Schedule | None = None, *,
    held_out: Tensor | None = None, prompt: Tensor | None = None, checkpoint: str | Path | None = None, progress: Progress | None = None,
) -> Pruned:  # fmt: skip
    """Prune a language model in structure while adapters heal it, and cut what was pruned out of it.

    In a training loop of your own give :class:`Compresso` to a :class:`Compression` instead.

    Args:
        model: A causal language model of transformers in float32, see :class:`tersor.training.Decoder` for the types; left as it is.
        windows: Tokens ``[n, length]`` to train on.
        method: Size and options; 80 % of the parameters by default. Serves one call only.
        schedule: See :class:`Schedule`.
        held_out: Windows by which the step of the adapters is chosen, never those that the result is reported on.
        prompt: Tokens in front of every window, such as those of :data:`COLLABORATIVE_PROMPT`; they carry no loss. Use the model
            with the same prompt then.
        checkpoint: File to resume from and to write at every measurement, in safetensors; of another job it is refused.
        progress: Called with the step, the number of steps and the loss.

    Returns:
        The smaller model and what was seen on the way.

    Raises:
        InvalidArgument: If the model is of another type or holds NaN, the size cannot be reached, tokens are not its own, or the
            checkpoint belongs to another job.
        TersorError: If the loss becomes NaN.

    Reference:
        Guo, Xu, Zhang, Yang: "Compresso: Structured Pruning with Collaborative Prompting Learns Compact Large Language Models", 2023.
    """
    schedule = schedule or Schedule()
    schedule.check()
    for tokens in (windows, held_out, None if prompt is None else prompt[None]):
        if tokens is not None:
            _check_tokens(tokens, model)
    job = _Job(model, windows, method or Compresso(), schedule, held_out, prompt)
    if checkpoint is not None:
        job.restore(Path(checkpoint))
    if job.step == 0:
        job.measure()
    while job.step < schedule.steps:
        loss = job.advance()
        if progress is not None:
            progress(job.step, schedule.steps, loss)
        if job.step % schedule.check_every == 0 or job.step == schedule.steps:
            job.measure()
            if checkpoint is not None:
                job.save(Path(checkpoint))
    return job.result()


def language_loss(model: nn.Module, tokens: Tensor, prompt: Tensor | None = None) -> Tensor:
    """Mean negative log-likelihood, in nats, of all tokens of the windows but the first of each.

    Args:
        model: A causal language model of transformers.
        tokens: ``[n, length]``.
        prompt: Tokens ``[m]`` in front of every window, which carry no loss.
    """
    inputs = tokens[:, :-1]
    begin = 0 if prompt is None else prompt.shape[0]
    if prompt is not None:
        inputs = torch.cat([prompt.expand(tokens.shape[0], -1), inputs], 1)
    logits: Tensor = model(input_ids=inputs, use_cache=False).logits[:, begin:]
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


def _check_tokens(tokens: Tensor, model: nn.Module) -> None:
    vocabulary = int(getattr(getattr(model, "config", None), "vocab_size", 0))
    if tokens.ndim != 2 or tokens.is_floating_point() or tokens.shape[0] == 0 or tokens.shape[1] < 1:
        raise InvalidArgument(f"windows must be token ids [n, length], got {tokens.dtype} of shape {tuple(tokens.shape)}")
    if vocabulary and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
        known = f"the model knows 0 to {vocabulary - 1}"
        raise InvalidArgument(f"windows hold tokens from {int(tokens.min())} to {int(tokens.max())}, {known}; use its tokenizer")


class _Job:
    """The state of one pruning: a copy of the model, its hooks, and the optimizer."""

    def __init__(
        self, model: nn.Module, windows: Tensor, method: Compresso, schedule: Schedule, held_out: Tensor | None, prompt: Tensor | None,
    ) -> None:  # fmt: skip
        self.windows, self.schedule, self.unseen, self.prompt, self.method = windows, schedule, held_out, prompt, method
        self.model = copy.deepcopy(model)
        self.original_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.compression = Compression(self.model, [method], total_steps=schedule.steps, seed=schedule.seed)
        self.adapters = {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        self.trained = self.adapters | method.named_parameters()
        # Where there are no adapters the frozen weights stand in: without a gradient they stay what they are.
        trained = list(self.adapters.values()) or list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(trained, lr=schedule.learning_rate, weight_decay=0.0)
        self.compression.attach(self.optimizer)
        self.fixed = 0 if method.masks is not None else self.compression.resolve(method.fix)
        self.losses: list[float] = []
        self.keeps: list[float] = []
        self.measured: list[tuple[int, float]] = []
        self.best: dict[str, Tensor] | None = None
        self.best_loss, self.best_step = math.inf, 0

    @property
    def step(self) -> int:
        return self.compression.step

    def advance(self) -> float:
        """One step; returns its loss."""
        schedule = self.schedule
        generator = torch.Generator().manual_seed(schedule.seed * 1_000_003 + self.step)
        tokens = self.windows[torch.randint(self.windows.shape[0], (schedule.batch,), generator=generator)]
        self.optimizer.param_groups[0]["lr"] = schedule.rate(self.step, self.fixed)
        self.model.train()
        loss = language_loss(self.model, tokens, self.prompt)
        if not torch.isfinite(loss):
            raise TersorError(f"the loss is {loss.item()} at step {self.step + 1}; lower learning_rate, or rate of the gates")
        self.optimizer.zero_grad(set_to_none=True)
        if loss.requires_grad:  # nothing is left to train where gates are fixed and there are no adapters
            loss.backward()
        nn.utils.clip_grad_norm_(list(self.adapters.values()), 1.0)
        learning = self.method.settled is None
        self.optimizer.step()
        if learning and self.method.settled is not None:
            # Healing is a training of its own: the second moments of noisy gates would slow it down for a thousand steps.
            for parameter in self.adapters.values():
                self.optimizer.state.pop(parameter, None)
        self.losses.append(loss.item())
        self.keeps.append(self.method.expected_keep())
        return self.losses[-1]

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        assert self.unseen is not None
        self.model.eval()
        parts = self.unseen.split(self.schedule.batch)
        total = sum(float(language_loss(self.model, part, self.prompt)) * part.shape[0] for part in parts)
        return total / self.unseen.shape[0]

    def measure(self) -> None:
        """Keep the adapters of this step if gates are fixed and the held-out loss is the lowest so far."""
        if self.unseen is None:
            return
        loss = self._held_out_loss()
        self.measured.append((self.step, loss))
        if self.method.settled is not None and loss < self.best_loss:
            self.best_loss, self.best_step = loss, self.step
            self.best = {name: parameter.detach().clone() for name, parameter in self.adapters.items()}

    def result(self) -> Pruned:
        """The model of the best step, cut."""
        if self.best is not None:
            _assign(self.adapters, self.best)
        masked = None if self.best is None else self.best_loss
        self.compression.finalize()
        masks = self.method.settled
        assert masks is not None
        self.model.eval()
        sliced = None if self.unseen is None else self._held_out_loss()
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return Pruned(
            self.model, masks, parameters, self.original_parameters, self.losses, self.keeps, self.measured,
            self.best_step if self.best is not None else self.step, masked, sliced,
        )  # fmt: skip

    def save(self, path: Path) -> None:
        """Write everything that the next step depends on; the frozen weights are the caller's."""
        tensors: dict[str, Tensor] = {f"value:{name}": parameter for name, parameter in self.trained.items()}
        for name, parameter in self.trained.items():
            tensors |= {f"optimizer:{name}:{key}": value for key, value in self.optimizer.state.get(parameter, {}).items()}
        tensors |= {f"method:{key}": value for key, value in self.method.state_dict().items()}
        tensors["generator"] = self.compression.generator.get_state()
        if self.best is not None:
            tensors |= {f"best:{name}": value for name, value in self.best.items()}
        facts = {
            "step": self.step, "losses": self.losses, "keeps": self.keeps, "held_out": self.measured, "best_step": self.best_step,
            "best_loss": self.best_loss if self.best is not None else None,
        }  # fmt: skip
        # A file of safetensors holds no tensor twice.
        checkpoints.write(path, {key: tensor.detach().clone() for key, tensor in tensors.items()}, facts, self._identity())

    def restore(self, path: Path) -> None:
        """Go on from ``path`` if it exists."""
        found = checkpoints.read(path, self._identity())
        if found is None:
            return
        tensors, facts = found
        _assign(self.trained, _part(tensors, "value:"))
        for name, parameter in self.trained.items():
            if state := _part(tensors, f"optimizer:{name}:"):
                self.optimizer.state[parameter] = dict(state)
        self.compression.step = facts["step"]
        self.compression.generator.set_state(tensors["generator"])
        self.method.load_state_dict(_part(tensors, "method:"))
        self.losses, self.keeps, self.best_step = facts["losses"], facts["keeps"], facts["best_step"]
        self.measured = [(step, loss) for step, loss in facts["held_out"]]
        if facts["best_loss"] is not None:
            self.best_loss, self.best = facts["best_loss"], _part(tensors, "best:")

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to fit."""
        given = {"windows": self.windows, "held_out": self.unseen, "prompt": self.prompt}
        texts = {name: checkpoints.tokens(tokens)["windows"] for name, tokens in given.items() if tokens is not None}
        frozen = [parameter for name, parameter in self.model.named_parameters() if name not in self.adapters]
        weights = checkpoints.tokens(torch.stack([parameter.detach().double().sum() for parameter in frozen]))["windows"]
        chosen = self.method.masks
        masks = {} if chosen is None else {name: checkpoints.tokens(mask)["windows"] for name, mask in vars(chosen).items()}
        return {**vars(self.schedule), "method": repr(self.method), "masks": masks, "model": weights, **texts}


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


@torch.no_grad()
def _assign(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
