"""PV-tuning under any training loop: the step of :func:`pv_tuning` as an optimizer, and the loss for trainers that ask the model for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import InvalidArgument
from tersor.finetuning.pv_tuning import PVConfig, _Job, loss_and_logits
from tersor.models import Model


class PVOptimizer(torch.optim.Optimizer):
    """The step of :func:`pv_tuning` for a loop of your own, accelerate, or the trainer of transformers.

    Train :attr:`student`, a dense twin of the compressed model, by any loss. A step pulls the gradients of its matrices back to codebooks,
    scales and kept values, moves codes within the bounds of the configuration, and writes the matrices anew, so that after every step the
    twin computes what :meth:`tuned` would. Gradients may be accumulated; schedulers act on all rates alike. Do not clip gradients if the
    result is to be that of :func:`pv_tuning`, which also keeps the best step and resumes by itself.

    Args:
        model: Compressed; left as it is.
        teacher: The original, of which the twin is made; left as it is.
        config: ``steps``, ``batch``, ``check_every`` and ``seed`` are the loop's own business and are not used.

    Attributes:
        student: The module to train.
        changes: Codes that changed in every step.

    Raises:
        InvalidArgument: If no layer can be tuned, or an option is out of range.

    Reference:
        Malinovskii et al.: "PV-Tuning: Beyond Straight-Through Estimation for Extreme LLM Compression", 2024.
    """

    def __init__(self, model: Model, teacher: Model, config: PVConfig | None = None) -> None:
        self._config = config or PVConfig()
        self._config.check()
        self._job = _Job(model, teacher, torch.empty(0, 0, dtype=torch.long), self._config, None)
        trained = [self._job._parameter(name) for name in self._job.weights]
        super().__init__([*trained, *self._job.norms.values()], {"lr": self._config.learning_rate})

    @property
    def student(self) -> nn.Module:
        """The module to train."""
        return self._job.student.module

    @property
    def changes(self) -> list[int]:
        """Codes that changed in every step: zero throughout means that the rate is below the first boundary."""
        return self._job.changes

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move values and codes by the gradients of the twin.

        Args:
            closure: Computes loss and gradients first, as torch's optimizers have it.

        Raises:
            InvalidArgument: If a matrix or norm has no gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        job = self._job
        if any(parameter.grad is None for group in self.param_groups for parameter in group["params"]):
            raise InvalidArgument("a matrix of the student has no gradient; call backward() on a loss of the whole student before step()")
        share = self.param_groups[0]["lr"] / self._config.learning_rate
        job.values.learning_rate = share * self._config.learning_rate
        job.buffer.learning_rate = share * self._config.code_learning_rate
        job.apply()
        return loss

    def tuned(self) -> Model:
        """The compressed model as it is now: the format, the bytes and the speed of the one that was given."""
        return self._job.result().model

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, the values of the student included."""
        job = self._job
        tensors = dict(job._trained())
        tensors |= {f"reference:{name}": value for name, value in job.references.items()}
        for part, optimizer in (("values", job.values), ("buffer", job.buffer)):
            tensors |= {f"{part}:{key}": moment for key, moment in optimizer.moments.items()}
        kept = {key: tensor.detach().clone() for key, tensor in tensors.items()}
        return {**super().state_dict(), "tuning": {"tensors": kept, "step": job.step, "changes": list(job.changes)}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            InvalidArgument: If the state is of another kind of optimizer or another model.
        """
        job = self._job
        try:
            tuning = state_dict["tuning"]
            tensors: Mapping[str, Tensor] = tuning["tensors"]
            references = {name: tensors[f"reference:{name}"].clone() for name in job.references}
            job._take(tensors)
        except KeyError as error:
            raise InvalidArgument(f"the state lacks {error}; it is not one of PV-tuning of this model") from None
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        job.references, job.step, job.changes = references, tuning["step"], list(tuning["changes"])
        for part, optimizer in (("values", job.values), ("buffer", job.buffer)):
            prefix = f"{part}:"
            optimizer.moments = {key.removeprefix(prefix): value.clone() for key, value in tensors.items() if key.startswith(prefix)}
            optimizer.steps = job.step


class TowardsOriginal(nn.Module):
    """A language model whose loss is its divergence from the original, as the trainer of transformers and other loops want it.

    Args:
        student: The module that is trained, such as :attr:`PVOptimizer.student`.
        teacher: The original; no part of what is trained or saved.
    """

    def __init__(self, student: nn.Module, teacher: Model) -> None:
        super().__init__()
        self.student = student
        self._teacher = (teacher,)  # a tuple keeps it out of the module's own parts

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """``loss`` in nats a token and ``logits [n, length, vocabulary]``.

        Args:
            input_ids: Tokens ``[n, length]``.
            labels: Not used: the original says what is right.
        """
        loss, logits = loss_and_logits(self.student, self._teacher[0].module, input_ids)
        return {"loss": loss, "logits": logits}
