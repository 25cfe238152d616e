"""One exchange of gradients in three phases, the same code for a process group and for workers simulated in one process."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.distributed import rules
from tersor.distributed.compressors import Compressor, Context, Message
from tersor.distributed.state import ErrorFeedbackState
from tersor.errors import InvalidArgument

_WARM = "warm"


@dataclass
class _Part:
    """One tensor on its way. ``compressor`` is ``None`` where it travels dense; ``starting`` where that also begins the memory."""

    name: str
    shape: tuple[int, ...]
    gradient: Tensor
    compressor: Compressor | None
    starting: bool
    context: Context
    target: Tensor
    shared: Tensor | None = None
    message: Message = ()
    forgets: bool = False


class Round:
    """Gradients of some parameters, from the workers of this process to the mean that every replica applies.

    First :attr:`sketch` is summed over all workers, then :meth:`encode` gives what is summed and what is gathered, then :meth:`finish`
    takes both and returns the direction of each parameter. Parameters go in the order of the mapping, the same on all workers.

    Args:
        state: Settings and memory; the memory changes.
        gradients: ``[workers, *shape]`` for each name, one worker in a process of a distributed run.

    Raises:
        InvalidArgument: If a gradient holds NaN or Inf, or its shape is not that of what is remembered.
    """

    def __init__(self, state: ErrorFeedbackState, gradients: Mapping[str, Tensor]) -> None:
        self._state = state
        state.before({name: tuple(gradient.shape[1:]) for name, gradient in gradients.items()})
        self._parts = [_begin(state, name, gradient) for name, gradient in gradients.items()]
        sketches = [part.compressor.sketch(part.target, part.context) if part.compressor else None for part in self._parts]
        self._sizes = [0 if sketch is None else sketch.shape[1] for sketch in sketches]
        made = [sketch for sketch in sketches if sketch is not None]
        self.sketch: Tensor | None = torch.cat(made, 1) if made else None

    def encode(self, sketch: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The messages.

        Args:
            sketch: The sum of :attr:`sketch` over all workers, ``[n]``.

        Returns:
            What has to be summed over all workers, ``[workers, a]``, and what has to be gathered, uint8 ``[workers, b]``; either may be
            ``None``.
        """
        pieces = iter([] if sketch is None else sketch.split([size for size in self._sizes if size]))
        summed, gathered = [], []
        for part, size in zip(self._parts, self._sizes, strict=True):
            if part.compressor is None:
                summed.append(part.gradient)
                self._state.nbits += 32 * part.context.numel
                continue
            part.shared = part.compressor.agree(next(pieces), part.context) if size else None
            part.message = part.compressor.compress(part.target, part.context, part.shared)
            sent = part.compressor.decompress(part.message, part.context, part.shared)
            _keep(self._state, part, sent)
            self._state.nbits += part.compressor.nbits(part.shape)
            if part.compressor.reduces:
                summed.append(part.message[0])
            else:
                gathered += [_bytes(tensor) for tensor in part.message]
        return torch.cat(summed, 1) if summed else None, torch.cat(gathered, 1) if gathered else None

    def finish(self, summed: Tensor | None, gathered: Tensor | None, world_size: int) -> dict[str, Tensor]:
        """What every replica applies.

        Args:
            summed: The first result of :meth:`encode`, summed over all workers, ``[a]``.
            gathered: The second of all workers, uint8 ``[world_size, b]``.
            world_size: Number of workers.

        Returns:
            For each name the direction, of the shape and type of the gradient.
        """
        at_sum = at_byte = 0
        directions = {}
        for part in self._parts:
            if part.compressor is None or part.compressor.reduces:
                size = part.gradient.shape[1] if part.compressor is None else part.message[0].shape[1]
                assert summed is not None
                mean = summed[at_sum : at_sum + size] / world_size
                at_sum += size
                if part.compressor is not None:
                    mean = self._expand(part, mean)
            else:
                assert gathered is not None
                message, at_byte = _read(part, gathered, at_byte)
                mean = part.compressor.total(message, part.context) / world_size
            directions[part.name] = self._apply(part, mean)
        return directions

    def _expand(self, part: _Part, mean: Tensor) -> Tensor:
        assert part.compressor is not None
        warm = part.compressor.remember((mean,), part.context)
        if warm is not None:
            self._state.shared.setdefault(part.name, {})[_WARM] = warm.clone()
        return part.compressor.decompress((mean[None],), part.context, part.shared)[0]

    def _apply(self, part: _Part, mean: Tensor) -> Tensor:
        memory = self._state.shared.setdefault(part.name, {})
        if part.starting:
            memory[rules.SERVER] = mean.clone()
        elif part.compressor is not None:
            if rules.tracks(self._state.mode) and rules.SERVER not in memory:
                memory[rules.SERVER] = torch.zeros_like(mean)
            mean = rules.direction(self._state.mode, memory.get(rules.SERVER), mean)
        if not memory:
            del self._state.shared[part.name]
        return mean.reshape(part.shape)


def _begin(state: ErrorFeedbackState, name: str, gradient: Tensor) -> _Part:
    """Look up the memory of a tensor, or begin it, and say what is to be compressed."""
    shape = tuple(gradient.shape[1:])
    rows = gradient.detach().flatten(1) if shape else gradient.detach()[:, None]
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    if not bool(torch.isfinite(rows).all()):
        raise InvalidArgument(
            f"the gradient of {name} holds NaN or Inf, which error feedback would remember for ever; "
            "lower the learning rate, and train in bfloat16 rather than with a GradScaler"
        )
    compressor = state.compressor_of(name, shape)
    context = Context(name, shape, state.step, state.wire.rank, state.shared.get(name, {}).get(_WARM))
    first = compressor is not None and name not in state.local
    if first:
        known = state.init == "dense" and rules.tracks(state.mode)
        state.local[name] = rules.start(state.mode, rows, known)
        if known:
            return _Part(name, shape, rows, None, True, context, rows)
    if compressor is None:
        return _Part(name, shape, rows, None, False, context, rows)
    memory = state.local[name]
    if any(tensor.shape != rows.shape for tensor in memory.values()):
        raise InvalidArgument(f"the gradient of {name} has {rows.shape[1]} entries for {rows.shape[0]} workers, its memory another size")
    target = rules.target(state.mode, rows, memory, state.eta_of(compressor, shape), state.beta)
    state.observe(name, target, rows)
    return _Part(name, shape, rows, compressor, False, context, target, forgets=first and state.init == "compressed")


def _keep(state: ErrorFeedbackState, part: _Part, sent: Tensor) -> None:
    memory = state.local[part.name]
    rules.absorb(state.mode, part.gradient, memory, sent)
    if part.forgets and rules.tracks(state.mode) and rules.ERROR in memory:
        memory[rules.ERROR].zero_()


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def _read(part: _Part, gathered: Tensor, start: int) -> tuple[Message, int]:
    """The message of a part from the bytes of all workers, and where the next begins."""
    assert part.compressor is not None
    tensors = []
    for shape, dtype in part.compressor.layout(part.shape, part.gradient.dtype):
        size = math.prod(shape) * dtype.itemsize
        # A copy, because a view of another type must begin at a multiple of its size.
        tensors.append(gathered[:, start : start + size].clone(memory_format=torch.contiguous_format).view(dtype).unflatten(1, shape))
        start += size
    return tuple(tensors), start
