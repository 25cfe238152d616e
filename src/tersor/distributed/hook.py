"""Compressed exchange in distributed data parallel training, and by hand."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tersor.distributed.rounds import Round
from tersor.distributed.state import ErrorFeedbackState
from tersor.errors import InvalidArgument

# No `from __future__ import annotations` here: DistributedDataParallel compares the annotations of a hook with the types themselves.


def register(ddp: nn.parallel.DistributedDataParallel, state: ErrorFeedbackState, *, scaler: Any = None) -> None:
    """Let ``state`` compress the gradients of a DDP model; call it once on every worker, before the first backward pass.

    Args:
        ddp: The wrapped model.
        state: A state made alike on every worker.
        scaler: The gradient scaler of the training loop if it has one; only a disabled one is accepted.

    Raises:
        InvalidArgument: If workers disagree on the state or a shape, the model is not wrapped, or a gradient scaler is in use.

    Example:
        ```python
        model = torch.nn.parallel.DistributedDataParallel(model)
        state = tersor.distributed.ErrorFeedbackState(mode="econtrol", compressor="topk:0.01")
        tersor.distributed.register(model, state)
        ```
    """
    if not isinstance(ddp, nn.parallel.DistributedDataParallel):
        raise InvalidArgument(f"register needs a model wrapped in DistributedDataParallel, got {type(ddp).__name__}")
    if scaler is not None and scaler.is_enabled():
        raise InvalidArgument(
            "a GradScaler changes the scale of gradients between steps, and what is remembered of earlier ones would not follow; "
            "train in bfloat16 without a scaler"
        )
    state.bind(ddp.module)
    parameters = {name: parameter for name, parameter in ddp.module.named_parameters() if parameter.requires_grad}
    device = next(iter(parameters.values())).device
    state.wire.check_agreement(_description(state, parameters), device)
    ddp.register_comm_hook(state, error_feedback_hook)


def error_feedback_hook(state: ErrorFeedbackState, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """The hook of :func:`register`: exchange the gradients of a bucket and put the result in their place.

    Every collective is issued here, in the order of the buckets, and waited for: see :class:`~tersor.distributed.wire.Wire`.
    """
    names = [state.name_of(parameter) for parameter in bucket.parameters()]
    gradients = bucket.gradients()
    directions = exchange(state, {name: gradient[None] for name, gradient in zip(names, gradients, strict=True)})
    for name, gradient in zip(names, gradients, strict=True):
        gradient.copy_(directions[name])
    if bucket.is_last():
        state.advance()
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def average_gradients(state: ErrorFeedbackState, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One compressed exchange without DDP: the direction of each parameter from this worker's gradients.

    Args:
        state: A state made alike on every worker.
        gradients: ``[*shape]`` for each name, in the same order on every worker.

    Returns:
        Tensors of the same shapes and types, bit-equal on every worker.

    Raises:
        InvalidArgument: If workers disagree on the state, a name or a shape; asked at the first call.
        TersorError: If another worker is gone.
    """
    if state.step == 0:
        device = next(iter(gradients.values())).device if gradients else None
        state.wire.check_agreement(_description(state, gradients), device)
    directions = exchange(state, {name: gradient[None] for name, gradient in gradients.items()})
    state.advance()
    return {name: directions[name].to(gradient.dtype) for name, gradient in gradients.items()}


def exchange(state: ErrorFeedbackState, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The three phases of :class:`~tersor.distributed.rounds.Round` over the process group; does not count as a step.

    Args:
        state: Settings and memory.
        gradients: ``[1, *shape]`` for each name.

    Returns:
        ``[*shape]`` for each name, in at least float32.
    """
    wire = state.wire
    phases = Round(state, gradients)
    sketch = None if phases.sketch is None else wire.all_reduce(phases.sketch[0].contiguous())
    to_sum, to_gather = phases.encode(sketch)
    summed = None if to_sum is None else wire.all_reduce(to_sum[0].contiguous())
    gathered = None if to_gather is None else wire.all_gather(to_gather[0].contiguous())
    return phases.finish(summed, gathered, wire.world_size)


def _description(state: ErrorFeedbackState, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    shapes = {f"the shape of {name}": list(tensor.shape) for name, tensor in tensors.items()}
    settings = {"the algorithm": state.algorithm, "the step": state.step, **state.describe()}
    return {**settings, "the order of parameters": list(tensors), **shapes}
