"""How the LLM-KICK experiment reads its table."""

from __future__ import annotations

import pytest
import torch

from tersor.evaluation.kick import KickRow, bootstrap
from tersor.papers.llm_kick import CONTROL, PRUNED, _margin, _orderings, _rows


def line(model: str, right: int, perplexity: float, task: str = "factoid") -> KickRow:
    """A model that answers the first ``right`` of 100 questions, of which the original answers 50."""
    own, dense = (torch.arange(100) < count for count in (right, 50))
    paired = bootstrap(own.double(), dense.double(), torch.ones(100))
    return KickRow(model, task, "hit", 100, paired, max(50 - right, 0) / 100, 0.0, 0.5, 0.1, 0.5, perplexity)


def lines(pruned: int, perplexity: float) -> list[KickRow]:
    books = [line(PRUNED, 40, perplexity, task) for task in ("open book", "closed book")]
    return [line("original", 50, 20.0), line(PRUNED, pruned, perplexity), *books, line(CONTROL, 50, 20.1)]


def test_facts_must_fall_by_more_than_perplexity_grows():
    margin, notes = _margin(lines(20, 21.0), 20.0)
    # 60 % of the facts are lost and the interval is narrower than the gap to 5 %.
    assert 0.3 < margin < 0.55
    assert any("perplexity +5.0%, facts -60.0%" in note for note in notes)
    assert _margin(lines(50, 21.0), 20.0)[0] == pytest.approx(-0.05)
    assert _margin(lines(20, 60.0), 20.0)[0] < 0


def test_a_model_that_knows_nothing_is_not_judged():
    nothing = bootstrap(torch.zeros(10), torch.zeros(10), torch.ones(10))
    unknown = [KickRow(one.model, one.task, "hit", 10, nothing, 0, 0, 1, 0, 1, one.perplexity) for one in lines(20, 21.0)]
    margin, notes = _margin(unknown, 20.0)
    assert margin < 0
    assert "not judged" in notes[0]


def test_the_table_names_who_is_better_at_a_higher_perplexity():
    two = [line("flattered", 10, 20.0), line("better", 45, 25.0)]
    sizes = {name: {"of_16_bit": 0.5, "text_kl": 0.1} for name in ("flattered", "better")}
    first, second = _rows(two, sizes)
    assert first["better_at_higher_perplexity"] == "better"
    assert second["better_at_higher_perplexity"] is None


def test_the_order_of_methods_is_read_from_the_numbers():
    def notes(*values: float) -> list[str]:
        names = ("sparsegpt 50 %", "wanda 50 %", "magnitude 50 %", CONTROL)
        return list(_orderings({name: {"text_kl": value} for name, value in zip(names, values, strict=True)}))

    assert ["does not hold" in note for note in notes(0.1, 0.2, 0.9, 0.001)] == [False, False]
    assert ["does not hold" in note for note in notes(0.3, 0.2, 0.9, 0.02)] == [True, True]
