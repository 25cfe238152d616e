"""Schedules compute attention, move the words that the closed forms say, and never fewer than the bound."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tersor.attention import io
from tersor.attention.io import SCHEDULES, CacheOverflow, IOMachine, Tiles
from tersor.errors import InvalidArgument

SIZES = [(24, 4, 96), (32, 8, 130), (33, 5, 70), (17, 16, 400), (40, 3, 60), (8, 8, 10_000), (1, 1, 16)]
CAUSAL = ("flash1", "flash2")


def softmax_attention(n: int, d: int, seed: int, scale: float, causal: bool = False) -> np.ndarray:
    """Attention by the definition, on the inputs that `simulate` draws for ``seed``."""
    random = np.random.default_rng(seed)
    q, k, v = (random.standard_normal((n, d)) for _ in range(3))
    scores = scale * q @ k.T
    if causal:
        scores[np.triu_indices(n, 1)] = -np.inf
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True) @ v


def feasible(schedule: str, n: int, d: int, words: int) -> bool:
    try:
        io.choose_tiles(schedule, n, d, words)
    except InvalidArgument:
        return False
    return True


CASES = [(schedule, *size) for schedule in SCHEDULES for size in SIZES if feasible(schedule, *size)]


@pytest.mark.parametrize(("schedule", "n", "d", "words"), CASES)
def test_output_is_attention_and_counts_are_the_closed_form(schedule, n, d, words):
    report = io.simulate(schedule, n, d, words, seed=n)
    np.testing.assert_allclose(report.output, softmax_attention(n, d, n, d**-0.5), atol=1e-10)
    counted = io.count(schedule, n, d, words)
    assert (report.reads, report.writes) == (counted.reads, counted.writes)
    assert report.peak <= words


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("seed", range(25))
def test_no_schedule_beats_the_bound_and_counting_needs_no_arithmetic(seed, schedule):
    random = np.random.default_rng(seed)
    n, d = int(random.integers(1, 80)), int(random.integers(1, 30))
    words = int(2 ** random.uniform(3, 14))
    if not feasible(schedule, n, d, words):
        return
    report = io.simulate(schedule, n, d, words, numeric=False)
    assert report.output is None
    assert report.words == io.count(schedule, n, d, words).words
    assert report.words >= max(io.lower_bound(n, d, words), io.lower_bound(n, d, words, "any"))
    assert report.peak <= words


@pytest.mark.parametrize("schedule", CAUSAL)
@pytest.mark.parametrize(("n", "d", "words"), [(24, 4, 96), (33, 5, 200), (40, 3, 60)])
def test_a_causal_mask_skips_blocks_and_is_exact(schedule, n, d, words):
    report = io.simulate(schedule, n, d, words, causal=True)
    np.testing.assert_allclose(report.output, softmax_attention(n, d, 0, d**-0.5, causal=True), atol=1e-10)
    counted = io.count(schedule, n, d, words, causal=True)
    assert (report.reads, report.writes) == (counted.reads, counted.writes)
    assert counted.words < io.count(schedule, n, d, words).words


def test_a_causal_mask_halves_the_streams_of_long_sequences():
    whole, half = (io.count("flash2", 1 << 14, 64, 1 << 14, causal=causal).words for causal in (False, True))
    assert half / whole == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("schedule", ["square", "square_tuned"])
@pytest.mark.parametrize("stable", [True, False])
def test_row_maxima_are_counted_and_keep_large_scores_finite(stable, schedule):
    report = io.simulate(schedule, 30, 6, 90, stable=stable)
    np.testing.assert_allclose(report.output, softmax_attention(30, 6, 0, 6**-0.5), atol=1e-10)
    counted = io.count(schedule, 30, 6, 90, stable=stable)
    assert (report.reads, report.writes) == (counted.reads, counted.writes)
    with np.errstate(all="ignore"):
        large = io.simulate(schedule, 30, 6, 90, stable=stable, scale=400.0).output
    assert np.isfinite(large).all() == stable


def test_published_closed_forms_where_tiles_divide():
    n, d, words = 4096, 64, 4096
    tiles = Tiles(32, 32, 32)
    assert io.count("square", n, d, words, tiles=tiles, stable=False).words == 4 * n * n * d // 32 + n * n + 2 * n + n * d
    tiles = io.choose_tiles("flash1", n, d, words, strict=False)
    assert (tiles.keys, tiles.queries) == (16, 16)
    flash = 2 * n * d + (n * d + 2 * n) + n // 16 * (3 * n * d + 4 * n)
    assert io.count("flash1", n, d, words, tiles=tiles).words == flash
    assert flash / (n * n * d * d / words) == pytest.approx(12.3, abs=0.1)
    tiles = io.choose_tiles("flash2", n, d, words)
    assert io.count("flash2", n, d, words).words == 2 * n * d + 2 * n * d * math.ceil(n / tiles.queries)
    assert io.count("flash2", n, d, words).words / (n * n * d * d / words) == pytest.approx(4.4, abs=0.2)


@pytest.mark.parametrize(("d", "n"), [(8, 64), (16, 128)])
def test_published_flash_tiles_overflow(d, n):
    with pytest.raises(CacheOverflow, match=f"exceeds the {4 * d * d} words of fast memory"):
        io.simulate("flash1", n, d, 4 * d * d, strict=False)
    assert io.simulate("flash1", n, d, 4 * d * d).peak <= 4 * d * d


def slope(schedule: str, points: list[tuple[int, int, int]], axis: int) -> float:
    x = np.log([point[axis] for point in points])
    y = np.log([io.count(schedule, *point).words for point in points])
    return float(np.polyfit(x, y, 1)[0])


def test_laws_of_growth():
    large = [(1 << 14, 64, words) for words in (1 << 13, 1 << 14, 1 << 15, 1 << 16)]
    assert slope("flash2", large, 2) == pytest.approx(-1, abs=0.1)
    # Its blocks of d queries take 2 d^2 words before any key is held.
    roomy = [(1 << 18, 64, words) for words in (1 << 17, 1 << 18, 1 << 19, 1 << 20)]
    assert slope("flash1", roomy, 2) == pytest.approx(-1, abs=0.1)
    small = [(1 << 12, 512, words) for words in (1 << 8, 1 << 10, 1 << 12, 1 << 14)]
    assert slope("square_tuned", small, 2) == pytest.approx(-0.5, abs=0.08)
    assert slope("flash2", [(n, 64, 8192) for n in (1 << 12, 1 << 14, 1 << 16)], 0) == pytest.approx(2, abs=0.05)
    assert slope("flash2", [(1 << 14, d, 1 << 16) for d in (32, 64, 128)], 1) == pytest.approx(2, abs=0.1)
    assert slope("square_tuned", [(1 << 12, d, 1 << 10) for d in (128, 256, 512)], 1) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("d", [32, 64, 128])
def test_the_winner_changes_where_the_memory_holds_about_d_squared(d):
    n = 64 * d
    winners = [(words / d**2, io.recommend(n, d, words).schedule) for words in (d * d // 16, d * d // 8, d * d, 4 * d * d, 16 * d * d)]
    assert [name.startswith("square") for _, name in winners] == [True, True, False, False, False]


def test_a_recommendation_counts_heads_sequences_and_shared_keys():
    one, many = io.recommend(2048, 64, 1 << 14), io.recommend(2048, 64, 1 << 14, batch=3, heads=8)
    assert (many.words, many.bytes) == (24 * one.words, 48 * one.words)
    assert many.intensity == pytest.approx(one.intensity)
    assert one.words == min(one.alternatives.values()) >= one.bound
    shared = io.recommend(2048, 64, 1 << 14, heads=8, key_heads=2)
    assert shared.words <= io.recommend(2048, 64, 1 << 14, heads=8).words
    assert io.recommend(2048, 64, 1 << 14, causal=True).words < one.words
    assert one.to_dict()["tiles"]["depth"] == 64


def test_bounds_are_of_their_order_and_ordered():
    n = 1 << 14
    for d, words in ((64, 1 << 14), (64, 1 << 16), (512, 1 << 12)):
        assert io.lower_bound(n, d, words) >= 0.15 * io.law(n, d, words)
        assert io.lower_bound(n, d, words, "any") <= io.lower_bound(n, d, words)
    assert io.law(1000, 16, 256) == pytest.approx(1000**2)
    assert io.lower_bound(10, 4, 10**6) == 4 * 10 * 4


def test_compression_game_needs_no_more_words_than_entries():
    assert io.compression_game_words(200, 10) == pytest.approx(50)
    assert io.compression_game_words(8, 1000) == pytest.approx(2)
    assert io.compression_game_words(10**6, 4) == pytest.approx(4 * math.sqrt(5 * 10**5))


DOT = {"q0": (), "q1": (), "k0": (), "k1": (), "p0": ("q0", "k0"), "p1": ("q1", "k1"), "s": ("p0", "p1")}
OUTER = {"q0": (), "q1": (), "k0": (), "k1": (), "a": ("q0", "k0"), "b": ("q0", "k1"), "c": ("q1", "k0"), "e": ("q1", "k1")}


def test_optimal_pebbling_of_toys():
    # A dot product: read all four, write one, if one product can wait beside two factors and their product.
    assert io.optimal_pebbling(DOT, 4) == 5
    # With three words the first product has to be stored and read again.
    assert io.optimal_pebbling(DOT, 3) == 7
    # An outer product: with two factors and their product in three words, an input is read again.
    assert io.optimal_pebbling(OUTER, 4) == 8
    assert io.optimal_pebbling(OUTER, 3) == 9
    with pytest.raises(InvalidArgument, match="cannot be computed with 2 words"):
        io.optimal_pebbling(DOT, 2)
    with pytest.raises(InvalidArgument, match="at most 12 vertices"):
        io.optimal_pebbling({str(i): () for i in range(13)}, 4)


@pytest.mark.parametrize("seed", range(6))
def test_belady_is_the_best_policy_and_lru_competitive(seed):
    trace = np.random.default_rng(seed).integers(0, 12, 300).tolist()
    for words in (3, 5, 8):
        lru, best = io.misses(trace, words, "lru"), io.misses(trace, words, "opt")
        assert len(set(trace)) <= best <= lru
        half = words // 2 + 1
        assert lru <= words / (words - half + 1) * io.misses(trace, half, "opt") + half
    assert io.misses(trace, 12, "lru") == len(set(trace))


def test_belady_matches_brute_force():
    def best(rest: tuple[int, ...], held: frozenset[int], words: int) -> int:
        if not rest:
            return 0
        word, rest = rest[0], rest[1:]
        if word in held:
            return best(rest, held, words)
        options = [held | {word}] if len(held) < words else [held - {out} | {word} for out in held]
        return 1 + min(best(rest, option, words) for option in options)

    for seed in range(10):
        trace = tuple(np.random.default_rng(seed).integers(0, 5, 10).tolist())
        assert io.misses(trace, 3, "opt") == best(trace, frozenset(), 3)


def test_schedules_read_less_than_a_cache_under_plain_loops():
    n, d, words = 16, 8, 96
    trace = io.attention_trace(n, d)
    assert io.misses(trace, words, "lru") > io.misses(trace, words, "opt") > io.count("flash2", n, d, words).reads


def test_the_machine_refuses_what_does_not_fit_and_counts_bytes():
    machine = IOMachine(10, element_bytes=8)
    block = machine.read(np.ones(6))
    with pytest.raises(CacheOverflow, match="a block of 5 words beside 6 in use exceeds the 10 words"):
        machine.alloc(5)
    machine.write(block, target := np.zeros(6))
    machine.free(block)
    assert (machine.held, machine.peak, machine.bytes_moved, target.sum()) == (0, 6, 96, 6.0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: io.simulate("flash2", 8, 64, 200), "flash2 needs at least 260 words of fast memory for heads of width 64, there are 200"),
        (lambda: io.count("flash3", 8, 4, 64), "schedule must be one of"),
        (lambda: io.simulate("square", 8, 4, 64, causal=True), "a causal mask is for the flash schedules"),
        (lambda: io.count("naive", 8, 4, 64, causal=True), "a causal mask is for the flash schedules"),
        (lambda: io.simulate("flash2", 8, 4, 64, inputs=(np.ones((8, 4)),) * 2 + (np.full((8, 4), np.nan),)), "values must be a finite"),
        (lambda: io.lower_bound(8, 0, 4), "d must be an integer"),
        (lambda: io.recommend(8, 64, 5), "no schedule fits 5 words .* 6 would do"),
        (lambda: io.recommend(8, 4, 64, heads=4, key_heads=3), "key_heads 3 does not divide the 4 query heads"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(call, words):
    with pytest.raises(InvalidArgument, match=words):
        call()


def test_the_statement_for_the_command_line():
    (entry,) = io.LIMITS
    numbers = entry["calculator"](n=1024, d=64, m=4096)
    assert numbers["flash2"] == io.count("flash2", 1024, 64, 4096).words >= numbers["lower_bound"]
    assert math.isinf(entry["calculator"](n=1024, d=64, m=200)["flash2"])
    for row in entry["measure"]():
        assert row["measured"] >= row["bound"]


def test_a_sweep_has_every_series_where_it_fits():
    rows = io.sweep(1024, 32)
    series = {row["series"] for row in rows}
    assert series == {"lower bound", "naive", "flash1", "flash2", "square", "square tuned"}
    by_size = {row["words"]: row["moved"] for row in rows if row["series"] == "lower bound"}
    assert all(row["moved"] >= by_size[row["words"]] for row in rows)


def test_the_picture_has_every_schedule_and_marks_both_sizes(tmp_path):
    io.write_chart(tmp_path / "io.svg", n=512, d=32, m=600)
    picture = (tmp_path / "io.svg").read_text()
    for word in ("lower bound", "square tuned", "m = 600", "d² = 1,024"):
        assert word in picture
    with pytest.raises(InvalidArgument, match=r"must end with \.svg"):
        io.write_chart(tmp_path / "io.png")
