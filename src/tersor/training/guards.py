"""What compression during training refuses at its door, because it would go wrong silently later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tersor.errors import InvalidArgument, TersorError
from tersor.training.method import Method

if TYPE_CHECKING:
    from collections.abc import Iterable

# Gradients that were averaged over processes are equal to the bit; those of different pictures differ in the first digits.
_APART = 1e-6


def check_job(model: nn.Module, methods: Sequence[Method], example_inputs: tuple[Any, ...] | None, seed: int) -> None:
    """What :class:`tersor.training.Compression` takes.

    Raises:
        InvalidArgument: Naming what is of the wrong type, which method serves another model already, or what is not finite or sharded.
    """
    if not isinstance(model, nn.Module):
        raise InvalidArgument(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(methods, Method) or not isinstance(methods, Sequence):
        raise InvalidArgument("methods must be a list, such as [GradualPruning(sparsity=0.9)]")
    if not methods:
        raise InvalidArgument("no method was given; name at least one, such as GradualPruning(sparsity=0.9)")
    for method in methods:
        if not isinstance(method, Method):
            told = f"the class {method.__name__}; call it with its options" if isinstance(method, type) else repr(method)
            raise InvalidArgument(f"a method must be an object such as GradualPruning(sparsity=0.9), got {told}")
        if method.serving:
            raise InvalidArgument(f"this {type(method).__name__} serves another Compression already; make one for each")
    if example_inputs is not None and not isinstance(example_inputs, tuple):
        raise InvalidArgument(f"example_inputs must be a tuple of the arguments of one forward pass, got {type(example_inputs).__name__}")
    if not isinstance(seed, int):
        raise InvalidArgument(f"seed must be an integer, got {seed!r}")
    if any(type(parameter).__name__ == "DTensor" for parameter in model.parameters()):
        raise InvalidArgument("the model is sharded over devices (DTensor), which training compression does not support; use DDP")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise InvalidArgument("give Compression the model itself, and wrap it in DistributedDataParallel afterwards")
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not parameter.is_meta and not bool(torch.isfinite(parameter).all()):
            raise InvalidArgument(f"{name} holds NaN or Inf; repair the model first")


def check_optimizer(optimizer: object, model: nn.Module, gone: Iterable[int]) -> None:
    """The optimizer of ``model``, from which parameters with the ids ``gone`` were taken.

    Raises:
        InvalidArgument: If it is none, or its parameters are not those of the model.
    """
    if not isinstance(optimizer, Optimizer):
        raise InvalidArgument(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not held.isdisjoint(gone):
        raise InvalidArgument(
            "the optimizer holds parameters that are no longer in the model; build it from model.parameters() after Compression(...)"
        )
    if held.isdisjoint({id(parameter) for parameter in model.parameters()}):
        raise InvalidArgument("the optimizer holds no parameter of the model; build it from compression.model.parameters()")


def check_trained(name: str, weight: Tensor, step: int) -> None:
    """A weight that a method is about to judge.

    Raises:
        TersorError: If it is not finite.
    """
    if not bool(torch.isfinite(weight).all()):
        raise TersorError(f"{name} is not finite after step {step}: training diverged; lower the learning rate")


def check_framework(methods: Sequence[Method]) -> None:
    """The methods of a training whose loop, and so the wrapper of the model, is a framework's.

    Raises:
        InvalidArgument: If there are several processes, and a method changes shapes in the middle.
    """
    for method in methods:
        if method.reshapes and _processes() > 1:
            raise InvalidArgument(
                f"{type(method).__name__} changes shapes in the middle of the training, which the framework's wrapper for several "
                "processes does not follow; train with one process, or in a loop of your own, see Compression.reshaped"
            )


def _processes() -> int:
    from torch import distributed

    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def check_replicas(parameters: Iterable[nn.Parameter], step: int) -> None:
    """The gradients of parameters that are new since ``step``: DistributedDataParallel knows nothing of them unless it was made anew.

    Raises:
        TersorError: If they differ between the processes of the group.
    """
    from torch import distributed

    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients or _processes() < 2:
        return
    sums = torch.stack([gradient.detach().double().sum() for gradient in gradients])
    extremes = torch.stack([sums, -sums])
    distributed.all_reduce(extremes, distributed.ReduceOp.MAX)
    highest, lowest = extremes[0], -extremes[1]
    if bool((highest - lowest > _APART * highest.abs().maximum(lowest.abs())).any()):
        raise TersorError(
            f"gradients differ between the processes since step {step} changed the shapes of parameters; wrap compression.model in "
            "DistributedDataParallel anew whenever compression.reshaped is the step just taken"
        )
