"""One small model for the room."""

from __future__ import annotations

from typing import Any

import pytest

from .material import tiny


@pytest.fixture(scope="session")
def model() -> Any:
    """Two layers, two key-value heads."""
    return tiny()
