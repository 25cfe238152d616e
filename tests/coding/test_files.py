"""encode and decode, whole and in blocks: any bytes come back, random ones hardly grow, damage is named."""

from __future__ import annotations

import io
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor import coding
from tersor.coding import CorruptStream, classical
from tersor.coding.entropy import Container
from tersor.errors import InvalidArgument, TersorError

WITHOUT_MODEL = ("raw", "deflate", "bz2", "xz", "bytes")
TEXT = (b"The quick brown fox jumps over the lazy dog. " * 30)[:1234]
EXAMPLES = {
    "empty": b"", "one byte": b"\0", "text": TEXT, "zeros": bytes(20_000), "random": np.random.default_rng(0).bytes(5000),
    "samples": np.cumsum(np.random.default_rng(1).integers(-9, 10, 3000)).astype("<i2").tobytes(), "all bytes": bytes(range(256)) * 3,
}  # fmt: skip


@pytest.mark.parametrize("codec", ["auto", *WITHOUT_MODEL])
@pytest.mark.parametrize("name", EXAMPLES)
def test_any_bytes_come_back(name, codec):
    assert coding.decode(coding.encode(EXAMPLES[name], codec=codec)) == EXAMPLES[name]


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=2000), codec=st.sampled_from(WITHOUT_MODEL))
def test_drawn_bytes_come_back(data, codec):
    assert coding.decode(coding.encode(data, codec=codec)) == data


@pytest.mark.parametrize("size", [0, 1, 100, 70_000])
def test_random_bytes_grow_by_less_than_64(size):
    data = np.random.default_rng(size).bytes(size)
    assert len(coding.encode(data)) < size + 64


def test_auto_is_the_smallest():
    for data in EXAMPLES.values():
        tried = [*WITHOUT_MODEL, *(["programs"] if len(data) <= 4096 else [])]
        assert len(coding.encode(data)) == min(len(coding.encode(data, codec=codec)) for codec in tried)


@pytest.mark.parametrize("codec", WITHOUT_MODEL)
def test_any_change_to_a_file_is_noticed(codec):
    data = coding.encode(TEXT, codec=codec)
    random = np.random.default_rng(0)
    for _ in range(2000):
        damaged = bytearray(data)
        damaged[random.integers(len(data))] ^= int(random.integers(1, 256))
        with pytest.raises(CorruptStream):
            coding.decode(bytes(damaged))
    for cut in range(0, len(data), 7):
        with pytest.raises(CorruptStream):
            coding.decode(data[:cut])


@pytest.mark.parametrize("codec", WITHOUT_MODEL)
def test_forged_files_are_refused_or_right(codec):
    """Damage under a right outer checksum: sizes, codec numbers and streams of any kind, as an attacker would write them."""
    original = Container.from_bytes(coding.encode(TEXT, codec=codec))
    random = np.random.default_rng(1)
    for trial in range(1000):
        header, stream = dict(original.header), bytearray(original.streams[0])
        for _ in range(random.integers(0, 4)):
            stream[random.integers(len(stream))] = random.integers(256)
        if trial % 3 == 0:
            header["size"] = int(random.choice([0, 1, 1233, 1235, 10**6, 10**12, -5]))
        if trial % 5 == 0:
            header[str(random.choice(["size", "crc32"]))] = [None, "x", 1.5, [], True][random.integers(5)]
        number = int(random.integers(0, 9)) if trial % 4 == 0 else original.codec
        stream = stream[: random.integers(len(stream) + 1)] if trial % 2 else stream
        streams = (bytes(stream),) * int(random.choice([0, 1, 1, 1, 2]))
        try:
            assert coding.decode(Container(number, header, streams).to_bytes()) == TEXT
        except TersorError:
            continue


def test_a_bomb_costs_no_more_than_the_size_that_it_admits():
    bomb = zlib.compress(bytes(10**7), 9)[2:-4]
    forged = Container(1, {"size": 1000, "crc32": 0}, (bomb,)).to_bytes()
    with pytest.raises(CorruptStream):
        coding.decode(forged)
    with pytest.raises(CorruptStream, match="cannot hold"):
        coding.decode(Container(4, {"size": 10**12, "crc32": 0}, (b"abc",)).to_bytes())


@pytest.mark.parametrize("method", classical.METHODS)
def test_methods_of_the_library_tell_their_end(method):
    packed = classical.compress(TEXT, method)
    assert classical.decompress(packed, method, len(TEXT)) == TEXT
    for wrong, size in ((packed, len(TEXT) - 1), (packed, len(TEXT) + 1), (packed[:-1], len(TEXT)), (packed + b"x", len(TEXT))):
        with pytest.raises(CorruptStream):
            classical.decompress(wrong, method, size)


@pytest.mark.parametrize("block", [100, 500, 1233, 1234, 1235])
def test_streams_in_blocks(block):
    packed, back = io.BytesIO(), io.BytesIO()
    written = coding.encode_stream(io.BytesIO(TEXT), packed, block=block)
    assert written == len(packed.getvalue())
    assert coding.decode_stream(io.BytesIO(packed.getvalue()), back) == len(TEXT)
    assert back.getvalue() == TEXT
    # One block is what encode makes, so that either function reads the other's files.
    assert (packed.getvalue() == coding.encode(TEXT)) == (block >= len(TEXT))


def test_lost_swapped_and_foreign_blocks_are_noticed():
    def blocks(data: bytes) -> list[bytes]:
        packed = io.BytesIO()
        coding.encode_stream(io.BytesIO(data), packed, block=400, codec="raw")
        parts, rest = [], packed.getvalue()
        from tersor.coding.entropy import read_container

        while rest:
            _, end = read_container(rest, 0)
            parts.append(rest[:end])
            rest = rest[end:]
        return parts

    a, b, c, d = blocks(TEXT)
    foreign = blocks(TEXT[::-1])
    assert coding.decode_stream(io.BytesIO(a + b + c + d), io.BytesIO()) == len(TEXT)
    for wrong in (a + b + c, b + c + d, a + c + d, a + c + b + d, a + b + d, a + foreign[1] + c + d, a + b + c + d + d, d, a, b""):
        with pytest.raises(CorruptStream):
            coding.decode_stream(io.BytesIO(wrong), io.BytesIO())


def test_empty_streams():
    packed = io.BytesIO()
    coding.encode_stream(io.BytesIO(b""), packed)
    assert coding.decode_stream(io.BytesIO(packed.getvalue()), io.BytesIO()) == 0


NEW_PROCESS = "import sys; from tersor import coding; coding.decode_stream(sys.stdin.buffer, sys.stdout.buffer)"


def in_a_new_process(packed: bytes) -> bytes:
    """What another process decodes."""
    done = subprocess.run([sys.executable, "-c", NEW_PROCESS], input=packed, capture_output=True, check=True, timeout=600)
    return done.stdout


CORPORA = [
    ("corpora/canterbury/alice29.txt", 30_000), ("corpora/canterbury/kennedy.xls", 30_000), ("corpora/canterbury/ptt5", 30_000),
    ("corpora/canterbury/sum", 38_240), ("corpora/canterbury/grammar.lsp", 3721),
    ("corpora/xml.zip", 30_000), ("corpora/ooffice.zip", 30_000),    ("dna/ecoli.fa.gz", 30_000), ("audio/jfk.flac", 20_000),
]  # fmt: skip


def real(data_dir, name: str, size: int) -> bytes:
    """The first bytes of a real file, out of its archive."""
    import gzip
    import zipfile

    path = data_dir / name
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as member:
            return member.read(size)
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        return file.read(size)


def test_real_files_in_a_new_process(data_dir):
    packed, originals = io.BytesIO(), []
    for name, size in CORPORA:
        originals.append(real(data_dir, name, size))
    whole = b"".join(originals)
    coding.encode_stream(io.BytesIO(whole), packed, block=50_000)
    assert in_a_new_process(packed.getvalue()) == whole


@pytest.mark.parametrize(
    ("name", "size"), [case for case in CORPORA if "flac" not in case[0]], ids=lambda case: str(case).rpartition("/")[2]
)
def test_the_byte_model_beats_xz(data_dir, name, size):
    data = real(data_dir, name, size)
    assert len(coding.encode(data, codec="bytes")) < len(coding.encode(data, codec="xz"))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: coding.encode(b"", codec="zip"), "unknown codec 'zip'; there are auto, raw"),
        (lambda: coding.encode(b"", codec="text"), "needs a language model"),
        (lambda: coding.encode_stream(io.BytesIO(), io.BytesIO(), block=0), "block must be at least 1"),
        (lambda: coding.decode(Container(5, {"size": 1, "crc32": 0, "name": "m"}).to_bytes()), "language model 'm'; pass it"),
        (lambda: classical.compress(b"", "zip"), "method must be one of"),
    ],
)  # fmt: skip
def test_errors_name_the_rule(call, sentence):
    with pytest.raises(InvalidArgument, match=sentence):
        call()
