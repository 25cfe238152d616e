"""Fine-tuning some parameters of a model and no others, under any training loop."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from torch import nn

from tersor.errors import InvalidArgument


class SelectiveFineTuning:
    """Only the named parameters of a model require a gradient, until :meth:`release`.

    That is all a training loop needs to know: give the optimizer :meth:`param_groups`, or hand the model to a transformers ``Trainer``
    or to accelerate, which collect what requires a gradient themselves. Everything else, biases and norms included, stays bit for bit
    what it was, and needs no gradient and no optimizer state. Works as a context manager too.

    Args:
        model: Changed in place, in what requires a gradient alone. Training then changes its values, and with them those of every
            model that shares them, such as the original of a :meth:`tersor.Model.copy`; ``copy.deepcopy`` the module to keep it.
        names: Names of parameters, as ``model.named_parameters()`` has them; a tied table has one of them.

    Raises:
        InvalidArgument: If a name is unknown, or there is none.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        >>> with SelectiveFineTuning(model, ["0.weight"]) as selected:
        ...     print([name for name, parameter in model.named_parameters() if parameter.requires_grad], selected.n_parameters)
        ['0.weight'] 16
        >>> model[1].weight.requires_grad
        True
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        known = dict(model.named_parameters())
        self.names = tuple(dict.fromkeys(names))
        if not self.names:
            raise InvalidArgument("no parameter was selected; name at least one")
        if unknown := [name for name in self.names if name not in known]:
            raise InvalidArgument(f"the model has no parameter {unknown[0]!r}; take names from model.named_parameters()")
        self.model = model
        self._before = {name: parameter.requires_grad for name, parameter in known.items()}
        for name, parameter in known.items():
            parameter.requires_grad_(name in self.names)

    @property
    def n_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.parameters())

    def parameters(self) -> list[nn.Parameter]:
        """The selected parameters, in the order of their names."""
        known = dict(self.model.named_parameters())
        return [known[name] for name in self.names]

    def param_groups(self, **options: Any) -> list[dict[str, Any]]:
        """One group for an optimizer of torch, with its ``options`` such as ``lr``."""
        return [{"params": self.parameters(), **options}]

    def release(self) -> None:
        """Let every parameter require a gradient, or not, as before; their values stay."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._before.get(name, parameter.requires_grad))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()
