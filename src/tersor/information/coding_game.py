"""Markov coding games: an agent that tells a message by the way it acts, without acting any differently on average."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tersor.errors import InvalidArgument
from tersor.information.checking import Array, check_distribution
from tersor.information.coupling import Coupling, CouplingMethod, entropy, mec
from tersor.information.grid_world import MarkovProcess, soft_policy
from tersor.information.mec_b import Compressor, mec_b
from tersor.layerwise.checking import check_integer, check_number


@dataclass(frozen=True)
class Episode:
    """One message sent.

    Attributes:
        message: What was sent.
        decoded: What the receiver takes it for: the likeliest message at the end.
        reward: Discounted sum of the rewards.
        actions: Taken, in order.
        information: Bits that each action told, as mutual information before it was drawn.
        belief: The receiver's distribution ``[messages]`` at the end.
    """

    message: int
    decoded: int
    reward: float
    actions: list[int]
    information: list[float]
    belief: Array

    @property
    def correct(self) -> bool:
        """Whether the receiver got it."""
        return self.message == self.decoded


@dataclass
class MarkovCodingGame:
    """A message sent through the actions of a policy in a Markov decision process, to a receiver who sees states and actions.

    Before every action sender and receiver hold the same belief about the message. The action and the belief are coupled so that the
    action tells much of the message while its marginal law stays that of the policy: over messages, the agent acts and earns as it would
    without one. Below rate 1 the message goes through a code of ``rate * H(prior)`` bits first, which speeds the early steps up in
    exchange for accuracy at the end.

    Args:
        process: Where the agent acts, such as ``GridWorld().process()``.
        prior: Distribution ``[messages]``.
        rate: Bits of the code over those of the prior, from 0 to 1. The paper's compression rate is the inverse.
        temperature: Of the policy, see :func:`~tersor.information.soft_policy`.
        discount: Of later rewards.
        compressor: See :func:`~tersor.information.mec_b`.
        method: Of the coupling.
        longest: Steps after which an episode ends anyway.

    Raises:
        InvalidArgument: If the prior is no distribution or a number out of range.

    Reference:
        Sokota, de Witt, Igl, Zintgraf, Torr, Strohmeier, Kolter, Whiteson, Foerster: "Communicating via Markov Decision Processes", 2022.
        Ebrahimi, Chen, Khisti: "Minimum Entropy Coupling with Bottleneck", 2024.

    Example:
        >>> from tersor.information import GridWorld
        >>> game = MarkovCodingGame(GridWorld().process(), [0.25] * 4, temperature=0.05)
        >>> game.play(2, seed=0).decoded
        2
    """

    process: MarkovProcess
    prior: Any
    rate: float = 1.0
    temperature: float = float(np.exp(-6.0))
    discount: float = 0.95
    compressor: Compressor = "ebim"
    method: CouplingMethod = "max"
    longest: int = 200
    policy: Array = field(init=False)

    def __post_init__(self) -> None:
        self.prior = check_distribution("prior", self.prior)
        if check_number("rate", self.rate, 0.0) > 1:
            raise InvalidArgument(f"rate must be at most 1, got {self.rate!r}; the paper's compression rate is its inverse")
        check_integer("longest", self.longest, 1)
        self.policy = soft_policy(self.process, self.temperature, discount=self.discount)
        self._bits = self.rate * entropy(self.prior)

    def coupling(self, belief: Any, state: int) -> Coupling:
        """How message and action are coupled in ``state``.

        Args:
            belief: Distribution ``[messages]``.
            state: A state of the process.

        Returns:
            ``[messages, actions]``, with the belief and the policy as marginals.
        """
        actions = self.policy[state]
        if self.rate == 1:
            return mec(belief, actions, self.method)
        return mec_b(belief, actions, self._bits, method=self.method, compressor=self.compressor).whole

    def play(self, message: int, *, seed: int) -> Episode:
        """Send ``message``.

        Args:
            message: Its index; of positive prior probability.
            seed: Of the actions and of where they lead.

        Raises:
            InvalidArgument: If there is no such message.
        """
        check_integer("message", message, 0, len(self.prior) - 1)
        if self.prior[message] <= 0:
            raise InvalidArgument(f"message {message} has no probability under the prior; send another")
        random = np.random.default_rng(seed)
        belief, state = self.prior, self.process.start
        actions: list[int] = []
        information: list[float] = []
        reward, weight = float(self.process.rewards[state]), 1.0
        while not self.process.terminal[state] and len(actions) < self.longest:
            coupling = self.coupling(belief, state)
            action = _draw(random, coupling.joint[message])
            belief = coupling.joint[:, action] / coupling.joint[:, action].sum()
            actions.append(action)
            information.append(coupling.information)
            state = _draw(random, self.process.transitions[state, action])
            weight *= self.discount
            reward += weight * float(self.process.rewards[state])
        return Episode(message, int(belief.argmax()), reward, actions, information, belief)


def _draw(random: np.random.Generator, masses: Array) -> int:
    """An index with probability proportional to ``masses``; never one of mass zero."""
    cumulative = np.cumsum(masses)
    return int(np.searchsorted(cumulative, random.random() * cumulative[-1], side="right"))
