"""Tables and coders: exact round trips, sizes against the information, and damaged streams."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.coding.entropy import (
    IntTable,
    RangeDecoder,
    RangeEncoder,
    decode_indexed,
    decode_symbols,
    encode_indexed,
    encode_symbols,
    quantise_pmf,
)  # fmt: skip
from tersor.coding.errors import CorruptStream
from tersor.errors import CorruptFile, InvalidArgument, TersorError

CODERS = ("range", "ans", "reference")


def message(n_symbols: int, length: int, seed: int, concentration: float = 0.1) -> tuple[np.ndarray, IntTable]:
    """Symbols drawn from a skewed table."""
    random = np.random.default_rng(seed)
    pmf = random.dirichlet(np.full(n_symbols, concentration))
    table = IntTable.from_pmf(pmf, 24 if n_symbols > 4096 else 16)
    return random.choice(n_symbols, size=length, p=table.weights / table.weights.sum()), table


@pytest.mark.parametrize("coder", CODERS)
@settings(max_examples=40, deadline=None)
@given(
    n_symbols=st.integers(1, 70_000), length=st.sampled_from([0, 1, 2, 300]), seed=st.integers(0, 2**31), skew=st.sampled_from([0.01, 1.0])
)
def test_what_is_coded_comes_back(coder, n_symbols, length, seed, skew):
    symbols, table = message(n_symbols, length, seed, skew)
    assert np.array_equal(decode_symbols(encode_symbols(symbols, table, coder=coder), table, length, coder=coder), symbols)


@pytest.mark.parametrize("coder", ["range", "ans"])
@pytest.mark.parametrize("n_symbols", [2, 256, 70_000])
def test_long_messages_cost_their_information(n_symbols, coder):
    symbols, table = message(n_symbols, 100_000, 1)
    data = encode_symbols(symbols, table, coder=coder)
    assert np.array_equal(decode_symbols(data, table, len(symbols), coder=coder), symbols)
    ideal = table.ideal_bits(symbols)
    assert ideal - 32 < 8 * len(data) < 1.001 * ideal + 64


@pytest.mark.parametrize("seed", range(5))
def test_three_coders_agree_on_the_size(seed):
    symbols, table = message(300, 5000, seed)
    sizes = [8 * len(encode_symbols(symbols, table, coder=coder)) for coder in CODERS]
    assert max(sizes) - min(sizes) <= 64
    assert sizes[2] <= table.ideal_bits(symbols) + 8


@pytest.mark.parametrize("coder", CODERS)
def test_symbols_of_no_probability_can_be_coded(coder):
    table = IntTable.from_pmf([0.0, 1.0, 0.0], 16)
    symbols = np.array([0, 2, 1, 0])
    assert decode_symbols(encode_symbols(symbols, table, coder=coder), table, 4, coder=coder).tolist() == [0, 2, 1, 0]


@pytest.mark.parametrize("coder", CODERS)
def test_a_constant_costs_nothing(coder):
    table = IntTable([1])
    assert encode_symbols(np.zeros(1000, int), table, coder=coder) == b""
    assert decode_symbols(b"", table, 1000, coder=coder).tolist() == [0] * 1000


@pytest.mark.parametrize("coder", CODERS)
def test_many_tables_in_one_stream(coder):
    random = np.random.default_rng(0)
    tables = [IntTable.from_pmf(random.dirichlet(np.ones(n)), 16) for n in (1, 2, 7, 300)]
    indexes = random.integers(0, 4, (40, 50))
    symbols = (random.random((40, 50)) * np.array([1, 2, 7, 300])[indexes]).astype(np.int64)
    data = encode_indexed(symbols, tables, indexes, coder=coder)
    assert np.array_equal(decode_indexed(data, tables, indexes, coder=coder), symbols)
    ideal = sum(table.ideal_bits(symbols[indexes == index]) for index, table in enumerate(tables))
    assert 8 * len(data) < 1.001 * ideal + 64


def test_a_bit_stream_that_must_never_change():
    table = IntTable([40000, 20000, 5000, 536])
    symbols = np.array([0, 1, 0, 2, 3, 0, 0, 1, 3, 2])
    streams = {coder: encode_symbols(symbols, table, coder=coder).hex() for coder in CODERS}
    assert streams == GOLDEN


GOLDEN = {"range": "a5a4387c", "ans": "008048c62ad40000", "reference": "7c38a4a5"}


@pytest.mark.parametrize("coder", ["range", "reference"])
def test_cut_streams_are_refused(coder):
    symbols, table = message(256, 2000, 3)
    data = encode_symbols(symbols, table, coder=coder)
    for cut in (0, 1, len(data) // 2, len(data) - 9):
        with pytest.raises(CorruptStream):
            decode_symbols(data[:cut], table, 2000, coder=coder)
    with pytest.raises(CorruptStream):
        decode_symbols(data + data[:400], table, 2000, coder=coder)


def test_whatever_ans_decodes_is_what_the_bytes_stand_for():
    """Last in, first out is a bijection: a cut stream is the right code of another message, which is why files need checksums."""
    _, table = message(50, 1, 5)
    random = np.random.default_rng(6)
    found = 0
    for _ in range(300):
        data = random.bytes(4 * random.integers(0, 9))
        try:
            symbols = decode_symbols(data, table, 60, coder="ans")
        except CorruptStream:
            continue
        found += 1
        assert encode_symbols(symbols, table, coder="ans") == data
    assert found


@pytest.mark.parametrize("coder", CODERS)
def test_any_bytes_decode_or_are_refused(coder):
    random = np.random.default_rng(4)
    _, table = message(50, 1, 5)
    for _ in range(1000):
        try:
            decoded = decode_symbols(random.bytes(random.integers(0, 40)), table, 20, coder=coder)
        except CorruptStream:
            continue
        assert decoded.max() < 50


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 2**40), st.integers(1, 2**24), st.data())))
def test_numbers_of_all_sizes_in_one_stream(items):
    encoder, expected = RangeEncoder(), []
    for gamma, total, data in items:
        value = data.draw(st.integers(0, total - 1))
        encoder.encode_gamma(gamma)
        encoder.encode_uniform(value, total)
        expected.append((gamma, value))
    decoder = RangeDecoder(encoder.finish())
    assert [(decoder.decode_gamma(), decoder.decode_uniform(total)) for _, total, _ in items] == expected
    decoder.finish()


def test_carries_run_through_many_bytes():
    encoder = RangeEncoder()
    total = 1 << 24
    for _ in range(60):
        encoder.encode(total - 1, 1, total)
    encoder.encode(0, 1, 2)
    for _ in range(60):
        encoder.encode(total - 2, 2, total)
    decoder = RangeDecoder(encoder.finish())
    for low, weight in [(total - 1, 1)] * 60:
        assert decoder.peek(total) == low
        decoder.advance(low, weight, total)
    assert decoder.decode_uniform(2) == 0


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 5), n=st.integers(1, 3000), bits=st.sampled_from([12, 16, 24]), seed=st.integers(0, 1000))
def test_quantised_rows_have_their_total_and_no_zero(rows, n, bits, seed):
    pmf = np.random.default_rng(seed).dirichlet(np.full(n, 0.02), rows)
    weights = quantise_pmf(pmf, bits)
    assert weights.min() >= 1
    assert (weights.sum(1) == 1 << bits).all()
    assert np.array_equal(weights[0], quantise_pmf(pmf[0], bits))
    # Every symbol keeps its share of what the floor leaves, to within one unit; the largest gets the rest.
    share = pmf * ((1 << bits) - n)
    others = weights != weights.max(1, keepdims=True)
    assert (np.abs(weights - 1 - share)[others] <= 1 + 1e-6).all()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: quantise_pmf(np.ones(5), 2), "5 symbols in a table of 2 bits"),
        (lambda: quantise_pmf(np.array([np.nan, 1.0]), 8), "NaN, Inf or negative"),
        (lambda: quantise_pmf(np.zeros(3), 8), "sums to zero"),
        (lambda: quantise_pmf(np.zeros(0), 8), "at least one symbol"),
        (lambda: IntTable([1, 2]), "power of two"),
        (lambda: IntTable([0, 2]), "positive integers"),
        (lambda: encode_symbols(np.array([3]), IntTable([1, 1])), "outside of its table"),
        (lambda: encode_symbols(np.array([2**40]), IntTable([1, 1])), "outside of its table"),
        (lambda: encode_symbols(np.array([0.5]), IntTable([1, 1])), "symbols are integers"),
        (lambda: encode_symbols(np.array([0]), IntTable([1, 1]), coder="huffman"), "coder must be one of"),
        (lambda: encode_indexed(np.array([0]), [IntTable([1, 1])], np.array([1])), "indexes name tables 0 to 0"),
        (lambda: encode_indexed(np.array([0]), [IntTable([1, 1])], np.array([0, 0])), "indexes of that shape"),
    ],
)  # fmt: skip
def test_errors_name_the_rule(call, sentence):
    with pytest.raises(InvalidArgument, match=sentence):
        call()


def test_errors_are_of_the_house():
    assert issubclass(CorruptStream, CorruptFile)
    assert issubclass(CorruptStream, TersorError)
