"""The list of bounds: every calculator answers, every measurement respects its bound, and bad arguments are refused."""

from __future__ import annotations

import json
import math

import pytest

from tersor.errors import InvalidArgument
from tersor.limits import BOUNDS, Bound, collect, find_bound, state
from tersor.papers.catalogue import keys


@pytest.mark.parametrize("name", BOUNDS)
def test_every_bound_is_complete_and_has_a_value(name):
    bound = BOUNDS[name]
    assert bound.statement.endswith(".")
    assert bound.assumptions
    assert bound.proven
    assert bound.paper in keys()
    said = state(bound, measure=False)
    assert all(math.isfinite(number) for number in said.value.values())
    assert json.loads(json.dumps(said.to_dict(), allow_nan=False))["arguments"] == said.arguments
    assert bound.formula in str(said)


@pytest.mark.parametrize("name", BOUNDS)
def test_every_measurement_stands_on_the_right_side(name):
    for row in BOUNDS[name].measure():
        side = row["side"]
        assert side in ("at least", "at most")
        slack = 1e-9 * max(1.0, abs(row["bound"]))
        assert row["measured"] >= row["bound"] - slack if side == "at least" else row["measured"] <= row["bound"] + slack, row


def test_arguments_are_read_from_text():
    said = state(find_bound(BOUNDS, "stationary-points"), {"order": "2", "eps": "1e-6"}, measure=False)
    assert said.arguments == {"order": 2, "smoothness": 1.0, "gap": 1.0, "eps": 1e-6}
    assert said.value == {"bound": BOUNDS["stationary-points"].calculator(order=2, eps=1e-6)}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"epsilon": "1"}, "takes no argument 'epsilon'; it takes order"),
        ({"eps": "small"}, "eps must be a number"),
        ({"order": "1.5"}, "integer"),
    ],
)
def test_bad_arguments_are_one_sentence(given, said):
    with pytest.raises(InvalidArgument, match=said):
        state(BOUNDS["stationary-points"], given)


def test_an_unknown_limit_lists_the_known_ones():
    with pytest.raises(InvalidArgument, match=r"unknown limit 'p-np'; known limits are .*stationary-points"):
        find_bound(BOUNDS, "p-np")


def card(**changes):
    return {
        "name": "n", "statement": "s.", "assumptions": [], "proven": [], "formula": "f", "calculator": lambda x=2.0: 1 / x, "measure": list,
        **changes,
    }  # fmt: skip


def test_rooms_that_do_not_know_this_one_bring_mappings():
    bounds = collect([card()], [card(name="m", calculator=lambda: {"a": math.inf})])
    assert isinstance(bounds["n"], Bound)
    assert bounds["n"].compute({"x": "4"}) == {"bound": 0.25}
    assert state(bounds["m"]).to_dict()["value"] == {"a": "inf"}


def test_two_bounds_of_one_name_and_a_missing_default_are_refused():
    with pytest.raises(InvalidArgument, match="two limits called 'n'"):
        collect([card()], [card()])
    with pytest.raises(InvalidArgument, match="needs a default for x"):
        collect([card(calculator=lambda x: x)])
