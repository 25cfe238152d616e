"""Which kinds of layers bear a lower rank: one kind at a time is reduced and the whole model measured (LoRD)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_number

Ranks = dict[str, int]
Shapes = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class SweepPoint:
    """A model in which all layers of one kind, and no others, have a reduced rank.

    Attributes:
        kind: Last part of the layers' names, such as ``"q_proj"``.
        fraction: Rank kept, as a fraction of the smaller dimension.
        parameters: Parameters kept of those layers; above 1 where factors of that rank are larger than the matrices.
        metric: What was measured; lower is better.
    """

    kind: str
    fraction: float
    parameters: float
    metric: float


def kind_of(name: str) -> str:
    """The kind of a layer: the last part of its dotted name."""
    return name.rpartition(".")[2]


def rank_for(shape: tuple[int, int], fraction: float, multiple: int = 1) -> int:
    """``fraction`` of the full rank, rounded to the nearest multiple, at least one of them or the full rank."""
    full = min(shape)
    return min(max(round(fraction * full / multiple), 1) * multiple, full)


def rank_sweep(
    shapes: Shapes, fractions: Sequence[float], measure: Callable[[Ranks], float], *, multiple: int = 1
) -> list[SweepPoint]:  # fmt: skip
    """Measure every kind of layer at every fraction of the rank.

    Args:
        shapes: Layer name to ``(out_features, in_features)``.
        fractions: Of the full rank that are kept, above 0 and up to 1.
        measure: From the ranks of the layers that are reduced, by name, to the metric of that model, lower is better. How it makes and
            measures the model is its own affair.
        multiple: Ranks are multiples of this.

    Returns:
        One point for each kind and fraction, kinds in the order of their first layer.

    Raises:
        InvalidArgument: If a fraction is out of range.
    """
    for fraction in fractions:
        if check_number("fraction", fraction, 0.0) == 0.0 or fraction > 1.0:
            raise InvalidArgument(f"a fraction of the rank must be above 0 and at most 1, got {fraction:g}")
    points = []
    for kind in dict.fromkeys(map(kind_of, shapes)):
        own = {name: shape for name, shape in shapes.items() if kind_of(name) == kind}
        for fraction in fractions:
            ranks = {name: rank_for(shape, fraction, multiple) for name, shape in own.items()}
            points.append(SweepPoint(kind, fraction, _parameters(own, ranks), measure(ranks)))
    return points


def choose_ranks(
    shapes: Shapes, points: Sequence[SweepPoint], *,
    reference: float, keep: float | None = None, max_increase: float | None = None, multiple: int = 1,
) -> Ranks:  # fmt: skip
    """The lowest ranks that a sweep allows, one fraction a kind.

    Every kind takes the lowest fraction whose metric stays within the same relative increase over the reference. Layers whose factors
    would not be smaller than the matrix are left out.

    Args:
        shapes: As for :func:`rank_sweep`.
        points: What it returned.
        reference: The metric of the original model, above 0.
        keep: Fraction of the parameters to keep; the smallest increase that gets there is taken.
        max_increase: The relative increase itself, instead of ``keep``; 0.01 is one per cent.
        multiple: Ranks are multiples of this.

    Returns:
        Layer name to rank.

    Raises:
        InvalidArgument: If not exactly one of ``keep`` and ``max_increase`` is given, or no choice of the sweep reaches ``keep``.
    """
    if (keep is None) == (max_increase is None):
        raise InvalidArgument("give keep or max_increase, one of them")
    check_number("reference", reference, 0.0)
    if max_increase is not None:
        return _within(shapes, points, reference * (1 + check_number("max_increase", max_increase, 0.0)), multiple)
    assert keep is not None
    check_number("keep", keep, 0.0)
    entries = sum(out * width for out, width in shapes.values())
    for limit in sorted({point.metric for point in points}):
        ranks = _within(shapes, points, limit, multiple)
        if _parameters(shapes, ranks) <= keep:
            return ranks
    smallest = _parameters(shapes, _within(shapes, points, float("inf"), multiple))
    raise InvalidArgument(
        f"the lowest ranks of the sweep keep {smallest:.0%} of the {entries} parameters, keep={keep:g} asks for less: sweep lower fractions"
    )


def _within(shapes: Shapes, points: Sequence[SweepPoint], limit: float, multiple: int) -> Ranks:
    lowest: dict[str, float] = {}
    for point in points:
        if point.metric <= limit:
            lowest[point.kind] = min(point.fraction, lowest.get(point.kind, 1.0))
    chosen = {name: rank_for(shape, lowest[kind_of(name)], multiple) for name, shape in shapes.items() if kind_of(name) in lowest}
    return {name: rank for name, rank in chosen.items() if rank * sum(shapes[name]) < shapes[name][0] * shapes[name][1]}


def _parameters(shapes: Shapes, ranks: Ranks) -> float:
    """Parameters that are left as a fraction; layers without a rank stay whole."""
    entries = {name: out * width for name, (out, width) in shapes.items()}
    left = sum(ranks[name] * sum(shapes[name]) if name in ranks else count for name, count in entries.items())
    return left / sum(entries.values())
