"""A loaded model lies in its file: what is stored as it is used is mapped, not copied."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tersor.models import Model, load
from tersor.models.storage import description_checksum
from tersor.models.tensorfile import file_sha256

TOKENS = torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def small(tiny: SimpleNamespace) -> Model:
    """Every layer and the table in 3 bits, so that rows are of odd lengths."""
    model = tiny.model("llama")
    for name in [*model.linears(), *model.embeddings()]:
        model.replace(name, tiny.rounded(model.matrix(name), bits=3))
    return model


def stored(model: Model) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": value for name, weight in model.weights().items() for key, value in weight.state_dict().items()}


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="the system does not list mapped files")
def test_compressed_buffers_are_the_mapped_file(small: Model, tmp_path: Path):
    small.save(tmp_path / "out")
    back = load(tmp_path / "out")
    file = str(tmp_path / "out" / "model.safetensors")
    spans = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(file):
            start, end = line.split()[0].split("-")
            spans.append((int(start, 16), int(end, 16)))
    assert spans
    for name, value in stored(back).items():
        first, last = value.data_ptr(), value.data_ptr() + value.nbytes
        assert any(start <= first and last <= end for start, end in spans), f"{name} was copied"


def test_the_file_may_be_replaced_and_deleted_under_a_loaded_model(small: Model, tiny: SimpleNamespace, tmp_path: Path):
    small.save(tmp_path / "out")
    back = load(tmp_path / "out")
    tiny.model("llama", seed=1).save(tmp_path / "out")
    assert torch.equal(tiny.outputs(back, TOKENS), tiny.outputs(small, TOKENS))
    back.save(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    assert back.fingerprint() == small.fingerprint()


def test_writing_into_a_loaded_weight_does_not_write_into_the_file(small: Model, tmp_path: Path):
    small.save(tmp_path / "out")
    before = file_sha256(tmp_path / "out" / "model.safetensors")
    for value in stored(load(tmp_path / "out")).values():
        value.zero_()
    assert file_sha256(tmp_path / "out" / "model.safetensors") == before


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_stored_tensors_are_aligned_wherever_the_data_begins(small: Model, shift: int, tmp_path: Path):
    small.save(tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    path.write_bytes((length + shift).to_bytes(8, "little") + content[8 : 8 + length] + b" " * shift + content[8 + length :])
    description = json.loads((tmp_path / "out" / "tersor.json").read_text())
    description["sha256"]["model.safetensors"] = file_sha256(path)
    description["checksum"] = description_checksum(description)
    (tmp_path / "out" / "tersor.json").write_text(json.dumps(description))
    back = load(tmp_path / "out")
    assert all(value.data_ptr() % value.element_size() == 0 for value in stored(back).values())
    assert back.fingerprint() == small.fingerprint()
