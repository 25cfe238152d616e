"""Budgets as people write them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.allocation import parse_budget
from tersor.errors import InvalidArgument


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (60_000_000, 60_000_000),
        (np.int64(7), 7),
        ("60000000", 60_000_000),
        ("60_000_000 B", 60_000_000),
        ("60MB", 60_000_000),
        ("60 mb", 60_000_000),
        ("45MiB", 45 * 2**20),
        ("45mib", 45 * 2**20),
        ("1.5KiB", 1536),
        ("2kB", 2000),
        ("0.1GB", 100_000_000),
        ("1TB", 10**12),
        ("1GiB", 2**30),
        (".5MB", 500_000),
        (0.25, 250),
        (1.0, 1000),
        ("0.25", 250),
        ("25%", 250),
        ("12.34 %", 123),
        ("3.2bpw", 80),
        ("3.3 bpw", 82),
    ],
)
def test_known_answers(value, expected):
    assert parse_budget(value, dense_bytes=1000, n_weights=200) == expected


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (True, "True is not a size"),
        (None, "None is not a size"),
        ("", "is not a size"),
        ("MB", "is not a size"),
        ("-5MB", "is not a size"),
        ("1e9", "unknown unit 'e'|is not a size"),
        ("1,000MB", "is not a size"),
        ("60 megabytes", "unknown unit 'megabytes'"),
        ("60iB", "unknown unit 'iB'"),
        ("60Mb", "reads as bits; write MB"),
        ("60Kib", "reads as bits; write KiB"),
        (0, "less than one byte"),
        (-5, "less than one byte"),
        ("0", "less than one byte"),
        ("0.0001bpw", "less than one byte"),
        (0.0001, "less than one byte"),
        (0.0, "above 0 and at most 1"),
        (1.5, "above 0 and at most 1"),
        ("1.5", "above 0 and at most 1"),
        ("120%", "above 0 and at most 1"),
        (float("nan"), "above 0 and at most 1"),
        (float("inf"), "above 0 and at most 1"),
        (6e7, "write bytes"),
    ],
)
def test_refused_in_one_sentence(value, sentence):
    with pytest.raises(InvalidArgument, match=sentence) as caught:
        parse_budget(value, dense_bytes=1000, n_weights=200)
    assert "\n" not in str(caught.value)


def test_relative_budgets_need_what_they_relate_to():
    with pytest.raises(InvalidArgument, match="needs a known original size"):
        parse_budget(0.5)
    with pytest.raises(InvalidArgument, match="needs a known number of weights"):
        parse_budget("3bpw")


@given(st.integers(1, 10**15))
def test_whole_bytes_are_exact(count):
    assert parse_budget(count) == parse_budget(str(count)) == parse_budget(f"{count}B") == count


@given(st.integers(1, 10**6), st.sampled_from(["kB", "MB", "GB", "KiB", "MiB", "GiB"]))
def test_units_scale_exactly(count, unit):
    base = 1024 if "i" in unit else 1000
    assert parse_budget(f"{count}{unit}") == count * base ** (" kMG".index(unit[0].replace("K", "k")))
