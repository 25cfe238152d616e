"""How tight a bound is over pairs of an algorithm and a distribution, not over seeds of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_integer
from tersor.limits.generalization.twins import Draw, Twin

Estimator = Callable[[Draw], float]


@dataclass(frozen=True)
class Audit:
    """What an estimator of the true error was worth on one twin.

    Attributes:
        bound: Its name.
        pair: Name of the twin.
        mean_error: Mean of ``|estimate - loss|`` over a fair coin for the world; no estimator that sees only sample and hypothesis is
            below ``gap``.
        worst_error: The larger of the means of the two worlds.
        violated: Fraction of runs in which the estimate was below the loss: for a valid bound at most its ``delta``.
        vacuous: Fraction of runs in which it was not below the error of guessing.
        gap: What the twin proves.
        trials: Runs a world.
    """

    bound: str
    pair: str
    mean_error: float
    worst_error: float
    violated: float
    vacuous: float
    gap: float
    trials: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def audit(bounds: Mapping[str, Estimator], pairs: Mapping[str, Twin], trials: int = 500, seed: int = 0) -> list[Audit]:
    """Measure every bound on every twin.

    Args:
        bounds: Name to a function of a :class:`Draw`; it may look at everything but ``loss``. One that looks at ``held_out`` uses more
            than the training data, and is the only kind that can be tight.
        pairs: Name to a :class:`ShatteredTwin`, a :class:`FieldTwin`, or yours.
        trials: Training runs for each world.
        seed: Of the runs; all bounds see the same ones.

    Raises:
        InvalidArgument: If there is nothing to audit, or an estimate is not a number.

    Reference:
        Gastpar, Nachum, Shafer, Weinberger: "Fantastic Generalization Measures are Nowhere to be Found", 2024.
    """
    check_integer("trials", trials, 1)
    if not bounds or not pairs:
        raise InvalidArgument("an audit needs at least one bound and one pair of worlds")
    audits = []
    for number, (pair, twin) in enumerate(pairs.items()):
        worlds = [
            [twin.draw(world, np.random.default_rng([seed, number, which, t])) for t in range(trials)] for which, world in enumerate("AB")
        ]
        audits += [_audited(name, estimator, pair, twin, worlds) for name, estimator in bounds.items()]
    return audits


def _audited(name: str, estimator: Estimator, pair: str, twin: Twin, worlds: Sequence[Sequence[Draw]]) -> Audit:
    estimates = np.array([[float(estimator(draw)) for draw in world] for world in worlds])
    if np.isnan(estimates).any():
        raise InvalidArgument(f"bound {name!r} gave NaN on {pair!r}")
    losses = np.array([[draw.loss for draw in world] for world in worlds])
    guessing = 1 - 1 / worlds[0][0].labels_count
    # An estimate above 1 says no more than 1 does.
    errors = np.abs(np.minimum(estimates, 1.0) - losses).mean(1)
    return Audit(
        name, pair, float(errors.mean()), float(errors.max()), float((estimates < losses - 1e-12).mean()),
        float((estimates >= guessing).mean()), twin.gap, len(worlds[0]),
    )  # fmt: skip
