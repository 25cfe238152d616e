"""Trainings of the codecs for features and meshes from the command line's own call: killed, gone on with, saved, loaded, used."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tersor import coding
from tersor.coding import training
from tersor.coding.errors import ModelMismatch
from tersor.coding.features import cifar_resnet
from tersor.coding.training import load_codec, train_codec
from tersor.errors import InvalidArgument

MESH = {"shapes": "6", "pairs": "4", "code": "3", "latent": "4"}
OBJ = b"v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"


def case(name: str, folder: Path) -> dict:
    """Arguments of a training of ten steps, six of which are of the first stage."""
    if name == "mesh":
        return {"name": "mesh", "steps": 30, "options": MESH}
    random = np.random.default_rng(0)
    folder.mkdir()
    torch.save({f"module.{key}": value for key, value in cifar_resnet(8).state_dict().items()}, folder / "teacher.th")
    np.savez(folder / "images.npz", x_train=random.integers(0, 256, (12, 3, 32, 32), np.uint8), y_train=np.arange(12) % 10)
    return {"name": "features", "steps": 10, "data": folder, "options": {"channels": "8", "beta": "50"}}


@pytest.mark.parametrize("name", ["features", "mesh"])
def test_a_killed_training_goes_on_to_the_same_codec(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    arguments = case(name, tmp_path / "data")
    monkeypatch.setattr(training, "_SAVE_EVERY", 0.0)
    whole = train_codec(out=tmp_path / "whole", **arguments)
    # Within the first stage, at its end, and within the second.
    for stop in (0.3, 0.6, 0.8):

        def kill(step: int, steps: int, loss: float, stop: float = stop) -> None:
            if step == round(stop * steps) + 1:
                raise KeyboardInterrupt

        folder = tmp_path / f"killed {stop}"
        with pytest.raises(KeyboardInterrupt):
            train_codec(out=folder, progress=kill, **arguments)
        with pytest.raises(InvalidArgument, match="not finished"):
            load_codec(folder)
        resumed = train_codec(out=folder, **arguments)
        assert resumed.resumed == round(stop * arguments["steps"])
        assert resumed.fingerprint == whole.fingerprint


def test_a_trained_codec_codes_files_and_refuses_those_of_another(tmp_path: Path):
    arguments = case("features", tmp_path / "data")
    for seed in (0, 1):
        train_codec(out=tmp_path / str(seed), seed=seed, **arguments)
    first, second = (load_codec(tmp_path / str(seed)) for seed in (0, 1))
    file = io.BytesIO()
    np.save(file, np.random.default_rng(1).integers(0, 256, (2, 3, 32, 32), np.uint8))
    data = coding.encode(file.getvalue(), model=first)
    assert len(json.loads(coding.decode(data, model=first))) == 2
    with pytest.raises(ModelMismatch, match=second.fingerprint[:8]):
        coding.decode(data, model=second)
    with pytest.raises(InvalidArgument, match="pass its folder"):
        coding.decode(data)
    with pytest.raises(InvalidArgument, match=r"damaged|picture"):
        coding.encode(OBJ, model=first)
