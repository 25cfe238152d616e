"""A grid world with slippery moves, and the policy of maximum entropy in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tersor.errors import InvalidArgument
from tersor.information.checking import Array, check_rows, check_vector
from tersor.layerwise.checking import check_integer, check_number

# Up, right, down, left; the neighbours in this order are what a move slips to.
_MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
_DIAGONAL = tuple((step, step) for step in range(1, 8))


@dataclass(frozen=True)
class MarkovProcess:
    """A finite Markov decision process.

    Attributes:
        transitions: ``T[s, a, s']``, probabilities ``[states, actions, states]``.
        rewards: ``[states]``, earned in a state.
        terminal: ``[states]``, true where an episode ends.
        start: The state that it begins in.
    """

    transitions: Array
    rewards: Array
    terminal: Array
    start: int

    def __post_init__(self) -> None:
        shape = np.shape(self.transitions)
        if len(shape) != 3 or shape[0] != shape[2] or 0 in shape:
            raise InvalidArgument(f"transitions must be [states, actions, states], got shape {shape}")
        rows = check_rows("transitions", np.reshape(self.transitions, (-1, shape[2])))
        if rows.min() < 0 or not np.allclose(rows.sum(1), 1):
            raise InvalidArgument("transitions must hold probabilities that sum to 1 over the last axis")
        check_vector("rewards", self.rewards, shape[0])
        check_vector("terminal", self.terminal, shape[0])
        check_integer("start", self.start, 0, shape[0] - 1)


@dataclass(frozen=True)
class GridWorld:
    """A square grid whose moves slip to either side; the default puts a wall on the diagonal between the start and the goal.

    A move into a wall or off the grid leaves one where one was. Positions are ``(row, column)``, negative ones counted from the end.

    Attributes:
        size: Rows and columns.
        slip: Probability of slipping to either side of where one meant to go.
        start: Where an episode begins.
        goal: Worth 1; the episode ends.
        trap: Worth -1; the episode ends.
        walls: Cells that cannot be entered.

    Example:
        >>> world = GridWorld(size=3, slip=0.0, start=(0, 0), goal=(2, 2), trap=(0, 2), walls=())
        >>> world.process().transitions[0, 1].argmax()  # right of the first cell
        np.int64(1)
    """

    size: int = 8
    slip: float = 0.1
    start: tuple[int, int] = (5, 4)
    goal: tuple[int, int] = (0, -1)
    trap: tuple[int, int] = (1, -1)
    walls: Sequence[tuple[int, int]] = _DIAGONAL

    def process(self) -> MarkovProcess:
        """The Markov decision process: states are the cells row by row, actions up, right, down and left.

        Raises:
            InvalidArgument: If a cell lies outside the grid, two of start, goal, trap and walls coincide, or ``slip`` is not below 0.5.
        """
        check_integer("size", self.size, 2)
        check_number("slip", self.slip, 0.0, 0.5)
        walls = {self._state("walls", cell) for cell in self.walls}
        start, goal, trap = (self._state(name, getattr(self, name)) for name in ("start", "goal", "trap"))
        if len({start, goal, trap} | walls) != 3 + len(walls):
            raise InvalidArgument("start, goal, trap and walls must be different cells")
        n = self.size**2
        transitions = np.zeros((n, len(_MOVES), n))
        for state in range(n):
            for action in range(len(_MOVES)):
                for turn, probability in ((0, 1 - 2 * self.slip), (1, self.slip), (-1, self.slip)):
                    transitions[state, action, self._after(state, (action + turn) % len(_MOVES), walls)] += probability
        rewards, terminal = np.zeros(n), np.zeros(n, dtype=bool)
        rewards[goal], rewards[trap] = 1.0, -1.0
        terminal[[goal, trap]] = True
        return MarkovProcess(transitions, rewards, terminal, start)

    def _state(self, name: str, cell: tuple[int, int]) -> int:
        row, column = cell
        if not all(isinstance(place, int) and -self.size <= place < self.size for place in cell):
            raise InvalidArgument(f"{name} has the cell {cell}, outside a grid of {self.size} x {self.size}")
        return (row % self.size) * self.size + column % self.size

    def _after(self, state: int, action: int, walls: set[int]) -> int:
        row, column = state // self.size + _MOVES[action][0], state % self.size + _MOVES[action][1]
        inside = 0 <= row < self.size and 0 <= column < self.size
        moved = row * self.size + column
        return moved if inside and moved not in walls else state


def soft_policy(process: MarkovProcess, temperature: float, *, discount: float = 0.95, iterations: int = 100) -> Array:
    """The policy that earns the most with its entropy counted as reward, by soft Q iteration.

    Args:
        process: The decision process.
        temperature: What a nat of entropy is worth; the larger, the more random the policy, and the more it can tell.
        discount: Of later rewards, from 0 to 1.
        iterations: Sweeps over all states.

    Returns:
        ``[states, actions]``, the probability of each action.

    Raises:
        InvalidArgument: If the temperature is not positive or the discount not from 0 to 1.

    Reference:
        Ziebart, Maas, Bagnell, Dey: "Maximum Entropy Inverse Reinforcement Learning", 2008.
    """
    if check_number("temperature", temperature, 0.0) <= 0:
        raise InvalidArgument(f"temperature must be positive, got {temperature!r}; a greedy policy is the limit of small ones")
    if check_number("discount", discount, 0.0) > 1:
        raise InvalidArgument(f"discount must be at most 1, got {discount!r}")
    check_integer("iterations", iterations, 1)
    terminal = np.asarray(process.terminal, dtype=bool)
    values = np.zeros(process.transitions.shape[:2])
    for _ in range(iterations):
        states = np.where(terminal, process.rewards, _soft_maximum(values, temperature))
        values = process.rewards[:, None] + discount * process.transitions @ states
        values[terminal] = process.rewards[terminal, None]
    scaled = (values - values.max(1, keepdims=True)) / temperature
    weights = np.exp(scaled)
    policy: Array = weights / weights.sum(1, keepdims=True)
    return policy


def _soft_maximum(values: Array, temperature: float) -> Any:
    largest = values.max(1)
    return largest + temperature * np.log(np.exp((values - largest[:, None]) / temperature).sum(1))
