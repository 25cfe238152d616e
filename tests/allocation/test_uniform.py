"""One level everywhere."""

from __future__ import annotations

import pytest

from tersor.allocation import Problem, Unit, uniform

BITS = (2, 3, 4, 8)


def layer(name: str, size: int, bits=BITS, errors=None) -> Unit:
    return Unit(name, tuple(b * size for b in bits), errors or tuple(4.0**-b for b in bits), size)


@pytest.mark.parametrize(("per_weight", "index"), [(2.0, 0), (2.9, 0), (3.0, 1), (7.99, 2), (8.0, 3), (99.0, 3)])
def test_takes_the_largest_common_level_that_fits(per_weight, index):
    units = (layer("a", 100), layer("b", 50), layer("c", 10))
    assert uniform(Problem(units, int(160 * per_weight))).choices == (index,) * 3


def test_levels_need_not_be_sorted_and_the_better_of_equal_cost_wins():
    units = tuple(Unit(name, (8, 3, 3, 2), (0.1, 0.9, 0.5, 2.0), 1) for name in "ab")
    assert uniform(Problem(units, 7)).choices == (2, 2)


def test_tied_errors_take_the_largest_level():
    units = tuple(Unit(name, (2, 3, 4), (0.0, 0.0, 0.0), 1) for name in "ab")
    assert uniform(Problem(units, 7)).choices == (1, 1)


def test_different_menus_share_a_threshold_in_cost_per_weight():
    problem = Problem((layer("block", 100), layer("embedding", 400, (4, 6, 8))), 500 * 4 + 99)
    assert uniform(problem).choices == (2, 0)  # both at 4 bits, although their indices differ


def test_a_menu_above_the_threshold_takes_its_cheapest():
    problem = Problem((layer("block", 100), layer("embedding", 10, (8,))), 380)
    assert uniform(problem).choices == (1, 0)


def test_without_sizes_the_threshold_is_a_share_of_the_dearest():
    problem = Problem((Unit("a", (1, 2, 4), (3.0, 2.0, 1.0)), Unit("b", (10, 40), (2.0, 1.0))), 12)
    assert uniform(problem).choices == (1, 0)


def test_falls_back_where_no_common_index_fits():
    problem = Problem((Unit("a", (1, 10), (1.0, 0.0)), Unit("b", (10, 1), (1.0, 0.0))), 2)
    assert uniform(problem).choices == (0, 1)


def test_fused_groups_move_together(make_problem):
    problem = make_problem(1, units=9, fused=True)
    assert problem.feasible(uniform(problem).choices)
