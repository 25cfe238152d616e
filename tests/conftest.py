"""Fixtures that the whole suite shares: the folder of real data, and the small real model in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder named by ``TERSOR_DATA``; tests that need it are skipped without it."""
    folder = os.environ.get("TERSOR_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("TERSOR_DATA does not name a folder with the real data")
    return Path(folder)


@pytest.fixture(scope="session")
def stories_path(data_dir: Path) -> Path:
    """A trained Llama of 260,032 parameters as a Hugging Face folder."""
    return data_dir / "models" / "stories260k"
