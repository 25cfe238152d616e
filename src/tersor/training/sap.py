"""Sparsity-informed adaptive pruning: each round removes what the PQ index of the trained weights says can go."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_number
from tersor.layerwise.pq_index import check_norms, kept_at_least, pq_index
from tersor.training.rounds import PruningRounds


@dataclass(eq=False)
class SAP(PruningRounds):
    """Remove, in every round, as many weights as their PQ index bounds from above, and train the rest from where it began.

    Use it instead of :class:`LotteryTicket` when nobody knows a good share: it removes much while the weights are unequal and slows down by
    itself when all that is left matters alike. It costs a training a round as that does; :class:`GradualPruning` costs one in all.

    Attributes:
        p: Order of the smaller norm; ``(p, q) = (1, 2)`` removes several times as much a round as ``(0.5, 1)``.
        q: Order of the larger norm, above ``p``.
        eta: How much may go beside what stays, in ``sum |x|^p``; 0 is the published choice, more removes more.
        gamma: Multiplies the share that goes; 1 is the published choice.
        beta: Bound on that share, at least 0 and below 1, so that no group ever loses all.

    Raises:
        InvalidArgument: On an option out of range.

    Reference: Diao, Wang, Zhang, Yang, Ding, Tarokh (2023), "Pruning Deep Neural Networks from a Sparsity Perspective".

    Example:
        >>> import torch
        >>> from tersor.training import SAP, Compression
        >>> model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
        >>> compression = Compression(model, [SAP(rounds=2, epochs=1)])
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> _ = compression.attach(optimizer)
        >>> for _ in range(3):
        ...     loss = (model(torch.eye(16)) - 1).square().mean()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        ...     compression.epoch_end()
        >>> first, second = compression.report()["sap"]["kept"]
        >>> 1 > first > second > 0
        True
    """

    p: float = 0.5
    q: float = 1.0
    eta: float = 0.0
    gamma: float = 1.0
    beta: float = 0.9

    name = "sap"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_norms(self.p, self.q)
        check_number("eta", self.eta, 0.0)
        check_number("gamma", self.gamma, 0.0)
        check_number("beta", self.beta, 0.0, 1.0)
        if self.gamma == 0:
            raise InvalidArgument("gamma must be above 0; with 0 nothing would ever be removed")

    def _amounts(self, scores: Tensor, masks: Tensor) -> Tensor:
        count = masks.sum(1).double()
        index = pq_index(scores, self.p, self.q, mask=masks, dim=1)
        least = kept_at_least(index, count, self.p, self.q, self.eta).ceil()
        return torch.minimum(self.gamma * (count - least), self.beta * count).clamp(min=0.0).floor().long()
