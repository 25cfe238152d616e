"""Trained codecs: training that resumes, folders that are checked, files that name their codec."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tersor import coding
from tersor.coding import training
from tersor.coding.codecs import TRAINED
from tersor.coding.entropy import Container
from tersor.coding.errors import CorruptStream, ModelMismatch
from tersor.coding.pictures import read_picture, read_sound, write_picture, write_sound
from tersor.coding.training import TRAINABLE, load_codec, settings, train_codec, with_options
from tersor.coding.walloc import WallocConfig
from tersor.errors import CorruptFile, InvalidArgument, TersorError

SMALL = {"levels": "2", "latent": "6", "bits": "4", "width": "16", "blocks": "1"}


def picture(height: int = 40, width: int = 56, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 8, width // 8, generator=random)
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0]
    return torch.round(fine * 255).to(torch.uint8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(3):
        (folder / f"{index}.png").write_bytes(write_picture(picture(seed=index)))
    return folder


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codec") / "walloc"
    train_codec("walloc", folder, data=pictures, steps=6, options=SMALL)
    return folder


def test_every_codec_that_can_be_trained_has_a_number_in_files():
    assert set(TRAINABLE) <= set(TRAINED)
    assert len(set(TRAINED.values())) == len(TRAINED)


def test_a_killed_training_goes_on_to_the_same_codec(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = train_codec("walloc", tmp_path / "whole", data=pictures, steps=8, options=SMALL)
    monkeypatch.setattr(training, "_SAVE_EVERY", 0.0)

    def kill(step: int, steps: int, loss: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_codec("walloc", tmp_path / "parts", data=pictures, steps=8, options=SMALL, progress=kill)
    with pytest.raises(InvalidArgument, match="not finished"):
        load_codec(tmp_path / "parts")
    with pytest.raises(InvalidArgument, match="another job"):
        train_codec("walloc", tmp_path / "parts", data=pictures, steps=9, options=SMALL)
    with pytest.raises(InvalidArgument, match="another job"):
        train_codec("walloc", tmp_path / "parts", data=pictures, steps=8, seed=1, options=SMALL)
    parts = train_codec("walloc", tmp_path / "parts", data=pictures, steps=8, options=SMALL)
    assert parts.resumed == 4
    assert parts.fingerprint == whole.fingerprint
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["codec.json", "codec.safetensors"]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InvalidArgument, match="not written by tersor train-codec"):
        train_codec("walloc", tmp_path, steps=1)
    with pytest.raises(InvalidArgument, match="unknown codec 'jpeg'"):
        train_codec("jpeg", tmp_path / "x")
    with pytest.raises(InvalidArgument, match="steps must be"):
        train_codec("walloc", tmp_path / "x", steps=0)


def test_settings_are_taken_by_name():
    assert with_options(WallocConfig(), {"bits": "3", "companding": "clip"}) == WallocConfig(bits=3, companding="clip")
    assert settings(["bits=3", "name=a=b"]) == {"bits": "3", "name": "a=b"}
    for wrong in (["bits"], ["=3"], ["bits="], ["bits=3", "bits=4"]):
        with pytest.raises(InvalidArgument, match="NAME=VALUE"):
            settings(wrong)
    with pytest.raises(InvalidArgument, match="unknown setting 'quality'"):
        with_options(WallocConfig(), {"quality": "1"})
    with pytest.raises(InvalidArgument, match="bits is a int, got 'high'"):
        with_options(WallocConfig(), {"bits": "high"})


def test_a_damaged_folder_is_told(trained: Path, tmp_path: Path):
    def copy(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for file in trained.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return folder

    weights = copy("weights") / "codec.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CorruptFile, match=r"not those that its codec\.json names"):
        load_codec(weights.parent)
    weights.write_bytes(content[:100])
    with pytest.raises(CorruptFile, match="cannot be read"):
        load_codec(weights.parent)
    facts = copy("facts") / "codec.json"
    for broken in (b"", b"[]", b'{"format":1}', b"\xff"):
        facts.write_bytes(broken)
        with pytest.raises(CorruptFile, match="is damaged"):
            load_codec(facts.parent)
    newer = copy("newer") / "codec.json"
    newer.write_text(json.dumps({**json.loads((trained / "codec.json").read_text()), "codec": "of-tomorrow"}))
    with pytest.raises(InvalidArgument, match="update tersor"):
        load_codec(newer.parent)
    with pytest.raises(InvalidArgument, match="holds no trained codec"):
        load_codec(tmp_path)


def test_files_name_their_codec(pictures: Path, trained: Path, tmp_path: Path):
    codec = load_codec(trained)
    source = (pictures / "0.png").read_bytes()
    packed = coding.encode(source, codec="walloc", model=codec)
    assert packed == coding.encode(source, model=codec)
    decoded = read_picture(coding.decode(packed, model=codec))
    assert decoded.shape == (3, 40, 56)
    expected = codec.reconstruct(codec.latent(picture().float() / 255 - 0.5), (40, 56))  # type: ignore[attr-defined]
    assert torch.equal(decoded, torch.round((expected + 0.5) * 255).to(torch.uint8))
    train_codec("walloc", tmp_path / "other", data=pictures, steps=2, options=SMALL)
    with pytest.raises(ModelMismatch, match=f"not by {load_codec(tmp_path / 'other').fingerprint[:16]}"):
        coding.decode(packed, model=load_codec(tmp_path / "other"))
    with pytest.raises(InvalidArgument, match="pass its folder as model="):
        coding.decode(packed)
    with pytest.raises(InvalidArgument, match="no picture"):
        coding.encode(b"text", model=codec)
    with pytest.raises(InvalidArgument, match="do not go together"):
        coding.encode(source, codec="bytes", model=codec)
    with pytest.raises(InvalidArgument, match="do not go together"):
        coding.encode(source, codec="walloc")


def test_mutated_files_give_typed_errors_or_the_picture(pictures: Path, trained: Path):
    codec = load_codec(trained)
    packed = coding.encode((pictures / "1.png").read_bytes(), model=codec)
    random = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(packed)
        for _ in range(random.integers(1, 4)):
            damaged[random.integers(len(damaged))] ^= int(random.integers(1, 256))
        with pytest.raises(TersorError):
            coding.decode(bytes(damaged), model=codec)
    for kept in range(0, len(packed), 7):
        with pytest.raises(TersorError):
            coding.decode(packed[:kept], model=codec)


def test_headers_that_lie_allocate_nothing(pictures: Path, trained: Path):
    codec = load_codec(trained)
    container = Container.from_bytes(coding.encode((pictures / "1.png").read_bytes(), model=codec))
    for sides in ([1 << 40, 1 << 40], [1 << 13, 1 << 13], [40], [40, -1], [40, True], "x", None, [39, 60], [0, 0]):
        header = {**container.header, "sides": sides}
        with pytest.raises(CorruptStream):
            coding.decode(Container(container.codec, header, container.streams).to_bytes(), model=codec)
    with pytest.raises(CorruptStream, match="more than one stream"):
        coding.decode(Container(container.codec, container.header, container.streams * 2).to_bytes(), model=codec)


def test_sounds_are_decoded_as_sounds(tmp_path: Path):
    time = torch.arange(9001) / 8000
    sound = torch.round(8000 * torch.sin(2 * torch.pi * 300 * time))[None].to(torch.int16)
    (tmp_path / "a.wav").write_bytes(write_sound(sound, 8000))
    train_codec("walloc", tmp_path / "codec", data=tmp_path / "a.wav", steps=4, options={"width": "16", "blocks": "1"})
    codec = load_codec(tmp_path / "codec")
    back, rate = read_sound(coding.decode(coding.encode((tmp_path / "a.wav").read_bytes(), model=codec), model=codec))
    assert (rate, back.shape) == (8000, sound.shape)
    assert float((back - sound).float().square().mean()) < 0.2 * float(sound.float().square().mean())


def test_a_new_process_decodes_from_the_bytes_and_the_folder(pictures: Path, trained: Path, tmp_path: Path):
    packed, back = tmp_path / "x.tersor", tmp_path / "x.png"

    def run(*words: object) -> str:
        done = subprocess.run([sys.executable, "-m", "tersor", *map(str, words)], capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    told = json.loads(run("encode", pictures / "2.png", "-o", packed, "--codec", "walloc", "--model", trained, "--json"))
    assert told["written"] == packed.stat().st_size
    run("decode", packed, "-o", back, "--model", trained)
    codec = load_codec(trained)
    assert coding.decode(packed.read_bytes(), model=codec) == back.read_bytes()
    # The rate that is told is that of the file, and its payload is what the tables say.
    container = Container.from_bytes(packed.read_bytes())
    latent = codec.latent(picture(seed=2).float() / 255 - 0.5)  # type: ignore[attr-defined]
    ideal = codec.model.tables.ideal_bits(latent)  # type: ignore[attr-defined]
    assert ideal - 8 <= container.payload_bits - 32 <= ideal * 1.001 + 16
    assert 8 * packed.stat().st_size - container.payload_bits < 8 * 90
