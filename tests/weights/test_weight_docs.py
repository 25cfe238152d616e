"""The examples in the docstrings of the public weights are true."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["hashed", "quantized", "sparse", "lowrank", "sum"])
def test_docstring_examples(name: str):
    outcome = doctest.testmod(importlib.import_module(f"tersor.weights.{name}"))
    assert outcome.attempted > 0
    assert outcome.failed == 0
