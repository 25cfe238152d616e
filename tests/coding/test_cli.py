"""tersor encode and tersor decode."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tersor.coding import CorruptStream
from tersor.coding.files import decode_file, encode_file
from tersor.errors import InvalidArgument, TersorError


def run(*words: object) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run([sys.executable, "-m", "tersor", *map(str, words)], capture_output=True, text=True, timeout=600, check=False)


def test_a_file_there_and_back(tmp_path: Path):
    source, packed, back = tmp_path / "notes.txt", tmp_path / "notes.tersor", tmp_path / "back.txt"
    source.write_bytes(b"What is written twice is written twice. " * 100)
    done = run("encode", source, "-o", packed, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["written"] == packed.stat().st_size < 120
    assert told["bits_per_byte"] == pytest.approx(8 * packed.stat().st_size / 4000)
    assert run("decode", packed, "-o", back).returncode == 0
    assert back.read_bytes() == source.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.txt", "notes.tersor", "notes.txt"]


def test_damage_leaves_nothing_behind(tmp_path: Path):
    packed, back = tmp_path / "x.tersor", tmp_path / "back"
    packed.write_bytes(b"not of ours")
    done = run("decode", packed, "-o", back)
    assert (done.returncode, done.stderr) == (1, "tersor: this is not a .tersor file: its first bytes are others\n")
    with pytest.raises(CorruptStream):
        decode_file(packed, back)
    assert [path.name for path in tmp_path.iterdir()] == ["x.tersor"]


def test_errors_name_the_file(tmp_path: Path):
    with pytest.raises(InvalidArgument, match=r"cannot read .*missing: No such file"):
        encode_file(tmp_path / "missing", tmp_path / "x")
    (tmp_path / "here").write_bytes(b"x")
    with pytest.raises(TersorError, match=r"cannot write .*x: No such file"):
        encode_file(tmp_path / "here", tmp_path / "folder" / "x")
