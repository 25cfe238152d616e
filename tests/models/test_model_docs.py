"""The examples in the docstrings of this room run."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest

from tersor.models import blocks, loading, model, prefix


@pytest.mark.parametrize("module", [blocks, loading, model, prefix], ids=lambda module: module.__name__)
def test_examples_run(module: ModuleType):
    assert doctest.testmod(module).failed == 0
