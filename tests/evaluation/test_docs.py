from __future__ import annotations

import doctest
from importlib import import_module

import pytest


@pytest.mark.parametrize("name", ["evaluate", "perplexity"])
def test_examples_run(name: str):
    found = doctest.testmod(import_module(f"tersor.evaluation.{name}"))
    assert found.attempted
    assert not found.failed
