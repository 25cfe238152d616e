"""tersor encode and tersor decode."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tersor.coding import CorruptStream, pictures, training
from tersor.coding.files import decode_file, encode_file
from tersor.coding.pictures import read_picture, write_picture
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


CONTENTS = {
    "notes.txt": (b"What is written twice is written twice. " * 100, {"bytes"}),
    "sound.wav": (np.cumsum(np.random.default_rng(0).integers(-9, 10, 3000)).astype("<i2").tobytes(), {"bytes", "xz"}),
    "shape.obj": (b"".join(b"v %d %d 0\n" % (i, i * i % 31) for i in range(400)), {"bytes", "bz2"}),
    "packed.png": (np.random.default_rng(1).bytes(3000), {"raw"}),
    "counted.bin": (bytes(range(200)) + bytes(range(199, -1, -1)), {"programs"}),
    "empty": (b"", {"raw", "bytes"}),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_what_suits_the_content_is_chosen_and_named(name: str, tmp_path: Path):
    content, expected = CONTENTS[name]
    source, packed, back = tmp_path / name, tmp_path / "x.tersor", tmp_path / "back"
    source.write_bytes(content)
    done = encode_file(source, packed)
    assert set(done.codecs) <= expected
    assert f" by {', '.join(done.codecs)}; " in str(done)
    assert decode_file(packed, back).codecs == done.codecs
    assert back.read_bytes() == content
    assert packed.stat().st_size < len(content) + 64


def test_a_trained_codec_is_trained_on_first_use_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERSOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TERSOR_DATA", raising=False)
    monkeypatch.setitem(training.TRAINABLE, "walloc", dataclasses.replace(training.TRAINABLE["walloc"], steps=2))
    scene = torch.arange(3 * 24 * 40).remainder(256).to(torch.uint8).reshape(3, 24, 40)
    monkeypatch.setattr(pictures, "_default_pictures", lambda: ([scene], "a scene"))
    photo, packed, back = tmp_path / "photo.png", tmp_path / "photo.tersor", tmp_path / "back.png"
    photo.write_bytes(write_picture(scene))
    steps: list[int] = []
    for _ in range(2):
        done = encode_file(photo, packed, codec="walloc", progress=lambda step, of, loss: steps.append(step))
    assert steps == [1, 2]
    assert done.codecs == ("walloc",)
    decode_file(packed, back)
    assert read_picture(back.read_bytes()).shape == (3, 24, 40)
    # Elsewhere there is another default, or none: the file names its codec, and nothing is trained in vain.
    monkeypatch.setenv("TERSOR_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(InvalidArgument, match="pass its folder"):
        decode_file(packed, back)
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(InvalidArgument, match="cannot read"):
        encode_file(tmp_path / "missing.png", packed, codec="walloc")
    assert not (tmp_path / "elsewhere").exists()
