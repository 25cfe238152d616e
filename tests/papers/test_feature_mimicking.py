"""How the feature-mimicking experiment chooses and counts."""

from __future__ import annotations

import pytest

from tersor.papers.ctr import build
from tersor.papers.feature_mimicking import FEATURES, LONGER, TUNED, WEIGHTS, Ranks, Trial, _equally_large, _gains, _size

SIZES = (40, 7, 90)


@pytest.mark.parametrize("kind", ["deepfm", "nfm"])
@pytest.mark.parametrize("budget", [700, 3000, 20_000])
def test_rival_from_scratch_is_the_widest_that_fits(kind, budget):
    original = build(kind, SIZES, seed=0)
    rival = _equally_large(original, Ranks(2, 8), budget, seed=0)
    width = rival.tower.out.in_features
    assert rival.embedding.table.embedding_dim == 2
    assert _size(rival) <= budget
    if width < 128:
        assert _size(build(kind, SIZES, seed=0, dim=2, hidden=(width + 1,) * 3)) > budget


def trial(method: str, validation: float, auc: float) -> Trial:
    return Trial("log", "deepfm", method, validation, auc, 0.5, 1, 1, 1.0)


def test_the_validation_part_decides_about_the_activation():
    trials = [
        trial(FEATURES, 0.7, 0.70), trial(WEIGHTS, 0.7, 0.68), trial(LONGER, 0.7, 0.75),
        trial(TUNED[0], 0.80, 0.76), trial(TUNED[1], 0.70, 0.90),
    ]  # fmt: skip
    by_weights, by_original = _gains(trials)
    assert by_weights == pytest.approx(0.02)
    assert by_original == pytest.approx(0.01)
