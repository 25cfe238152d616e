"""Texts by name, windows, sampled text, and the refusal to use a text twice."""

from __future__ import annotations

import bz2
import gzip
import json
import random
from pathlib import Path

import pytest
import torch
import transformers

from tersor import data
from tersor.errors import CorruptFile, InvalidArgument
from tersor.models import Model, load


@pytest.fixture
def gpt2() -> Model:
    config = transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
    return Model(transformers.GPT2LMHeadModel(config))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "text").mkdir()
    monkeypatch.setenv("TERSOR_DATA", str(tmp_path))
    return tmp_path / "text"


def prose(n_words: int, seed: int) -> str:
    generator = random.Random(seed)
    return " ".join("".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=generator.randint(2, 9))) for _ in range(n_words))


def test_rows_are_joined_by_blank_lines(folder: Path):
    rows = ["", " = Title = \n", "naïve text\u2028with a line separator"]
    content = "\n".join(json.dumps({"text": row}, ensure_ascii=False) for row in rows) + "\n"
    (folder / "wiki.rows.jsonl").write_text(content, encoding="utf-8")
    (folder / "wiki.raw").write_text("not this")
    assert data.text("wiki") == "\n\n".join(rows)
    assert data.text("wiki.raw") == "not this"


def test_wikitext_by_name(data_dir: Path):
    lines = (data_dir / "text" / "wikitext2.valid.rows.jsonl").read_text(encoding="utf-8").split("\n")
    assert data.text("wikitext2.valid") == "\n\n".join(json.loads(line)["text"] for line in lines if line)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress], ids=["gz", "bz2"])
def test_compressed_files_are_read(tmp_path: Path, compress: object):
    path = tmp_path / f"text.txt.{'gz' if compress is gzip.compress else 'bz2'}"
    path.write_bytes(compress("héllo".encode()))  # type: ignore[operator]
    assert data.text(path) == "héllo"


def test_one_text_is_always_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TERSOR_DATA", raising=False)
    assert len(data.text("python-docs")) > 100_000


def test_an_unknown_name_lists_the_known(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "c4.txt").write_text("x")
    with pytest.raises(InvalidArgument, match=r"no text 'nothing': .*the names are python-docs, c4\.txt"):
        data.text("nothing")
    with pytest.raises(InvalidArgument, match="no text"):
        data.text("../text/c4.txt")
    monkeypatch.delenv("TERSOR_DATA")
    with pytest.raises(InvalidArgument, match="TERSOR_DATA is not set"):
        data.text("nothing")


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("x.txt", b"\xff\xfe\xfa", CorruptFile), ("x.jsonl", b'{"text": 3}', CorruptFile), ("x.jsonl", b"{", CorruptFile),
        ("x.jsonl", b'{"body": ""}', CorruptFile), ("x.gz", b"not gzip", CorruptFile), ("x.txt", b" \n ", InvalidArgument),
    ],
    ids=["bytes", "number", "cut", "no-text", "gzip", "blank"],
)  # fmt: skip
def test_damaged_texts_are_refused(tmp_path: Path, name: str, content: bytes, error: type[Exception]):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error):
        data.text(tmp_path / name)


def test_windows_do_not_overlap():
    assert data.windows(torch.arange(10), 3).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    with pytest.raises(InvalidArgument, match="10 tokens has no window of 11"):
        data.windows(torch.arange(10), 11)
    with pytest.raises(InvalidArgument, match="windows need"):
        data.windows(torch.zeros(2, 5), 3)


@pytest.mark.parametrize(("n_tokens", "length", "shape"), [(40, 10, (4, 10)), (41, 10, (5, 10)), (1, 64, (1, 64)), (100, None, (2, 64))])
def test_sampled_text_has_the_asked_size(gpt2: Model, n_tokens: int, length: int | None, shape: tuple[int, int]):
    tokens = data.sample_text(gpt2, n_tokens, 0, length)
    assert tuple(tokens.shape) == shape
    assert tokens.dtype == torch.long
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < 96


@pytest.mark.parametrize("seed", [0, 1])
def test_a_seed_gives_one_text(gpt2: Model, seed: int):
    before = torch.get_rng_state()
    first = data.sample_text(gpt2, 60, seed, 20, batch_size=2)
    assert torch.equal(first, data.sample_text(gpt2, 60, seed, 20, batch_size=2))
    assert not torch.equal(first, data.sample_text(gpt2, 60, seed + 10, 20, batch_size=2))
    assert len({tuple(row) for row in first.tolist()}) == 3
    assert torch.equal(torch.get_rng_state(), before)


def test_the_real_model_is_less_surprised_by_its_own_text_than_by_noise(stories_path: Path):
    model = load(stories_path)
    tokens = data.sample_text(model, 512, 0, 128)
    noise = torch.randint(3, 512, tokens.shape, generator=torch.Generator().manual_seed(0))

    def surprise(batch: torch.Tensor) -> float:
        with torch.no_grad():
            logits = model.module(batch).logits
        return float(torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 512), batch[:, 1:].reshape(-1)))

    assert (tokens[:, 0] == model.tokenizer.bos_token_id).all()
    assert surprise(tokens) < 2 < surprise(noise)


@pytest.mark.parametrize("options", [{"n_tokens": 0}, {"length": 1}, {"temperature": 0.0}, {"batch_size": 0}, {"length": 65}], ids=str)
def test_bad_sampling_arguments_are_refused(gpt2: Model, options: dict[str, object]):
    with pytest.raises(InvalidArgument):
        data.sample_text(gpt2, **{"n_tokens": 8, "seed": 0, **options})


def test_different_texts_pass():
    data.check_disjoint({"calibration": prose(4000, 0), "search": prose(4000, 1), "evaluation": prose(50, 2)})


def test_the_same_text_is_refused_whatever_surrounds_it():
    with pytest.raises(InvalidArgument, match="the calibration text and the evaluation text are the same"):
        data.check_disjoint({"calibration": "short", "evaluation": " short\n"})


@pytest.mark.parametrize("seed", range(5))
def test_a_shared_passage_is_found_at_any_offset(seed: int):
    generator = random.Random(seed)
    first, second = prose(3000, 10 + seed), prose(3000, 20 + seed)
    begin = generator.randrange(len(first) - 1024)
    place = generator.randrange(len(second))
    with pytest.raises(InvalidArgument, match="share a passage"):
        data.check_disjoint({"a": first, "b": second[:place] + first[begin : begin + 1024] + second[place:]})


@pytest.mark.parametrize("seed", range(3))
def test_a_short_quotation_is_no_overlap(seed: int):
    first, second = prose(3000, 30 + seed), prose(3000, 40 + seed)
    data.check_disjoint({"a": first, "b": second[:777] + first[1000:1500] + second[777:]})


def test_rulers_and_blanks_are_no_evidence():
    data.check_disjoint({"a": prose(500, 1) + "-" * 3000, "b": prose(500, 2) + "-" * 2000})


def test_passages_across_internal_chunks_are_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(data, "_CHUNK", 600)
    first, second = prose(1500, 5), prose(1500, 6)
    data.check_disjoint({"a": first, "b": second})
    for place in range(0, 2000, 250):
        with pytest.raises(InvalidArgument, match="share"):
            data.check_disjoint({"a": first, "b": second[:place] + first[3000:4024] + second[place:]})
