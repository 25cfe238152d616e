"""What a method of compression during training may do, and when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from tersor.training.compression import Compression


class Method:
    """One way to compress a model while it is trained; every hook does nothing here.

    A method is a dataclass whose fields are its options, checked when it is made. What it learns of a model it keeps from
    :meth:`attach` on, so it serves one :class:`Compression` only. Nothing in it counts steps or knows the training loop.
    """

    name: ClassVar[str]
    serving = False  # whether a Compression has taken it
    reshapes = False  # whether it changes shapes in the middle of a training, which wrappers for several processes do not follow

    def attach(self, compression: Compression) -> None:
        """Look at ``compression.model`` and change it in place: swap layers, prepare masks.

        Raises:
            InvalidArgument: If the model has nothing that the method works on, or a layer named in the options is not in it.
        """
        raise NotImplementedError

    def rewrites(self) -> frozenset[str]:
        """Names of the parameters whose values the method overwrites; two methods may not overwrite the same."""
        return frozenset()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer of parameters that need options of their own, such as ``lr``; the rest is the user's."""
        return []

    def penalty(self) -> Tensor | None:
        """What is added to the loss, once a step of the optimizer; ``None`` for nothing."""
        return None

    def after_step(self, step: int) -> None:
        """Called without gradients after step ``step`` of the optimizer, counted from 1."""

    def epoch_end(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Called after epoch ``epoch``, counted from 1, with what the user measured."""

    def finalize(self) -> None:
        """Leave plain modules of torch in the model: no hook, no parametrization, constraints met exactly."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain JSON values, flat, from which :meth:`load_state_dict` goes on."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`: called after :meth:`attach` to a fresh model, before its values are restored.

        A method that changes shapes gives the model those of the state here.
        """

    def report(self) -> dict[str, Any]:
        """Plain JSON values that say what was reached, such as sparsity or ranks by layer."""
        return {}


def is_plain(model: nn.Module) -> bool:
    """Whether ``model`` is left with no parametrization and no hook on a forward pass."""
    from torch.nn.utils.parametrize import is_parametrized

    return not any(is_parametrized(module) or module._forward_pre_hooks or module._forward_hooks for module in model.modules())
