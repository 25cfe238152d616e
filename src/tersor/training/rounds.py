"""Pruning in rounds: train, remove, begin again from the initial values. And the plain way to say how much: a fixed share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from tersor.layerwise.checking import check_choice, check_integer, check_number
from tersor.training.guards import check_trained
from tersor.training.method import Method
from tersor.training.targets import prunable

if TYPE_CHECKING:
    from tersor.training.compression import Compression

RoundScope = Literal["global", "layer", "neuron"]
Ranking = Literal["latest", "first"]


@dataclass(eq=False)
class PruningRounds(Method):
    """What methods that prune in rounds have in common; one says how much by :meth:`_amounts`.

    After every ``epochs`` epochs weights go, and the others are trained anew, from where they began. So the whole training takes
    ``(rounds + 1) * epochs`` epochs; measure the network of a round before its last :meth:`Compression.epoch_end`. The learning rate is
    the loop's own: let its schedule start again with every round.

    Attributes:
        rounds: How often weights are removed.
        epochs: Trained before each removal, and after the last.
        scope: Among what the smallest are sought: all weights together, those of a layer, or those of a neuron (a row, a filter).
        rewind: Give what is left its initial values after each removal, norms and biases too, and forget the moments of the optimizer;
            else the training goes on.
        targets: Names or patterns of layers, see :func:`tersor.training.prunable`; ``None`` for all but embeddings.
        ignore: What of those is left alone.

    Raises:
        InvalidArgument: On an option out of range.
    """

    rounds: int = 10
    epochs: int = 1
    scope: RoundScope = "global"
    rewind: bool = True
    targets: Sequence[str] | None = None
    ignore: Sequence[str] = ()
    _weights: dict[str, nn.Parameter] = field(default_factory=dict, init=False, repr=False)
    _masks: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _initial: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _kept: list[float] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        check_integer("rounds", self.rounds, 1)
        check_integer("epochs", self.epochs, 1)
        check_choice("scope", self.scope, RoundScope)

    def _amounts(self, scores: Tensor, masks: Tensor) -> Tensor:
        """How many go of each row of ``scores [groups, entries]``, of those that ``masks`` still has; fewer than all."""
        raise NotImplementedError

    def _scores(self) -> dict[str, Tensor]:
        """By what weights are compared; the lowest go."""
        return {name: weight.detach().abs() for name, weight in self._weights.items()}

    @property
    def masks(self) -> dict[str, Tensor]:
        """Which entries of each weight are left, by the name of the parameter."""
        return dict(self._masks)

    def attach(self, compression: Compression) -> None:
        """See :class:`Method`."""
        self._compression = compression
        self._weights = prunable(compression.model, self.targets, self.ignore)
        self._masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in self._weights.items()}
        if self.rewind:
            self._initial = {key: value.detach().clone() for key, value in compression.model.state_dict().items()}

    def rewrites(self) -> frozenset[str]:
        """See :class:`Method`."""
        return frozenset(self._weights)

    def after_step(self, step: int) -> None:
        """See :class:`Method`."""
        for name, mask in self._masks.items():
            self._weights[name].mul_(mask)

    def epoch_end(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """See :class:`Method`."""
        if epoch % self.epochs or epoch > self.rounds * self.epochs:
            return
        for name, weight in self._weights.items():
            check_trained(name, weight, self._compression.step)
        left: dict[str, Tensor] = {}
        for names, scores, masks in self._groups(self._scores()):
            kept = _without_lowest(scores, masks, self._amounts(scores, masks))
            sizes = [self._masks[name].numel() for name in names]
            parts = zip(names, kept.flatten().split(sizes), strict=True)
            left |= {name: part.reshape(self._masks[name].shape) for name, part in parts}
        self._masks = left
        self._kept.append(sum(int(mask.sum()) for mask in left.values()) / sum(mask.numel() for mask in left.values()))
        if self.rewind:
            self._compression.model.load_state_dict(self._initial)
            self._compression.forget_moments()
        self.after_step(0)

    def _groups(self, scores: Mapping[str, Tensor]) -> Iterator[tuple[list[str], Tensor, Tensor]]:
        """Names, scores and masks ``[groups, entries]`` of what is compared within its row."""
        if self.scope == "global":
            flat, masks = (torch.cat([part[name].flatten() for name in scores]).unsqueeze(0) for part in (scores, self._masks))
            yield list(scores), flat, masks
            return
        for name, score in scores.items():
            rows = score.shape[0] if self.scope == "neuron" else 1
            yield [name], score.reshape(rows, -1), self._masks[name].reshape(rows, -1)

    def finalize(self) -> None:
        """See :class:`Method`."""
        for name, mask in self._masks.items():
            self._weights[name].masked_fill_(~mask, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """See :class:`Method`."""
        masks = {f"mask/{name}": mask for name, mask in self._masks.items()}
        return {**masks, **{f"initial/{key}": value for key, value in self._initial.items()}, "kept": list(self._kept)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :class:`Method`."""
        self._masks = {name: state[f"mask/{name}"] for name in self._weights}
        self._initial = {key: state[f"initial/{key}"] for key in self._initial}
        self._kept = list(state["kept"])

    def report(self) -> dict[str, Any]:
        """Sparsity by weight and of all, weights left, and the share left after each round."""
        kept = {name: int(mask.sum()) for name, mask in self._masks.items()}
        total = sum(mask.numel() for mask in self._masks.values())
        return {
            "sparsity": 1 - sum(kept.values()) / total, "nonzero": sum(kept.values()), "numel": total, "kept": list(self._kept),
            "layers": {name: 1 - kept[name] / mask.numel() for name, mask in self._masks.items()},
        }  # fmt: skip


@dataclass(eq=False)
class LotteryTicket(PruningRounds):
    """Remove the same share of what is left in every round and train the rest from where it began.

    Costs a training a round. :class:`SAP` adapts the share to the weights; :class:`GradualPruning` needs one training for all.

    Attributes:
        fraction: Share of the remaining weights that a round removes, at least 0 and below 1.
        ranking: ``"latest"``: weights are compared by their magnitude after the round's own training; ``"first"``: after the first
            training, which makes it pruning in one shot, measured at several sparsities.

    Raises:
        InvalidArgument: On an option out of range.

    Reference: Frankle, Carbin (2019), "The Lottery Ticket Hypothesis".
    """

    fraction: float = 0.2
    ranking: Ranking = "latest"
    _first: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    name = "lottery_ticket"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("fraction", self.fraction, 0.0, 1.0)
        check_choice("ranking", self.ranking, Ranking)

    def _amounts(self, scores: Tensor, masks: Tensor) -> Tensor:
        return (masks.sum(1) * self.fraction).floor().long()

    def _scores(self) -> dict[str, Tensor]:
        if self.ranking == "latest":
            return super()._scores()
        self._first = self._first or {name: score.clone() for name, score in super()._scores().items()}
        return self._first

    def state_dict(self) -> dict[str, Any]:
        """See :class:`Method`."""
        return super().state_dict() | {f"first/{name}": score for name, score in self._first.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :class:`Method`."""
        super().load_state_dict(state)
        self._first = {name: state[f"first/{name}"] for name in self._weights if f"first/{name}" in state}


def _without_lowest(scores: Tensor, masks: Tensor, amounts: Tensor) -> Tensor:
    """``masks`` without the ``amounts`` lowest ``scores`` of each row: exact counts, of equal ones those that come first."""
    order = scores.masked_fill(~masks, torch.inf).argsort(dim=1, stable=True)
    places = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    ranks = torch.empty_like(order).scatter_(1, order, places)
    return masks & (ranks >= amounts.unsqueeze(1))
