"""L-GreCo: how strongly each layer's gradient is compressed, chosen anew as training goes on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from tersor.allocation import Problem, Unit, lgreco
from tersor.distributed.accordion import Accordion, nearest
from tersor.distributed.compressors import Compressor
from tersor.distributed.error_tables import Metric, candidates, errors, knob_of, with_knob
from tersor.distributed.state import ErrorFeedbackState
from tersor.errors import InvalidArgument

# Sums over the steps that a choice looks at: of what had to be compressed, and of gradients.
_SUM, _GRADIENTS = "sum", "gradients"


class LGreCoState(ErrorFeedbackState):
    """An :class:`ErrorFeedbackState` whose compressor is turned for each layer on its own.

    Every ``adjust_every`` steps it takes the settings of fewest bytes whose errors add up to no more than ``alpha`` times those of the
    uniform setting, by :func:`tersor.allocation.lgreco`. What is measured is the average of what the last ``accumulate`` steps had to
    compress, errors fed back included; each worker measures its own, and the tables, a few numbers a layer, are averaged. Works in every
    mode: in ``"econtrol"`` the weight of the error follows each layer's setting if ``eta`` is ``"auto"``. Errors survive a change.

    Memory: one gradient's size more than the mode, from the first accumulation on; two with ``accordion``.

    Args:
        mode: As for :class:`ErrorFeedbackState`; ``"ef"`` with ``"lowrank:4"`` is PowerSGD with L-GreCo.
        compressor: The uniform setting, ``"lowrank:4"``, ``"topk:0.01"`` or ``"quant:4"``, which every choice is compared with.
        low: Smallest setting, as a multiple of the uniform one.
        high: Largest setting, likewise.
        alpha: Allowed error over that of the uniform setting.
        adjust_every: Steps between choices; before the first the setting is uniform.
        accumulate: Steps averaged before each choice.
        warmup: Steps at the start that are averaged dense.
        accordion: The error to stay within is that of Accordion's two settings rather than of the uniform one.
        metric: ``"l2"`` adds norms of errors, as the paper's code does; ``"l2sq"`` their squares: the error of the whole gradient.
        **options: Those of :class:`ErrorFeedbackState`.

    Raises:
        InvalidArgument: If an option is out of range or the compressor has no knob.

    Attributes:
        knobs: The current rank, number of entries or bits of each layer that was adjusted.
        history: A row for each adjustment: ``step``, ``nbytes`` and ``error`` of the choice and of the uniform setting, ``allowed_error``.

    Reference:
        Markov, Alimohammadi, Frantar, Alistarh: "L-GreCo: Layerwise-Adaptive Gradient Compression for Efficient and Accurate Deep
        Learning", 2024.
    """

    algorithm = "lgreco"

    def __init__(
        self, mode: str = "ef", compressor: str | Compressor = "lowrank:4", *, low: float = 0.5, high: float = 2.0, alpha: float = 1.0,
        adjust_every: int = 1000, accumulate: int = 10, warmup: int = 0, metric: Metric = "l2", accordion: Accordion | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(mode, compressor, **options)
        self.low, self.high, self.alpha, self.metric, self.accordion = low, high, alpha, metric, accordion
        self.adjust_every, self.accumulate, self.warmup = adjust_every, accumulate, warmup
        self._check_range()
        self.knobs: dict[str, int] = {}
        self.history: list[dict[str, float]] = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._adjusted = -1
        self._norms: dict[str, float] = {}

    def _check_range(self) -> None:
        knob_of(self.compressor, (2, 2))  # refuses what has none
        if not 0 < self.low <= 1 <= self.high < math.inf:
            raise InvalidArgument(f"low must be above 0 and at most 1 and high at least 1, got {self.low} and {self.high}")
        if not 0 < self.alpha < math.inf:
            raise InvalidArgument(f"alpha must be positive and finite, got {self.alpha}")
        if not 1 <= self.accumulate < self.adjust_every or self.warmup < 0:
            raise InvalidArgument(
                f"accumulate must be at least 1 and less than adjust_every, and warmup not negative, got {self.accumulate}, "
                f"{self.adjust_every} and {self.warmup}"
            )
        if self.metric not in get_args(Metric):
            raise InvalidArgument(f"metric must be one of {', '.join(get_args(Metric))}, got {self.metric!r}")

    def describe(self) -> dict[str, Any]:
        mine = ("low", "high", "alpha", "adjust_every", "accumulate", "warmup", "metric")
        accordion = None if self.accordion is None else vars(self.accordion)
        return {**super().describe(), **{name: getattr(self, name) for name in mine}, "accordion": accordion}

    def compressor_of(self, name: str, shape: tuple[int, ...]) -> Compressor | None:
        uniform = super().compressor_of(name, shape)
        if uniform is None or self.step < self.warmup:
            return None
        return with_knob(uniform, self.knobs[name]) if name in self.knobs else uniform

    def _left(self) -> int:
        """Steps until the next adjustment, from 1 to ``adjust_every``."""
        return self.adjust_every - (self.step - self.warmup) % self.adjust_every

    def observe(self, name: str, target: Tensor, gradient: Tensor) -> None:
        if self._left() <= self.accumulate:
            memory = self.local[name]
            seen = {_SUM: target} if self.accordion is None else {_SUM: target, _GRADIENTS: gradient}
            for key, tensor in seen.items():
                memory[key] = memory[key].add_(tensor) if key in memory else tensor.clone()

    def before(self, gradients: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes.update({name: tuple(shape) for name, shape in gradients.items()})
        due = self.step > self.warmup and self._left() == self.adjust_every
        if due and self._adjusted != self.step:
            self._adjusted = self.step
            self._adjust()

    def _adjust(self) -> None:
        """Measure, agree and choose; driven by the step alone, so that all workers come here at once."""
        names = sorted(name for name, memory in self.local.items() if _SUM in memory)
        if not names:
            return
        uniform = {name: super(LGreCoState, self).compressor_of(name, self._shapes[name]) for name in names}
        families = {name: compressor for name, compressor in uniform.items() if compressor is not None}
        knobs = {name: candidates(family, self._shapes[name], self.low, self.high) for name, family in families.items()}
        tables = []
        for name, family in families.items():
            rows = self.local[name].pop(_SUM) / self.accumulate
            tables.append(torch.stack([errors(family, knobs[name], row, self._shapes[name], self.metric) for row in rows]).mean(0))
        tables += self._pop_norms(families)
        flat = self.wire.all_reduce(torch.cat(tables)) / self.wire.world_size
        *measured, norms = flat.split([*(len(knobs[name]) for name in families), len(tables) - len(families)])
        reference = self._reference(families, knobs, norms.tolist())
        choice = self._choose(families, knobs, [table.tolist() for table in measured], reference)
        agreed = self.wire.broadcast(torch.tensor(choice, device=flat.device)).tolist()
        self.knobs = {name: knobs[name][index] for name, index in zip(families, agreed, strict=True)}

    def _pop_norms(self, names: Iterable[str]) -> list[Tensor]:
        """Of each layer the norm of the gradients that were added up, the mean over the workers of this process; empty where none were."""
        if self.accordion is None:
            return []
        sums = [self.local[name].pop(_GRADIENTS).double() for name in names]
        return [gradients.norm(dim=1).mean(0, keepdim=True) for gradients in sums]

    def _reference(self, families: Mapping[str, Compressor], knobs: Mapping[str, list[int]], norms: list[float]) -> list[int]:
        """For each layer the place of the setting whose error is allowed."""
        uniform = {name: knob_of(family, self._shapes[name]) for name, family in families.items()}
        if self.accordion is None:
            return [knobs[name].index(knob) for name, knob in uniform.items()]
        factors = [self.accordion.factor(self._norms.get(name), norm) for name, norm in zip(uniform, norms, strict=True)]
        self._norms = dict(zip(uniform, norms, strict=True))
        return [nearest(knobs[name], factor * knob) for (name, knob), factor in zip(uniform.items(), factors, strict=True)]

    def _choose(
        self, families: Mapping[str, Compressor], knobs: Mapping[str, list[int]], tables: Sequence[list[float]], reference: Sequence[int],
    ) -> Sequence[int]:  # fmt: skip
        units = []
        for (name, family), table in zip(families.items(), tables, strict=True):
            costs = tuple(with_knob(family, knob).nbytes(self._shapes[name]) for knob in knobs[name])
            units.append(Unit(name, costs, tuple(table), math.prod(self._shapes[name])))
        problem = Problem(tuple(units), sum(max(unit.costs) for unit in units))
        uniform = [knobs[name].index(knob_of(family, self._shapes[name])) for name, family in families.items()]
        choice = self._solve(problem, reference)
        self.history.append({
            "step": self.step, "nbytes": problem.cost(choice), "uniform_nbytes": problem.cost(uniform), "error": problem.error(choice),
            "uniform_error": problem.error(uniform), "allowed_error": self.alpha * problem.error(reference),
        })  # fmt: skip
        return choice

    def _solve(self, problem: Problem, reference: Sequence[int]) -> Sequence[int]:
        """The settings of fewest bytes within the error that is allowed."""
        allowed = self.alpha * problem.error(reference)
        if allowed == 0:  # nothing is lost and nothing can be told from it
            return reference
        if math.fsum(min(unit.errors) for unit in problem.units) > allowed:  # only possible below alpha = 1: as good as the range allows
            return [len(unit.costs) - 1 for unit in problem.units]
        return lgreco(problem, goal="cost", reference=reference, alpha=self.alpha).choices

    def _extra(self) -> dict[str, Any]:
        shapes = {name: list(shape) for name, shape in self._shapes.items()}
        history = [dict(row) for row in self.history]
        return {"knobs": dict(self.knobs), "history": history, "shapes": shapes, "adjusted": self._adjusted, "norms": dict(self._norms)}

    def _restore(self, extra: Mapping[str, Any]) -> None:
        self.knobs = {name: int(knob) for name, knob in extra["knobs"].items()}
        self.history = [dict(row) for row in extra["history"]]
        self._shapes = {name: tuple(shape) for name, shape in extra["shapes"].items()}
        self._adjusted = int(extra["adjusted"])
        self._norms = {name: float(norm) for name, norm in extra.get("norms", {}).items()}


class AccordionState(LGreCoState):
    """An :class:`ErrorFeedbackState` that compresses a layer less while its gradient changes fast: a baseline of :class:`LGreCoState`.

    Which of two settings a layer gets is decided every ``adjust_every`` steps by its gradient's norm alone, not by what either would lose.

    Args:
        mode: As for :class:`ErrorFeedbackState`.
        compressor: The uniform setting that both are multiples of.
        accordion: The two settings, and when each is taken.
        adjust_every: Steps between choices.
        accumulate: Steps whose gradients are added up before each.
        warmup: Steps at the start that are averaged dense.
        **options: Those of :class:`ErrorFeedbackState`.

    Raises:
        InvalidArgument: If an option is out of range or the compressor has no knob.

    Reference:
        Agarwal, Wang, Lee, Venkataraman, Papailiopoulos: "Adaptive Gradient Communication via Critical Learning Regime Identification",
        2021.
    """

    algorithm = "accordion"

    def __init__(
        self, mode: str = "ef", compressor: str | Compressor = "lowrank:4", *, accordion: Accordion | None = None, adjust_every: int = 1000,
        accumulate: int = 10, warmup: int = 0, **options: Any,
    ) -> None:  # fmt: skip
        chosen = accordion or Accordion()
        super().__init__(
            mode, compressor, low=chosen.calm, high=chosen.critical, adjust_every=adjust_every, accumulate=accumulate, warmup=warmup,
            accordion=chosen, **options,
        )  # fmt: skip

    def _solve(self, problem: Problem, reference: Sequence[int]) -> Sequence[int]:
        return reference
