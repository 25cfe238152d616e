"""The hooks of :class:`Compression` in the trainers of transformers and Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tersor.errors import InvalidArgument

if TYPE_CHECKING:
    from tersor.training.compression import Compression


def trainer_callback(compression: Compression) -> Any:
    """A ``transformers.TrainerCallback``; an optimizer that :meth:`Compression.attach` knows already is left as it is."""
    from transformers import TrainerCallback

    class CompressionCallback(TrainerCallback):
        """Binds the optimizer when training begins, and tells when epochs end."""

        def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
            if compression.total_steps is None:
                compression.total_steps = int(state.max_steps)
            if compression._optimizer is None:
                compression.attach(optimizer)

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            logged = state.log_history[-1] if state.log_history else {}
            compression.epoch_end({key: float(value) for key, value in logged.items() if isinstance(value, (int, float))})

    return CompressionCallback()


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
            if compression.total_steps is None:
                compression.total_steps = int(trainer.estimated_stepping_batches)
            compression._bind(getattr(trainer.optimizers[0], "optimizer", trainer.optimizers[0]))

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            compression.before_step()

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            compression.epoch_end({key: float(value) for key, value in trainer.callback_metrics.items()})

    return CompressionCallback()
