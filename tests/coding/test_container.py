"""The file format: what is written comes back, and nothing damaged does."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.coding.entropy import (
    Container,
    check_model,
    check_numerics,
    fingerprint,
    numerics_profile,
    read_container,
    read_varint,
    write_varint,
)  # fmt: skip
from tersor.coding.errors import CorruptStream, ModelMismatch, NumericsMismatch

EXAMPLE = Container(7, {"size": 12, "shape": [3, 4], "name": "é"}, (b"", b"abc" * 50, b"\0"))
json_values = st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.lists(st.integers(), max_size=3)


@settings(max_examples=50, deadline=None)
@given(
    codec=st.integers(0, 2**40),
    header=st.dictionaries(st.text(), json_values, max_size=4),
    streams=st.lists(st.binary(max_size=300), max_size=5),
)
def test_what_is_written_comes_back(codec, header, streams):
    container = Container(codec, header, tuple(streams))
    data = container.to_bytes()
    assert Container.from_bytes(data) == container
    assert read_container(b"xx" + data + data, 2) == (container, len(data) + 2)


def test_every_flipped_byte_and_every_cut_is_noticed():
    data = EXAMPLE.to_bytes()
    for index in range(len(data)):
        for flip in (1, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[index] ^= flip
            with pytest.raises(CorruptStream):
                Container.from_bytes(bytes(damaged))
        with pytest.raises(CorruptStream):
            Container.from_bytes(data[:index])
    with pytest.raises(CorruptStream, match="1 bytes follow"):
        Container.from_bytes(data + b"\0")


@pytest.mark.parametrize("seed", range(4))
def test_damage_under_a_right_checksum_is_no_crash_and_no_allocation(seed):
    """What a forger can do: any bytes, sealed."""
    import tracemalloc

    random = np.random.default_rng(seed)
    data = EXAMPLE.to_bytes()[:-4]
    tracemalloc.start()
    for _ in range(3000):
        damaged = bytearray(data)
        for _ in range(random.integers(1, 4)):
            damaged[random.integers(4, len(damaged))] = random.integers(256)
        body = bytes(damaged[: random.integers(5, len(damaged) + 1)])
        sealed = body + zlib.crc32(body).to_bytes(4, "little")
        try:
            container = Container.from_bytes(sealed)
        except CorruptStream:
            continue
        assert Container.from_bytes(container.to_bytes()) == container
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


@given(st.integers(0, 2**63 - 1))
def test_numbers(value):
    data = write_varint(value)
    assert read_varint(b"\xff" + data, 1) == (value, 1 + len(data))


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80\x00", b"\xff" * 20], ids=["empty", "cut", "padded", "endless"])
def test_numbers_that_are_none(data):
    with pytest.raises(CorruptStream, match="length"):
        read_varint(data, 0)


def test_a_later_version_and_another_file_are_named():
    data = bytearray(EXAMPLE.to_bytes())
    data[4] = 2
    with pytest.raises(CorruptStream, match="update tersor"):
        Container.from_bytes(bytes(data))
    with pytest.raises(CorruptStream, match=r"not a \.tersor file"):
        Container.from_bytes(b"\x89PNG\r\n")


def test_a_fingerprint_sees_every_weight_name_and_setting():
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.int32), "empty": torch.zeros(0)}
    marks = {
        fingerprint(tensors, {"heads": 2}),
        fingerprint(tensors, {"heads": 3}),
        fingerprint({**tensors, "a": tensors["a"].T}, {"heads": 2}),
    }
    marks |= {fingerprint({**tensors, "a": tensors["a"] + torch.eye(3)[:2] * 1e-6}, {"heads": 2})}
    marks |= {fingerprint({**tensors, "b": tensors["b"].float()}, {"heads": 2})}
    assert len(marks) == 5
    assert fingerprint(dict(reversed(tensors.items())), {"heads": 2}) in marks


def test_another_model_and_another_machine_are_refused():
    check_model("abc", "abc")
    with pytest.raises(ModelMismatch, match="pass the model that wrote it"):
        check_model("abc", "abd")
    profile = numerics_profile(batch=8)
    check_numerics(dict(profile), profile)
    other = {**profile, "threads": 99}
    with pytest.raises(NumericsMismatch, match="threads 99 instead of"):
        check_numerics(other, profile)
    check_numerics(other, profile, force=True)
    with pytest.raises(NumericsMismatch):
        check_numerics(None, profile)
