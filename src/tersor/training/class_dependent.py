"""Compression that spares some classes: a loss that weighs them, and lottery tickets drawn with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_choice, check_integer, check_number
from tersor.training.rounds import PruningRounds

if TYPE_CHECKING:
    from tersor.training.compression import Compression

Criterion = Literal["increase", "magnitude"]
_RAISE = 1.5  # factor by which the weight of the classes goes up after a round that missed too many of them


@dataclass
class ClassDependentLoss:
    """Cross-entropy in which some classes weigh more, and a term that wants each of their examples ahead of every other one.

    Attributes:
        classes: Labels that must not be missed; ``1`` for a network with a single logit.
        weight: Of their examples in the cross-entropy; 1 for the plain one.
        ranking: Of the second term: the mean squared shortfall of their probabilities below that of the highest other example of
            the batch. It is 0 where a batch has examples of one kind only.
        hardest: How many of the highest others are averaged; more make the term less noisy.

    Raises:
        InvalidArgument: On an option out of range, or at a call if a class is not among those of the logits.

    Reference: Entezari, Saukh (2020), "Class-dependent Compression of Deep Neural Networks".

    Example:
        >>> import torch
        >>> loss = ClassDependentLoss(1, weight=5.0)
        >>> missed, alarm = (loss(torch.tensor([[sign * 2.0]]), torch.tensor([label])) for sign, label in ((-1, 1), (1, 0)))
        >>> float(missed / alarm)
        5.0
    """

    classes: int | Sequence[int]
    weight: float = 5.0
    ranking: float = 1.0
    hardest: int = 1
    factor: float = field(default=1.0, init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.classes, (int, Sequence)):
            raise InvalidArgument(f"classes must be a label or a list of labels, got {self.classes!r}")
        wanted = (self.classes,) if isinstance(self.classes, int) else tuple(self.classes)
        for label in wanted:
            check_integer("classes", label, 0)
        if not wanted or len(set(wanted)) < len(wanted):
            raise InvalidArgument(f"classes must name at least one label, each once, got {self.classes!r}")
        self.classes = wanted
        check_number("weight", self.weight, 0.0)
        check_number("ranking", self.ranking, 0.0)
        check_integer("hardest", self.hardest, 1)
        if not self.weight:
            raise InvalidArgument("weight must be above 0; with 0 the classes would not be learned")

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of ``logits`` ``[n, classes]``, or ``[n]`` or ``[n, 1]`` for a single logit, and ``labels`` ``[n]``.

        Raises:
            InvalidArgument: If a class or a label is not among those of the logits, or the shapes do not fit.
        """
        if logits.ndim not in (1, 2) or labels.ndim != 1 or len(labels) != len(logits):
            raise InvalidArgument(
                f"logits must be [n, classes] and labels [n], got {list(logits.shape)} and {list(labels.shape)}; flatten what is more"
            )
        score = self.scores(logits)
        _check_labels(labels, max(logits.shape[1], 2) if logits.ndim == 2 else 2)
        positive = self.positive(labels)
        single = logits.ndim == 1 or logits.shape[1] == 1
        each = F.binary_cross_entropy_with_logits(score, positive.to(score.dtype), reduction="none") if single else F.cross_entropy(
            logits, labels, reduction="none"
        )  # fmt: skip
        entropy = torch.where(positive, self.weight * self.factor, 1.0).to(each.dtype).mul(each).mean()
        return entropy + self.ranking * self.shortfall(score, positive) if self.ranking else entropy

    def positive(self, labels: Tensor) -> Tensor:
        """Which ``labels`` are of the classes."""
        return torch.isin(labels, torch.tensor(self.classes, device=labels.device))

    def scores(self, logits: Tensor) -> Tensor:
        """One logit ``[n]`` for "of the classes" against "of the others"; above 0 means the former.

        Raises:
            InvalidArgument: If a class is not among those of the logits, or all of them are.
        """
        assert not isinstance(self.classes, int)
        if logits.ndim == 1 or logits.shape[1] == 1:
            if tuple(self.classes) != (1,):
                raise InvalidArgument(f"the network has a single logit, whose classes are 0 and 1; classes must be 1, got {self.classes}")
            return logits.reshape(-1)
        count = logits.shape[1]
        if max(self.classes) >= count:
            raise InvalidArgument(f"class {max(self.classes)} is out of range: the network tells {count} apart, 0 to {count - 1}")
        if len(self.classes) == count:
            raise InvalidArgument(f"classes names all {count} that the network tells apart; leave at least one out")
        own = torch.zeros(count, dtype=torch.bool, device=logits.device)
        own[list(self.classes)] = True
        return logits[:, own].logsumexp(1) - logits[:, ~own].logsumexp(1)

    def shortfall(self, scores: Tensor, positive: Tensor) -> Tensor:
        """The ranking term: 0 exactly if every positive example is ahead of the hardest others (with ``hardest`` 1: of all others)."""
        probabilities = scores.float().sigmoid()
        others = probabilities[~positive]
        if not len(others):
            return scores.sum() * 0
        highest = others.topk(min(self.hardest, len(others))).values.mean()
        behind = (probabilities[positive] - highest).clamp(max=0)
        return behind.square().sum() / (positive.sum() + 1)


def _check_labels(labels: Tensor, count: int) -> None:
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise InvalidArgument(f"labels must be integers, got {str(labels.dtype).removeprefix('torch.')}; convert them with .long()")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < count:
        told = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
        raise InvalidArgument(f"label {told} is out of range: the network tells {count} apart, 0 to {count - 1}")


def decision_threshold(scores: Tensor, positive: Tensor, misses: int) -> float:
    """The highest threshold at which no more than ``misses`` positive examples score below it.

    Set it on validation data; it trades false alarms for misses without another training, which the weight of the loss needs.

    Args:
        scores: ``[n]``, as :meth:`ClassDependentLoss.scores` makes them.
        positive: ``[n]``, boolean.
        misses: At least 0 and below the number of positive examples.

    Raises:
        InvalidArgument: If ``misses`` is out of range.
    """
    own = scores[positive].sort().values
    check_integer("misses", misses, 0, len(own) - 1)
    return float(own[misses])


@dataclass(eq=False)
class ClassAwareLottery(PruningRounds):
    """Lottery tickets for networks that must not miss certain classes: train with :class:`ClassDependentLoss`, remove, rewind, repeat.

    Each round halves what is left of every layer, by how much the magnitudes have grown since the beginning, and takes the network of the
    epoch that ``monitor`` liked best. With a ``tolerance`` the classes weigh more in the next round whenever too many of them were missed.
    With ``ClassDependentLoss(..., weight=1, ranking=0)`` and without a tolerance it is the class-agnostic ticket.

    Attributes:
        fraction: Share of the remaining weights of a layer that a round removes, at least 0 and below 1; every output keeps one.
        scope: As of :class:`LotteryTicket`.
        criterion: ``"increase"`` of the magnitude since the beginning, or the ``"magnitude"`` itself.
        loss: The object that the loop calls; its ``factor`` is raised where a ``tolerance`` asks for it.
        tolerance: How many more misses than the dense network are fine, as a share; ``None`` never changes the loss.
        highest: Bound on the factor.
        monitor: Which metric of :meth:`Compression.epoch_end` says what epoch of a round was best, the higher the better; the last
            one where it is not measured.
        misses: Which metric counts the missed examples of validation data; needed with a ``tolerance``.
        on_round: Called with the network of a round before weights are removed, and of the last one; what it returns is reported.

    Raises:
        InvalidArgument: On an option out of range.

    Reference: Entezari, Saukh (2020), "Class-dependent Compression of Deep Neural Networks".
    """

    fraction: float = 0.5
    scope: Literal["global", "layer", "neuron"] = "layer"
    criterion: Criterion = "increase"
    loss: ClassDependentLoss | None = None
    tolerance: float | None = None
    highest: float = 20.0
    monitor: str = "auc"
    misses: str = "false_negatives"
    on_round: Callable[[nn.Module], Mapping[str, Any]] | None = field(default=None, repr=False)
    _best: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _facts: dict[str, float] = field(default_factory=dict, init=False, repr=False)
    _rounds: list[dict[str, Any]] = field(default_factory=list, init=False, repr=False)

    name = "class_aware_lottery"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("fraction", self.fraction, 0.0, 1.0)
        check_choice("criterion", self.criterion, Criterion)
        check_number("highest", self.highest, 1.0)
        if not self.rewind:
            raise InvalidArgument("a class-aware ticket is rewound, so rewind must be True; LotteryTicket can go on instead")
        if self.tolerance is not None:
            check_number("tolerance", self.tolerance, 0.0)
            if self.loss is None:
                raise InvalidArgument("with a tolerance the loss is adapted; pass the ClassDependentLoss that the loop calls as loss=...")

    def attach(self, compression: Compression) -> None:
        """See :class:`Method`."""
        super().attach(compression)
        self._begin_round()

    def _begin_round(self) -> None:
        self._best, self._facts = {}, {}

    def _scores(self) -> dict[str, Tensor]:
        scores = super()._scores()
        for name, score in scores.items():
            if self.criterion == "increase":
                score = score - self._initial[name].abs()
            rows = score.flatten(1)
            # What each output keeps at least is out of the reach of every count.
            strongest = rows.masked_fill(~self._masks[name].flatten(1), -torch.inf).argmax(1, keepdim=True)
            scores[name] = rows.scatter(1, strongest, torch.inf).reshape(score.shape)
        return scores

    def _amounts(self, scores: Tensor, masks: Tensor) -> Tensor:
        within_reach = (masks & scores.isfinite()).sum(1)
        return torch.minimum((masks.sum(1) * self.fraction).floor().long(), within_reach)

    def epoch_end(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """See :class:`Method`."""
        if self.tolerance is not None and self.misses not in metrics:
            raise InvalidArgument(f"with a tolerance every epoch_end needs the metric {self.misses!r}; pass it in metrics=...")
        value = float(metrics.get(self.monitor, epoch))
        if not self._best or value > self._facts["value"]:
            self._best = {key: tensor.detach().clone() for key, tensor in self._compression.model.state_dict().items()}
            self._facts = {"value": value, "misses": float(metrics.get(self.misses, -1.0))}
        if epoch % self.epochs == 0 and epoch <= self.rounds * self.epochs:
            self._end_round()
            super().epoch_end(epoch, metrics)
            self._begin_round()

    def _end_round(self) -> None:
        """Take the best network of the round, record it, and let the classes weigh more if too many were missed."""
        self._compression.model.load_state_dict(self._best)
        left = sum(int(mask.sum()) for mask in self._masks.values()) / sum(mask.numel() for mask in self._masks.values())
        entry: dict[str, Any] = {"kept": left}
        if self._facts["misses"] >= 0:
            entry["misses"] = self._facts["misses"]
        if self.loss is not None:
            entry["weight"] = self.loss.weight * self.loss.factor
        self._rounds.append(entry)
        if self.tolerance is not None and self.loss is not None and not self._within(entry):
            self.loss.factor = min(self.loss.factor * _RAISE, self.highest)
        if self.on_round is not None:
            training = self._compression.model.training
            entry |= dict(self.on_round(self._compression.model.eval()))
            self._compression.model.train(training)

    def _within(self, entry: Mapping[str, Any]) -> bool:
        assert self.tolerance is not None
        return bool(entry["misses"] <= (1 + self.tolerance) * self._rounds[0]["misses"])

    def finalize(self) -> None:
        """See :class:`Method`."""
        if self._best:
            self._end_round()
            self._begin_round()
        super().finalize()

    def state_dict(self) -> dict[str, Any]:
        """See :class:`Method`."""
        best = {f"best/{key}": tensor for key, tensor in self._best.items()}
        factor = 1.0 if self.loss is None else self.loss.factor
        facts = {"facts": dict(self._facts), "rounds": [dict(entry) for entry in self._rounds], "factor": factor}
        return super().state_dict() | best | facts

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :class:`Method`."""
        super().load_state_dict(state)
        self._best = {key.removeprefix("best/"): tensor for key, tensor in state.items() if key.startswith("best/")}
        self._facts, self._rounds = dict(state["facts"]), [dict(entry) for entry in state["rounds"]]
        if self.loss is not None:
            self.loss.factor = state["factor"]

    def report(self) -> dict[str, Any]:
        """What :class:`LotteryTicket` reports, facts by round, and whether the last round kept the misses within the tolerance."""
        facts: dict[str, Any] = {"by_round": [dict(entry) for entry in self._rounds]}
        if self.tolerance is not None and self._rounds:
            facts["within_tolerance"] = self._within(self._rounds[-1])
        return super().report() | facts
