"""Text by a language model: the decoder's own steps, exact, close to what the model's probabilities allow."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import tersor
from tersor import coding
from tersor.coding import CorruptStream, ModelMismatch, NumericsMismatch
from tersor.coding.entropy import Container
from tersor.coding.text import LanguageModelCoder, compress_bytes, decompress_bytes
from tersor.coding.text.chunks import cut
from tersor.errors import InvalidArgument, TersorError


@pytest.fixture(scope="module")
def model(stories_path):
    """A real small model with its tokenizer."""
    return tersor.load(str(stories_path))


@pytest.fixture(scope="module")
def story(data_dir) -> bytes:
    """Two thousand bytes of the kind of text that the model knows."""
    return (data_dir / "text" / "tinystories.txt").read_bytes()[:2000]


@pytest.fixture(scope="module")
def packed(model, story) -> bytes:
    """The story as a file."""
    return coding.encode(story, codec="text", model=model)


def test_text_comes_back(model, story, packed):
    assert coding.decode(packed, model=model) == story


def test_text_comes_back_in_a_new_process(stories_path, story, packed):
    code = (
        "import sys, torch, tersor; from tersor import coding\n"
        f"model = tersor.load({str(stories_path)!r})\n"
        "sys.stdout.buffer.write(coding.decode(sys.stdin.buffer.read(), model=model))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=packed, capture_output=True, check=True, timeout=600)
    assert done.stdout == story


def test_the_size_is_the_cross_entropy(model, story):
    coder = LanguageModelCoder(model, lanes=4, context=128)
    _, streams = coder.encode(story, verify=False)
    ideal = coder.cross_entropy_bits(story)
    # Two bytes a chunk say how many tokens there are, and each chunk ends with a whole byte.
    assert abs(8 * (sum(map(len, streams)) - 2 * len(streams)) - ideal) < 0.005 * ideal + 8 * len(streams)


def test_the_model_beats_the_classical_codecs(model, story, packed):
    rivals = [len(coding.encode(story, codec=codec)) for codec in ("deflate", "bz2", "xz", "bytes")]
    assert Container.from_bytes(packed).payload_bits / 8 < 0.6 * min(rivals)
    assert len(packed) < min(rivals)
    assert coding.encode(story, model=model) == packed


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"a",
        b" leading and   many\r\n\tspaces " * 9,
        "Ünïcödé, 漢字, 😀 <s> </s> <unk>".encode(),
        b"text \xff\xfe bytes " * 40,
        bytes(range(256)),
    ],
    ids=["empty", "one", "spaces", "unicode and special tokens", "not utf-8", "all bytes"],
)
def test_what_the_tokenizer_would_lose_is_kept(model, data):
    packed = coding.encode(data, codec="text", model=model)
    assert coding.decode(packed, model=model) == data


def test_chunks_joined_are_the_message(model, story):
    for data in (story, b"\xff" * 300 + story + b"\xfe" + story[:300], story[:7]):
        chunks = cut(data, model.tokenizer, 50)
        assert b"".join(chunk.content for chunk in chunks) == data
        assert max(len(chunk.tokens) for chunk in chunks) <= 50
        assert sum(len(chunk.content) for chunk in chunks if chunk.tokens) >= 0.8 * len(data) - 300


def test_a_chunk_that_decodes_wrongly_is_stored_otherwise(model, story, monkeypatch):
    coder = LanguageModelCoder(model, lanes=2, context=100)
    decode = LanguageModelCoder._decode_tokens

    def wrong(self, payloads, counts, strict):
        for index, tokens in enumerate(decode(self, payloads, counts, strict)):
            yield None if index == 1 else [tokens[0] + 1, *tokens[1:]] if index == 2 else tokens

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModelCoder, "_decode_tokens", wrong)
        header, streams = coder.encode(story)
    assert coder.decode(header, streams) == story
    assert [stream[0] & 1 for stream in streams[:4]] == [0, 1, 1, 0]


def test_another_model_machine_or_chunk_length_is_refused(model, story, packed):
    container = Container.from_bytes(packed)
    with pytest.raises(ModelMismatch):
        coding.decode(Container(5, {**container.header, "model": "0" * 64}, container.streams).to_bytes(), model=model)
    header = {**container.header, "numerics": {**container.header["numerics"], "torch": "1.0"}}
    moved = Container(5, header, container.streams).to_bytes()
    with pytest.raises(NumericsMismatch, match=r"torch '1\.0' instead of"):
        coding.decode(moved, model=model)
    assert coding.decode(moved, model=model, force=True) == story


@pytest.mark.parametrize("seed", range(2))
def test_forged_files_are_refused_or_right(model, seed):
    data = b"Once upon a time there was a cat."
    original = Container.from_bytes(coding.encode(data, codec="text", model=model))
    random = np.random.default_rng(seed)
    for _ in range(30):
        stream = bytearray(original.streams[0])
        for _ in range(random.integers(0, 3)):
            stream[random.integers(len(stream))] = random.integers(256)
        forged = Container(5, original.header, (bytes(stream[: random.integers(len(stream) + 1)]),) * int(random.integers(0, 3)))
        try:
            assert coding.decode(forged.to_bytes(), model=model) == data
        except TersorError:
            continue
    for numerics in (None, {}, {"lanes": 10**9, "context": 5}, {"lanes": 1, "context": 10**9}, {"lanes": "1", "context": 5}):
        with pytest.raises(CorruptStream, match="lanes and context"):
            coding.decode(Container(5, {**original.header, "numerics": numerics}, original.streams).to_bytes(), model=model)


@pytest.mark.parametrize("seed", range(3))
def test_the_byte_model_takes_anything(seed):
    random = np.random.default_rng(seed)
    for size in (1, 2, 3, 50, 3000):
        data = random.integers(0, [256, 2, 20][seed], size).astype(np.uint8).tobytes()
        assert decompress_bytes(compress_bytes(data), size) == data


def test_bytes_of_the_byte_model_never_change():
    assert compress_bytes(b"abracadabra " * 8).hex() == GOLDEN


GOLDEN = "aca5e3e7fe2b4fbf35"


def test_the_byte_model_is_near_the_entropy_of_what_has_no_structure():
    random = np.random.default_rng(0)
    data = random.choice(4, 40_000, p=[0.7, 0.1, 0.1, 0.1]).astype(np.uint8).tobytes()
    ideal = 40_000 * 1.3568
    assert ideal < 8 * len(compress_bytes(data)) < 1.04 * ideal


def test_wrong_sizes_are_refused():
    data = compress_bytes(b"abracadabra " * 80)
    for size in (0, 3, 10**9):
        with pytest.raises(CorruptStream):
            decompress_bytes(data, size)


def test_errors_name_the_rule(model):
    with pytest.raises(InvalidArgument, match="lanes must be 1 to 64 and context 1 to 511"):
        LanguageModelCoder(model, context=512)
    with pytest.raises(InvalidArgument, match="no tokenizer"):
        LanguageModelCoder(tersor.Model(model.module))
