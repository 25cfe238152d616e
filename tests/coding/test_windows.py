"""Equal-Info windows: two modes that lose nothing, one that does, and what each costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor import data as texts
from tersor.coding import CorruptStream
from tersor.coding.windows import (
    ArithmeticTokenizer,
    EqualInfoTokenizer,
    NGramByteLM,
    SecondModel,
    SecondModelConfig,
    bits_per_byte,
    bits_per_token,
    train_second_model,
    unigram_bits,
)  # fmt: skip
from tersor.errors import InvalidArgument

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "saw", "dogs", "run", "away", "from", "its", "house")


def prose(n: int, seed: int) -> bytes:
    """Words drawn at random."""
    random = np.random.default_rng(seed)
    return " ".join(random.choice(WORDS, n)).encode()


MODELS = {order: NGramByteLM(prose(4000, 0), order) for order in (0, 2, 4)}
LOSSLESS = [("exact", 8), ("exact", 16), ("exact", 24), ("exact", 56), ("delay", 16), ("delay", 32)]
CORNERS = {
    "empty": b"",
    "zeros": bytes(500),
    "ones": b"\xff" * 500,
    "utf-8": "漢字 und Umlaute äöü ".encode() * 10,
    "letter": b"a" * 3000,
    "one": b"q",
}


@pytest.mark.parametrize(("mode", "bits"), LOSSLESS)
@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300) | st.text(alphabet="the cat sat on", max_size=300).map(str.encode), order=st.sampled_from([0, 2, 4]))
def test_any_bytes_come_back(mode, bits, data, order):
    tokenizer = EqualInfoTokenizer(MODELS[order], bits, mode=mode)
    assert tokenizer.decode(tokenizer.encode(data)) == data


@pytest.mark.parametrize(("mode", "bits"), LOSSLESS)
@pytest.mark.parametrize("name", CORNERS)
def test_corner_cases_come_back(mode, bits, name):
    tokenizer = EqualInfoTokenizer(MODELS[4], bits, mode=mode)
    assert tokenizer.decode(tokenizer.encode(CORNERS[name])) == CORNERS[name]


def test_the_papers_default_loses_text():
    text = prose(3000, 1)
    tokenizer = EqualInfoTokenizer(MODELS[4], 16, mode="greedy")
    assert tokenizer.decode(tokenizer.encode(text)) != text


@pytest.mark.parametrize(("bits", "dearer"), [(16, 0.06), (32, 0.03)])
def test_exact_costs_little_more_than_greedy_and_less_than_delay(bits, dearer):
    docs = texts.text("python-docs").encode()
    model, rest = NGramByteLM(docs[:300_000], 4), docs[300_000:310_000]
    size = {mode: len(EqualInfoTokenizer(model, bits, mode=mode).encode(rest)) for mode in ("greedy", "exact", "delay")}
    assert size["exact"] < (1 + dearer) * size["greedy"]
    assert size["exact"] < size["delay"]


@pytest.mark.parametrize(("mode", "bits"), LOSSLESS)
def test_real_prose_comes_back(mode, bits):
    docs = texts.text("python-docs").encode()
    tokenizer = EqualInfoTokenizer(NGramByteLM(docs[:100_000], 4), bits, mode=mode)
    assert tokenizer.decode(tokenizer.encode(docs[200_000:230_000])) == docs[200_000:230_000]


def test_longer_windows_cost_less_and_one_code_least():
    text = prose(5000, 3)
    sizes = [len(EqualInfoTokenizer(MODELS[4], bits).encode(text)) for bits in (16, 32, 48)]
    whole = len(ArithmeticTokenizer(MODELS[4]).encode(text))
    assert len(text) > sizes[0] > sizes[1] > sizes[2] > whole
    assert len(ArithmeticTokenizer(MODELS[0]).encode(text)) > sizes[0]


def test_every_code_of_a_window_stands_for_one_text():
    tokenizer = EqualInfoTokenizer(MODELS[2], 16, token_bits=16)
    texts = [tokenizer.decode(np.array([code])) for code in range(0, 1 << 16, 7)]
    assert len(set(texts)) == len(texts)
    assert b"" not in texts
    for index, text in enumerate(texts[:1000]):
        assert tokenizer.encode(text).tolist() == [7 * index]


def test_windows_are_where_they_are_said_to_be():
    text = prose(300, 7)
    for mode in ("exact", "delay"):
        tokenizer = EqualInfoTokenizer(MODELS[4], 16, mode=mode)
        ends = np.cumsum(tokenizer.window_lengths(text))
        windows = tokenizer.encode(text).reshape(-1, 2)
        assert ends[-1] == len(text)
        for window, begin, end in zip(windows, [0, *ends], ends, strict=False):
            assert tokenizer.decode(window) == text[begin:end]


def test_a_window_is_independent_of_what_is_before_it():
    tokenizer = EqualInfoTokenizer(MODELS[4], 24)
    whole = tokenizer.encode(prose(300, 4)).reshape(-1, 3)
    for cut in (1, 7, 20):
        assert np.array_equal(tokenizer.encode(tokenizer.decode(whole[cut:].reshape(-1))).reshape(-1, 3), whole[cut:])


def test_tokens_of_16_bits_are_those_of_8_in_pairs():
    text = prose(200, 5)
    small, large = (EqualInfoTokenizer(MODELS[4], 32, token_bits).encode(text) for token_bits in (8, 16))
    assert np.array_equal(small[::2] << 8 | small[1::2], large)


def test_one_code_over_the_text_is_the_cross_entropy():
    text = prose(3000, 6)
    tokens = ArithmeticTokenizer(MODELS[4]).encode(text)
    _, weights = MODELS[4].bounds(text)
    ideal = float((14 - np.log2(weights)).sum())
    assert ideal < 8 * len(tokens) + 8
    assert 8 * len(tokens) < 1.005 * ideal + 16
    assert ArithmeticTokenizer(MODELS[4]).decode(tokens, 400) == text[:400]


@pytest.mark.parametrize("context", [b"", b"t", b"the ", b"zzzz", b"th"])
def test_tables_against_counting(context):
    """The same mixture spelled out with fractions of whole counts."""
    data = prose(4000, 0)
    expected = np.full(256, 1 / 256)
    for length in range(5):
        if length > len(context):
            break
        end = context[len(context) - length :]
        after = [data[i + length] for i in range(len(data) - length) if data[i : i + length] == end]
        if not after:
            break
        counts = np.bincount(after, minlength=256)
        share = counts.sum() / (counts.sum() + 1.5 * (counts > 0).sum())
        expected = share * counts / counts.sum() + (1 - share) * expected
    table = MODELS[4].table(context, 14)
    assert table.sum() == 1 << 14
    assert table.min() >= 1
    assert np.abs(table - 1 - expected * ((1 << 14) - 256)).max() <= 1.01


@pytest.mark.parametrize("mode", ["exact", "delay", "greedy"])
def test_any_tokens_decode_or_are_refused(mode):
    tokenizer, random = EqualInfoTokenizer(MODELS[4], 24, mode=mode), np.random.default_rng(0)
    for _ in range(200):
        try:
            text = tokenizer.decode(random.integers(0, 256, 3 * random.integers(0, 4)))
        except CorruptStream:
            assert mode != "exact"
            continue
        assert mode != "exact" or isinstance(text, bytes)
    for wrong in (np.array([1, 2]), np.array([1, 2, 256]), np.array([-1, 0, 0])):
        with pytest.raises(CorruptStream):
            tokenizer.decode(wrong)


def test_a_second_model_learns_what_there_is_and_no_more():
    random = np.random.default_rng(0)
    # Pairs whose second half is the first plus one: the second costs nothing, the first cannot be learned.
    first = random.integers(0, 16, 6000)
    tokens = np.stack([first, (first + 1) % 16], 1).reshape(-1)
    config = SecondModelConfig(layers=1, width=32, heads=2, context=16, phases=2, steps=150, batch=16, learning_rate=1e-2)
    state = torch.get_rng_state()
    model = train_second_model(tokens[:10_000], 16, config)
    assert torch.equal(torch.get_rng_state(), state)
    even, odd = bits_per_token(model, tokens[10_000:])
    assert even == pytest.approx(4, abs=0.15)
    assert odd < 0.5
    assert unigram_bits(tokens[:10_000], tokens[10_000:], 16) == pytest.approx(4, abs=0.05)
    assert bits_per_byte(even, 2000, 4000) == pytest.approx(even / 2)


def test_a_second_model_does_not_see_what_it_predicts():
    model = SecondModel(16, SecondModelConfig(layers=2, width=16, heads=2, context=8, seed=3)).eval()
    tokens = torch.arange(8).repeat(2, 1)
    tokens[1, 5] = 15
    logits = model(tokens, torch.zeros(2, dtype=torch.long))
    assert torch.equal(logits[0, :6], logits[1, :6])
    assert not torch.equal(logits[0, 6], logits[1, 6])
    assert float(logits.detach().std()) < 1


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: NGramByteLM(b""), "needs text and an order"),
        (lambda: NGramByteLM(b"a", 7), "order from 0 to 6"),
        (lambda: EqualInfoTokenizer(MODELS[0], 12), "windows of 12 bits"),
        (lambda: EqualInfoTokenizer(MODELS[0], 8, mode="delay"), "from 15 to 32"),
        (lambda: EqualInfoTokenizer(MODELS[0], mode="lossy"), "mode must be one of"),
        (lambda: ArithmeticTokenizer(MODELS[0], 12), "8 or 16 bits"),
        (lambda: SecondModel(4, SecondModelConfig(width=10, heads=3)), "width that its heads divide"),
        (lambda: train_second_model(np.zeros(5, int), 4, SecondModelConfig()), "do not fill a context"),
    ],
)  # fmt: skip
def test_errors_name_the_rule(call, sentence):
    with pytest.raises(InvalidArgument, match=sentence):
        call()
