"""What a compressor would send and take for the gradients of a model, found out without other workers."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tersor.distributed.hook import exchange
from tersor.distributed.state import ErrorFeedbackState
from tersor.distributed.wire import Wire
from tersor.errors import InvalidArgument


class RehearsalWire(Wire):
    """The wire of one worker that has no others: it counts for ``workers`` and hears its own messages from all of them.

    Args:
        workers: Number of workers to count for.
    """

    def __init__(self, workers: int) -> None:
        super().__init__(alone=True)
        self._workers = workers

    @property
    def world_size(self) -> int:
        return self._workers

    def all_reduce(self, tensor: Tensor) -> Tensor:
        self._count(tensor, 2 * (self._workers - 1) / self._workers)
        return tensor * self._workers

    def all_gather(self, tensor: Tensor) -> Tensor:
        self._count(tensor, self._workers - 1)
        return tensor.expand(self._workers, *tensor.shape)


@dataclass(frozen=True)
class Rehearsal:
    """One step of the exchange, as a worker would see it.

    Attributes:
        sent: Bytes that leave the worker, headers aside.
        dense: Bytes that plain averaging would send.
        seconds: What the worker computes for it on this machine: compressing, and adding up what all others sent.
    """

    sent: float
    dense: float
    seconds: float

    @property
    def pays_below(self) -> float:
        """Bits a second of the link below which the step gets shorter; 0 if it never does."""
        return 8 * max(self.dense - self.sent, 0.0) / self.seconds if self.seconds else math.inf

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "pays_below_bits_a_second": self.pays_below}


def rehearse(state: ErrorFeedbackState, shapes: Mapping[str, tuple[int, ...]], workers: int = 4, *, seed: int = 0) -> Rehearsal:
    """Exchange random gradients of these shapes with nobody, and count and time what a worker of ``workers`` would send and do.

    One tensor after the other, so that memory stays a few times that of the largest; the second step of each counts, because the first
    may send more. A state whose settings change with the data is seen at its first ones.

    Args:
        state: Settings; it must be new, and is as new afterwards.
        shapes: Of the parameters, by name.
        workers: Of the training.
        seed: Draws the gradients.

    Raises:
        InvalidArgument: If there are no shapes, fewer than two workers, or the state has taken a step.

    Example:
        >>> from tersor.distributed import ErrorFeedbackState, rehearse
        >>> seen = rehearse(ErrorFeedbackState("econtrol", "topk:0.01"), {"weight": (100, 100)}, workers=2)
        >>> seen.sent, seen.dense
        (800.0, 40000.0)
    """
    if not shapes or workers < 2:
        raise InvalidArgument(f"a rehearsal needs parameters and at least 2 workers, got {len(shapes)} and {workers}")
    if state.step or state.local:
        raise InvalidArgument("a rehearsal needs a new state, and this one has taken a step")
    wire, generator = state.wire, torch.Generator().manual_seed(seed)
    sent = seconds = 0.0
    try:
        for name, shape in shapes.items():
            gradients = {name: torch.randn(1, *shape, generator=generator)}
            state.wire = RehearsalWire(workers)
            exchange(state, gradients)
            before, began = state.wire.ring_bytes, time.perf_counter()
            exchange(state, gradients)
            seconds += time.perf_counter() - began
            sent += state.wire.ring_bytes - before
            state.forget()
    finally:
        state.wire, state.nbits = wire, 0
        state.forget()
    dense = 2 * (workers - 1) / workers * 4 * sum(math.prod(shape) for shape in shapes.values())
    return Rehearsal(sent, dense, seconds)
