"""Safetensors headers: read with suspicion, predicted to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tersor.errors import CorruptFile
from tersor.models.tensorfile import TYPE_NAMES, Promise, file_sha256, file_size, read_header, write_tensors

SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
LETTERS = st.characters(codec="utf-8", exclude_categories=["Cs"])
NAMES = st.text(LETTERS, min_size=1, max_size=12).filter(lambda name: name != "__metadata__")
Described = dict[str, tuple[torch.dtype, tuple[int, ...]]]
TENSORS = st.dictionaries(NAMES, st.tuples(st.sampled_from(list(TYPE_NAMES)), SHAPES), max_size=8)


@settings(max_examples=80, deadline=None)
@given(TENSORS)
def test_the_file_equals_the_reference_writer_s(tmp_path_factory: pytest.TempPathFactory, described: Described):
    folder = tmp_path_factory.mktemp("files")
    tensors = {name: torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype) for name, (dtype, shape) in described.items()}
    promises = {name: Promise(tensor.dtype, tuple(tensor.shape), tensor) for name, tensor in tensors.items()}
    digest = write_tensors(folder / "ours", promises)
    save_file(tensors, folder / "theirs", metadata={"format": "pt"})
    assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()
    assert file_size(promises) == (folder / "ours").stat().st_size
    assert digest == file_sha256(folder / "ours")
    header = read_header(folder / "ours")
    assert {name: (entry.dtype, entry.shape) for name, entry in header.items()} == {
        name: (TYPE_NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()
    }


def test_values_are_converted_as_they_are_written(tmp_path: Path):
    source = torch.linspace(-1, 1, 12).reshape(3, 4).T
    write_tensors(tmp_path / "file", {"x": Promise(torch.float16, (4, 3), source)})
    assert torch.equal(load_file(tmp_path / "file")["x"], source.half())


def file_with(path: Path, header: Any, data: bytes = b"\0" * 16) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (4,), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "header",
    [
        b"{", b"[]", b"\xff\xff", {"x": 3}, {"x": {}}, {"x": entry(dtype="F99")}, {"x": entry(shape=[5])}, {"x": entry(shape=[-4])},
        {"x": entry(shape=[4.0])}, {"x": entry(shape=[2**62, 4])}, {"x": entry(offsets=(0, 12))}, {"x": entry(shape=[3], offsets=(0, 12))},
        {"x": entry(offsets=(4, 20))}, {"x": entry(), "y": entry()}, {"x": entry(), "y": entry(offsets=(16, 32))},
        {"x": entry(shape=[1], offsets=(0, 4)), "y": entry(shape=[2], offsets=(8, 16))}, {"x": entry(offsets="0")},
        {"x": entry(offsets=[0])}, {},
    ],
    ids=[
        "cut", "list", "bytes", "number", "empty", "type", "size", "negative", "fraction", "huge", "offsets", "short", "shifted",
        "overlap", "beyond", "hole", "text", "one-offset", "nothing",
    ],
)  # fmt: skip
def test_headers_that_lie_are_refused(tmp_path: Path, header: Any):
    with pytest.raises(CorruptFile):
        read_header(file_with(tmp_path / "file", header))


def test_a_length_beyond_the_file_is_refused_without_reading(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes((2**63).to_bytes(8, "little") + b"{}")
    with pytest.raises(CorruptFile, match="10 bytes, fewer than its header needs"):
        read_header(path)
