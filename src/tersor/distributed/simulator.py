"""Many workers in one process, with the update code of the real thing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tersor.distributed.rounds import Round
from tersor.distributed.rules import ERROR
from tersor.distributed.state import ErrorFeedbackState
from tersor.distributed.wire import Wire, in_order
from tersor.errors import InvalidArgument

Gradients = Callable[[dict[str, Tensor], int], Mapping[str, Tensor]]
VECTOR = "x"


class Simulator:
    """Distributed gradient descent of ``n`` workers without processes: for studying rules, step sizes and compressors.

    The gradients of all workers go through :class:`~tersor.distributed.rounds.Round`, as those of one worker do in the DDP hook; only the
    sums and gathers between its phases are done here. A run equals that of as many processes up to the order of summation.

    Args:
        state: Mode and compressor; leaves its process group. Build it with ``min_numel=1, vectors=True`` to compress the single vector of a
            toy problem.
        parameters: A tensor, or tensors by name; copied.
        gradients: ``(parameters, step) -> {name: [workers, *shape]}``. For a single tensor its name is ``"x"``.

    Raises:
        InvalidArgument: If there are no parameters.

    Example:
        >>> import torch
        >>> from tersor.distributed import ErrorFeedbackState, Simulator
        >>> targets = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # worker i minimises |x - targets[i]|^2 / 2
        >>> state = ErrorFeedbackState(mode="econtrol", compressor="topk:0.5", min_numel=1, vectors=True)
        >>> simulator = Simulator(state, torch.zeros(2), lambda p, step: {"x": p["x"] - targets})
        >>> simulator.run(200, 0.2)["x"]
        tensor([0.5000, 0.5000])
    """

    def __init__(self, state: ErrorFeedbackState, parameters: Tensor | Mapping[str, Tensor], gradients: Gradients) -> None:
        given = {VECTOR: parameters} if isinstance(parameters, Tensor) else dict(parameters)
        if not given:
            raise InvalidArgument("a simulation needs at least one parameter")
        state.wire = Wire(alone=True)
        self.state = state
        self.parameters = {name: tensor.detach().clone() for name, tensor in given.items()}
        self._gradients = gradients

    def directions(self) -> dict[str, Tensor]:
        """One exchange at the current parameters: what plain SGD would subtract, times the learning rate. Counts as a step."""
        gradients = {name: self._checked(name, rows) for name, rows in self._gradients(self.parameters, self.state.step).items()}
        workers = next(iter(gradients.values())).shape[0]
        phases = Round(self.state, gradients)
        to_sum, to_gather = phases.encode(None if phases.sketch is None else in_order(phases.sketch))
        directions = phases.finish(None if to_sum is None else in_order(to_sum), to_gather, workers)
        self.state.advance()
        return directions

    def _checked(self, name: str, rows: Tensor) -> Tensor:
        if name not in self.parameters or rows.shape[1:] != self.parameters[name].shape:
            raise InvalidArgument(f"gradients must be [workers, *shape] for a known parameter, got {name!r} of shape {tuple(rows.shape)}")
        return rows

    def run(
        self, steps: int, learning_rate: float | Callable[[int], float], watch: Callable[[int, dict[str, Tensor]], None] | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Gradient descent along the directions.

        Args:
            steps: Steps to take.
            learning_rate: A number, or one for each step.
            watch: Called after each step with the number of steps taken and the parameters.

        Returns:
            The parameters, which are also :attr:`parameters`.
        """
        for _ in range(steps):
            rate = learning_rate(self.state.step) if callable(learning_rate) else learning_rate
            for name, direction in self.directions().items():
                self.parameters[name] -= rate * direction
            if watch is not None:
                watch(self.state.step, self.parameters)
        return self.parameters

    def virtual(self, learning_rate: float) -> dict[str, Tensor]:
        """The parameters less what the workers still owe, which do uncompressed SGD in modes ``"ef"`` and ``"econtrol"``."""
        virtual = {name: tensor.clone() for name, tensor in self.parameters.items()}
        for name, memory in self.state.local.items():
            if ERROR in memory:
                virtual[name] -= learning_rate * memory[ERROR].mean(0).reshape(virtual[name].shape)
        return virtual


def vector_state(mode: str, compressor: str, **options: float | str) -> ErrorFeedbackState:
    """A state that compresses a vector of any size, as toy problems need: ``min_numel=1, vectors=True``."""
    return ErrorFeedbackState(mode, compressor, min_numel=1, vectors=True, **options)  # type: ignore[arg-type]


def diverged(parameters: Mapping[str, Tensor], bound: float = 1e12) -> bool:
    """Whether a parameter is not finite or beyond ``bound``."""
    return any(not bool(torch.isfinite(tensor).all()) or float(tensor.abs().max()) > bound for tensor in parameters.values())
