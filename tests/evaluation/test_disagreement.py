from __future__ import annotations

from dataclasses import dataclass

import pytest

from tersor.evaluation import disagreement


@dataclass
class Row:
    name: str
    layer_error: float | None
    kl: float | None
    kl_stderr: float | None = None


def test_one_order_is_no_news():
    assert disagreement([Row("a", 1, 0.1), Row("b", 2, 0.2), Row("c", 3, 0.3)]) == []


def test_every_inverted_pair_is_named():
    found = disagreement([Row("a", 1, 0.3), Row("b", 2, 0.2), Row("c", 3, 0.25)])
    assert [(item.favoured, item.better) for item in found] == [("a", "b"), ("a", "c")]
    assert "a has the lower sum of layer errors (1 against 2 of b) but the higher divergence (0.3 against 0.2)" in str(found[0])


def test_ties_and_unmeasured_rows_are_left_out():
    assert disagreement([Row("a", 1, 0.3), Row("b", 1, 0.2), Row("c", None, 0.1), Row("d", 0.5, None)]) == []


@pytest.mark.parametrize(("stderr", "certain"), [(0.001, True), (0.1, False), (None, None)])
def test_noise_is_called_noise(stderr: float | None, certain: bool | None):
    found = disagreement([Row("a", 2, 0.2, stderr), Row("b", 1, 0.3, stderr)])[0]
    assert (found.favoured, found.certain) == ("b", certain)
    assert ("within the noise" in str(found)) == (certain is False)
