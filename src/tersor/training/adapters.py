"""The hooks of :class:`Compression` in the trainers of transformers and Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tersor.errors import InvalidArgument
from tersor.training.guards import check_framework

if TYPE_CHECKING:
    from tersor.training.compression import Compression


def trainer_callback(compression: Compression) -> Any:
    """A ``transformers.TrainerCallback``; an optimizer that :meth:`Compression.attach` knows already is left as it is."""
    from transformers import TrainerCallback

    class CompressionCallback(TrainerCallback):
        """Binds the optimizer when training begins, and tells when epochs end."""

        def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, lr_scheduler: Any = None, **_: Any) -> None:
            check_framework(compression.methods)
            if compression.total_steps is None:
                compression.total_steps = int(state.max_steps)
            if compression._optimizer is None:
                inner = getattr(optimizer, "optimizer", optimizer)
                known = len(inner.param_groups)
                compression.attach(inner)
                _schedule(getattr(lr_scheduler, "scheduler", lr_scheduler), inner.param_groups[known:])

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            logged = state.log_history[-1] if state.log_history else {}
            compression.epoch_end({key: float(value) for key, value in logged.items() if isinstance(value, (int, float))})

    return CompressionCallback()


def _schedule(scheduler: Any, groups: list[dict[str, Any]]) -> None:
    """Let ``scheduler``, which was built before the methods' own ``groups`` joined the optimizer, lead them like the first."""
    for group in groups if scheduler is not None else ():
        scheduler.base_lrs.append(group.setdefault("initial_lr", group["lr"]))
        if hasattr(scheduler, "lr_lambdas"):
            scheduler.lr_lambdas.append(scheduler.lr_lambdas[0])


def lightning_callback(compression: Compression) -> Any:
    """A Lightning ``Callback``, of whichever of its two packages is installed.

    Lightning gives the step a closure that computes the gradients, so the penalty is added between the two, not by a hook of the optimizer.

    Raises:
        InvalidArgument: If neither is installed.
    """
    try:
        from lightning.pytorch import Callback
    except ImportError:
        try:
            from pytorch_lightning import Callback
        except ImportError:
            raise InvalidArgument("Lightning is not installed; pip install lightning") from None

    class CompressionCallback(Callback):
        """Binds the optimizer when training starts, and tells when epochs end."""

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            if len(trainer.optimizers) != 1:
                raise InvalidArgument(f"the module has {len(trainer.optimizers)} optimizers; one Compression serves one optimizer")
            check_framework(compression.methods)
            if compression.total_steps is None:
                compression.total_steps = int(trainer.estimated_stepping_batches)
            compression._bind(getattr(trainer.optimizers[0], "optimizer", trainer.optimizers[0]))

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            compression.before_step()

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            compression.epoch_end({key: float(value) for key, value in trainer.callback_metrics.items()})

    return CompressionCallback()
