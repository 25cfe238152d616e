"""A small job on the small real model, fast enough to run again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tersor.models import Model, load
from tersor.pipeline.recipe import Recipe, parse_recipe


@pytest.fixture(scope="session")
def stories(stories_path) -> Model:
    return load(stories_path)


def _small_recipe(**changes: Any) -> Recipe:
    """A searched mixture of 2 to 6 bits on a few hundred tokens."""
    data: dict[str, Any] = {
        "levels": [{"method": "gptq", "bits": [2, 3, 4, 6]}],
        "embeddings": [{"method": "rtn", "bits": [3, 4, 8]}],
        "budget": "140KB",
        "search": {"generations": 4, "offspring": 4, "tokens": 1024, "stages": [[2, 128], [1, 256]]},
        "calibration": {"text": "tinystories", "tokens": 2048, "held_out": 512, "context": 128},
        "evaluation": {"tokens": 512, "context": 128},
    }
    return parse_recipe({**data, **changes})


@pytest.fixture
def small_recipe(data_dir) -> Callable[..., Recipe]:
    return _small_recipe


@pytest.fixture
def recipe(data_dir) -> Recipe:
    return _small_recipe()
