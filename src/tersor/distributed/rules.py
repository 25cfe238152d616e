"""The update rules: what a worker compresses, what it keeps of the error, and what every replica makes of the messages.

Pure but for the memory, whose tensors change in place. All rules share one skeleton and one payload, so that they differ in nothing else.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from tersor.errors import InvalidArgument

Mode = Literal["csgd", "ef", "ef21", "ef21_sgdm", "econtrol"]
Init = Literal["dense", "zero", "compressed"]
Memory = dict[str, Tensor]

MODES: tuple[str, ...] = get_args(Mode)
INITS: tuple[str, ...] = get_args(Init)

# Names of what is remembered. "error": what was not sent yet; "tracked": what the replicas believe this worker's gradient to be;
# "momentum": the average of gradients that is tracked; "server": the mean of "tracked" over the workers, the same on every replica.
ERROR, TRACKED, MOMENTUM, SERVER = "error", "tracked", "momentum", "server"
_LOCAL: dict[str, tuple[str, ...]] = {
    "csgd": (), "ef": (ERROR,), "ef21": (TRACKED,), "ef21_sgdm": (TRACKED, MOMENTUM), "econtrol": (ERROR, TRACKED),
}  # fmt: skip


def check_mode(mode: str) -> str:
    """``mode``, if it is one.

    Raises:
        InvalidArgument: Listing the modes.
    """
    if mode not in MODES:
        raise InvalidArgument(f"unknown mode {mode!r}; choose one of {', '.join(MODES)}")
    return mode


def local_names(mode: str) -> tuple[str, ...]:
    """What a worker remembers of a tensor in ``mode``."""
    return _LOCAL[mode]


def tracks(mode: str) -> bool:
    """Whether messages are differences to what the replicas already have."""
    return TRACKED in _LOCAL[mode]


def start(mode: str, gradient: Tensor, known: bool) -> Memory:
    """A worker's memory before its first message.

    Args:
        mode: One of :data:`MODES`.
        gradient: ``[workers, numel]``, of the type that the memory shall have.
        known: Whether the replicas are told ``gradient`` itself, as with ``init="dense"``.

    Returns:
        One tensor like ``gradient`` for each of :func:`local_names`.
    """
    memory = {name: torch.zeros_like(gradient) for name in _LOCAL[mode]}
    for name in (TRACKED, MOMENTUM):
        if known and name in memory:
            memory[name].copy_(gradient)
    if MOMENTUM in memory:
        memory[MOMENTUM].copy_(gradient)  # the average begins at the first gradient whatever the replicas know
    return memory


def target(mode: str, gradient: Tensor, memory: Memory, eta: float, beta: float) -> Tensor:
    """What a worker compresses; ``"ef21_sgdm"`` moves its momentum first.

    Args:
        mode: One of :data:`MODES`.
        gradient: ``[workers, numel]``.
        memory: Of the same workers.
        eta: Weight of the error in ``"econtrol"``; with 0 it is ``"ef21"`` bit for bit.
        beta: Weight of the new gradient in the momentum.
    """
    if mode == "csgd":
        return gradient
    if mode == "ef":
        return memory[ERROR] + gradient
    if mode == "ef21_sgdm":
        gradient = memory[MOMENTUM].lerp_(gradient, beta)
    difference = gradient - memory[TRACKED]
    return difference.add_(memory[ERROR], alpha=eta) if mode == "econtrol" else difference


def absorb(mode: str, gradient: Tensor, memory: Memory, sent: Tensor) -> None:
    """Account for a message in a worker's memory: the error with the gradient that was tracked *before* it, then what is tracked.

    Args:
        mode: One of :data:`MODES`.
        gradient: ``[workers, numel]``, as handed to :func:`target`.
        memory: Changed in place.
        sent: What the message stands for, ``[workers, numel]``.
    """
    if ERROR in memory:
        memory[ERROR].add_(gradient)
        if TRACKED in memory:
            memory[ERROR].sub_(memory[TRACKED])
        memory[ERROR].sub_(sent)
    if TRACKED in memory:
        memory[TRACKED].add_(sent)


def direction(mode: str, server: Tensor | None, mean_sent: Tensor) -> Tensor:
    """What every replica hands to its optimizer: the mean message, or the mean of what is tracked with the messages added.

    Args:
        mode: One of :data:`MODES`.
        server: ``[numel]``, changed in place; ``None`` for modes that track nothing.
        mean_sent: Mean over all workers of what was sent, ``[numel]``.
    """
    return mean_sent if server is None else server.add_(mean_sent)
