from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tersor.errors import InvalidArgument, TersorError
from tersor.models.export import export_model, gguf
from tersor.models.export.output import MARKER, staged
from tersor.models.model import Model

RandomModel = Callable[..., Model]
FORMATS = ["gguf", "compressed-tensors", "safetensors"]


@pytest.mark.parametrize("format", FORMATS)
def test_an_earlier_export_is_replaced(random_model: RandomModel, format: str, tmp_path: Path) -> None:
    target = tmp_path / "out"
    first = export_model(random_model("llama"), target, format, verify=False)
    second = export_model(random_model("llama", seed=1), target, format, verify=False)
    assert first.nbytes == second.nbytes
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("format", FORMATS)
def test_foreign_content_is_not_touched(random_model: RandomModel, format: str, tmp_path: Path) -> None:
    target = tmp_path / "out"
    if format == "gguf":
        target.write_bytes(b"GGUF of somebody else")
    else:
        target.mkdir()
        (target / "thesis.txt").write_text("years of work")
    with pytest.raises(InvalidArgument, match=r"out exists and was not written by tersor export; name a new (file|folder)"):
        export_model(random_model("llama"), target, format)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_saved_by_tersor_is_not_an_export(random_model: RandomModel, tmp_path: Path) -> None:
    model = random_model("llama")
    model.save(tmp_path / "saved")
    with pytest.raises(InvalidArgument, match="was not written by tersor export"):
        export_model(model, tmp_path / "saved", "safetensors")


def test_a_path_below_a_file_is_refused_in_one_sentence(random_model: RandomModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(TersorError, match=r"cannot write .*out.gguf: Not a directory|File exists"):
        export_model(random_model("llama"), tmp_path / "file" / "out.gguf")


def test_a_full_disk_leaves_nothing(random_model: RandomModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf, "_write_metadata", full)
    with pytest.raises(TersorError, match="No space left on device; nothing was left behind"):
        export_model(random_model("llama"), tmp_path / "out.gguf")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_keeps_the_earlier_output(random_model: RandomModel, tmp_path: Path) -> None:
    target = tmp_path / "out"
    export_model(random_model("llama"), target, "safetensors", verify=False)
    before = (target / "model.safetensors").read_bytes()

    def interrupted() -> None:
        with staged(target, is_folder=True) as work:
            (work / "model.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (target / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_marker_is_the_report(random_model: RandomModel, tmp_path: Path) -> None:
    report = export_model(random_model("qwen2"), tmp_path / "out", "safetensors")
    content = json.loads((tmp_path / "out" / MARKER).read_text())
    assert content == json.loads(json.dumps(report.to_dict()))
    assert content["serve_command"] == f"transformers serve {tmp_path / 'out'}"
    text = str(report)
    assert "verified: runtime transformers" in text
    assert "bits per weight" in text
    assert report.layers[0].name in report.table()
