"""The experiments on compressed text and on programs: what their rows say, on little data."""

from __future__ import annotations

import numpy as np

from tersor.coding.windows import EqualInfoTokenizer, NGramByteLM
from tersor.papers import equal_info, kolmogorov_test


def test_windows_that_lose_nothing_are_counted_as_such_and_the_others_not():
    random = np.random.default_rng(0)
    text = " ".join(random.choice(["the", "cat", "sat", "there", "then", "cats"], 3000)).encode()
    model = NGramByteLM(text[:6000], 4)
    wrong = {mode: equal_info._wrong(EqualInfoTokenizer(model, 16, mode=mode), text[6000:]) for mode in ("exact", "delay", "greedy")}
    assert wrong["exact"] == wrong["delay"] == 0 < wrong["greedy"] < 1


def test_no_level_of_the_search_is_worse_than_the_one_below_or_wrong(monkeypatch):
    monkeypatch.setattr(kolmogorov_test, "SEEDS", (5,))
    rows = list(kolmogorov_test._synthetic(8))
    levels = [row["rate"] for row in rows if row["method"].startswith("search")]
    assert len(levels) == 5
    assert levels == sorted(levels, reverse=True)
    assert {row["accuracy"] for row in rows if "accuracy" in row} == {1.0}
    assert levels[-1] > 0.5 * kolmogorov_test._rate(rows, "generating programs", 5)


def test_natural_data_is_there_in_equal_amounts(data_dir):
    found = dict(kolmogorov_test._modalities(2000))
    assert {name: len(data) for name, data in found.items()} == dict.fromkeys(("text", "audio, 16 bits", "audio, 8 bits", "dna"), 2000)
    assert set(found["dna"]) <= set(b"ACGT")
