"""The sweep over kinds of layers on a model whose metric is known."""

from __future__ import annotations

import pytest

from tersor.errors import InvalidArgument
from tersor.layerwise.rank_sweep import choose_ranks, rank_for, rank_sweep

SHAPES = {f"blocks.{block}.{kind}": shape for block in range(3) for kind, shape in (("q_proj", (64, 64)), ("up_proj", (256, 64)))}
COST = {"q_proj": 1.0, "up_proj": 4.0}


def measure(ranks: dict[str, int]) -> float:
    """A metric of 10 that each lost rank raises by the cost of its kind."""
    lost = sum(COST[name.rpartition(".")[2]] * (1 - rank / 64) for name, rank in ranks.items())
    return 10 + lost


def test_every_kind_is_measured_alone():
    points = rank_sweep(SHAPES, (0.25, 0.5), measure)
    assert [(point.kind, point.fraction) for point in points] == [("q_proj", 0.25), ("q_proj", 0.5), ("up_proj", 0.25), ("up_proj", 0.5)]
    assert [point.metric for point in points] == pytest.approx([10 + 3 * 0.75, 10 + 3 * 0.5, 10 + 9, 10 + 6])
    assert points[0].parameters == pytest.approx(16 * 128 / 64**2)
    assert points[1].parameters == 1.0  # half the rank of a square matrix saves nothing


def test_robust_kinds_are_reduced_first():
    points = rank_sweep(SHAPES, (0.25, 0.5, 0.75), measure)
    chosen = choose_ranks(SHAPES, points, reference=10, max_increase=0.25)
    assert chosen == {name: 16 for name in SHAPES if name.endswith("q_proj")}
    # Three quarters of the rank of a wide matrix do save, but not enough of it here.
    assert choose_ranks(SHAPES, points, reference=10, max_increase=0.01) == {}


def test_a_budget_takes_the_smallest_increase_that_reaches_it():
    points = rank_sweep(SHAPES, (0.25, 0.5, 0.75), measure)
    chosen = choose_ranks(SHAPES, points, reference=10, keep=0.8)
    left = sum(chosen[name] * sum(shape) if name in chosen else shape[0] * shape[1] for name, shape in SHAPES.items())
    assert left <= 0.8 * sum(out * width for out, width in SHAPES.values())
    assert {name for name in chosen if name.endswith("q_proj")} == {name for name in SHAPES if name.endswith("q_proj")}
    with pytest.raises(InvalidArgument, match="sweep lower fractions"):
        choose_ranks(SHAPES, points, reference=10, keep=0.1)


@pytest.mark.parametrize(("fraction", "multiple", "rank"), [(0.5, 1, 32), (0.5, 24, 24), (0.01, 8, 8), (1.0, 24, 64), (0.01, 1, 1)])
def test_ranks_are_multiples_within_the_shape(fraction, multiple, rank):
    assert rank_for((64, 256), fraction, multiple) == rank


def test_bad_questions_are_refused():
    with pytest.raises(InvalidArgument, match="above 0 and at most 1"):
        rank_sweep(SHAPES, (1.5,), measure)
    with pytest.raises(InvalidArgument, match="one of them"):
        choose_ranks(SHAPES, [], reference=10)
