from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tersor.errors import TersorError
from tersor.files import write_atomically


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "state"
    write_atomically(path, b"old")

    def full(self, mode="r"):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(TersorError, match="No space left"):
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [child.name for child in tmp_path.iterdir()] == ["state"]


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(TersorError, match="cannot write"):
        write_atomically(tmp_path / "none" / "state", b"new")
