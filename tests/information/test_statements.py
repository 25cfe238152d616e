"""The bounds that this room gives to ``tersor limits``."""

from __future__ import annotations

import json
import math

import pytest

from tersor.errors import InvalidArgument
from tersor.information import LIMITS, entropy, mec
from tersor.limits import collect, find_bound, state

BOUNDS = collect(LIMITS)


@pytest.mark.parametrize("name", BOUNDS)
def test_every_system_stands_on_its_side_of_the_bound(name):
    said = state(BOUNDS[name])
    assert said.measured
    for row in said.measured:
        slack = 1e-9 * max(1.0, abs(row["bound"]))
        if row["side"] == "at least":
            assert row["measured"] >= row["bound"] - slack, row
        else:
            assert (row["side"], row["measured"] <= row["bound"] + slack) == ("at most", True), row
    json.dumps(said.to_dict(), allow_nan=False)
    assert str(said).count("\n  ") >= len(said.measured)


def value(name, **given):
    return state(find_bound(BOUNDS, name), given, measure=False).value


def test_the_rate_falls_with_the_root_of_the_users_and_with_epsilon_outside_of_the_root():
    given = ((10**8, 1), (4 * 10**8, 1), (10**8, 0.5))
    one, more, private = (value("ldp-regression", n=n, epsilon=e)["at least, one message"] for n, e in given)
    assert one == pytest.approx(math.sqrt(20 * 3 * math.log(20)) / 1e4)
    assert one / more == pytest.approx(2)
    assert private / one == pytest.approx(2)


def test_sampling_knows_the_range_of_the_total_and_the_right_power():
    assert value("lp-sampling", p=4, d=9)["largest total"] == 81
    assert value("lp-sampling", p=1, d=9)["least total"] == 3
    assert value("lp-sampling", p=4, d=9, total=16, eps=0.5)["rows, sensitivity"] == pytest.approx(16**1.5 * 4)
    # What the first version of the abstract claimed is never below what is proven.
    for total in (3.0, 5.0, 9.0):
        assert value("lp-sampling", p=1, d=9, total=total)["rows, chen_derezinski"] <= 100 * total**2 * (1 + 1e-9)


def test_codes_and_couplings():
    assert value("code-information", second="0.5")["bound"] == 1
    said = value("coupling-entropy", first="0.5,0.5", second="0.25,0.25,0.5")
    assert said == {"at least": 1.5, "greedy": mec([0.5, 0.5], [0.25, 0.25, 0.5]).entropy, "independent": 1 + entropy([0.25, 0.25, 0.5])}


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("lp-sampling", {"p": "0.5"}, "p must be"),
        ("lp-sampling", {"total": "3"}, "not to 3; total=0"),
        ("ldp-regression", {"k": "30"}, "k must be at most"),
        ("code-information", {"second": "0.6"}, "at most 0.5"),
        ("coupling-entropy", {"first": "a,b"}, "commas between"),
        ("coupling-entropy", {"first": "0.5,0.6"}, "must sum to 1"),
    ],
)
def test_bad_arguments_are_one_sentence(name, given, said):
    with pytest.raises(InvalidArgument, match=said) as caught:
        value(name, **given)
    assert "\n" not in str(caught.value)
