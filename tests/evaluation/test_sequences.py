from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tersor.errors import InvalidArgument
from tersor.evaluation.sequences import check_overlap, make_windows

from .conftest import letters, llama, tokens


def test_a_row_is_cut_into_windows_that_do_not_overlap():
    row = tokens(70)
    windows = make_windows(llama(), row, context=16)
    assert torch.equal(torch.cat(windows.sequences), row[:64])
    assert windows.scored.tolist() == [15] * 4


@pytest.mark.parametrize(("limit", "count"), [(None, 4), (64, 4), (63, 3), (16, 1), (5, 1)])
def test_max_tokens_takes_whole_windows_and_at_least_one(limit: int | None, count: int):
    assert len(make_windows(llama(), tokens(70), context=16, max_tokens=limit).sequences) == count


def test_rows_of_a_matrix_and_documents_stay_apart():
    matrix = tokens(60).reshape(3, 20)
    assert [len(row) for row in make_windows(llama(), matrix).sequences] == [20, 20, 20]
    documents = [tokens(5), tokens(1), tokens(30)]
    assert [len(row) for row in make_windows(llama(), documents, context=12).sequences] == [5, 12]


def test_without_a_context_it_is_512_or_the_models_limit():
    assert make_windows(llama(context=48), tokens(100)).context == 48
    assert make_windows(llama(context=1024), tokens(1100)).context == 512


def test_a_text_its_file_and_its_tokens_are_the_same(tmp_path: Path):
    model, text = llama(tokenizer=letters()), "a bad cab fed a gag. " * 20
    file = tmp_path / "some text.txt"
    file.write_text(text, encoding="utf-8")
    digests = {make_windows(model, source, context=16).digest for source in (text, file, str(file), model.encode(text))}
    assert len(digests) == 1


def test_a_misspelt_name_is_refused_rather_than_evaluated():
    with pytest.raises(InvalidArgument, match="no text 'wikitext9'"):
        make_windows(llama(tokenizer=letters()), "wikitext9", context=2)


@pytest.mark.parametrize(
    ("text", "context", "message"),
    [
        (tokens(9), 10, r"at least one window of 10 tokens but given tokens has 9"),
        (tokens(100), 65, r"context must be from 2 to the 64 tokens"),
        (tokens(100), 1, r"context must be from 2 to"),
        (tokens(64).reshape(2, 2, 16), 8, r"must be \[n\] or \[n_windows, length\]"),
        (tokens(20).float(), 8, "integer tensor"),
        (tokens(20) + 32, 8, "knows 0 to 31"),
        (tokens(20) - 32, 8, "knows 0 to 31"),
        ([tokens(1)], 8, "at least one document of 2 tokens"),
    ],
    ids=["too short", "beyond the model", "context 1", "three axes", "floats", "too large ids", "negative ids", "one token"],
)
def test_what_cannot_be_scored_is_refused(text: torch.Tensor, context: int, message: str):
    with pytest.raises(InvalidArgument, match=message):
        make_windows(llama(), text, context=context)


def _story(seed: int, n: int = 4000) -> str:
    generator = torch.Generator().manual_seed(seed)
    return "".join("abcdefghijklmnop ."[index] for index in torch.randint(18, (n,), generator=generator).tolist())


@pytest.mark.parametrize("form", ["text", "tokens", "windows"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "disjoint"])
def test_overlap_is_found_in_every_form(form: str, shared: bool):
    model, fitted, other = llama(tokenizer=letters()), _story(0), _story(1)
    text = other + (fitted[500:2500] if shared else "")
    windows = make_windows(model, text, context=64)
    ids = model.encode(fitted)
    calibration = {"text": fitted, "tokens": ids, "windows": ids[: len(ids) // 50 * 50].reshape(-1, 50)}[form]
    if not shared:
        check_overlap(model, windows, text, calibration)
        return
    with pytest.raises(InvalidArgument, match=r"share a passage.*allow_overlap=True"):
        check_overlap(model, windows, text, calibration)


def test_overlap_of_bare_tokens_needs_no_tokenizer():
    model, row = llama(), tokens(600)
    windows = make_windows(model, row, context=16)
    with pytest.raises(InvalidArgument, match=r"are the same|share a passage"):
        check_overlap(model, windows, row, row[:592])
    check_overlap(model, windows, row, tokens(600, seed=1))
