from __future__ import annotations

import pytest
import torch

from tersor.errors import InvalidArgument
from tersor.evaluation.divergence import by_window, score_windows, token_scores
from tersor.evaluation.sequences import make_windows

from .conftest import llama, log_probabilities, tokens


def direct(model, reference, sequences):
    """Everything that is measured, in float64 and without any batching."""
    rows = []
    for sequence in sequences:
        q, p, target = log_probabilities(model, sequence), log_probabilities(reference, sequence), sequence[1:, None]
        rows.append((-q.gather(1, target)[:, 0], -p.gather(1, target)[:, 0], (p.exp() * (p - q)).sum(-1), q.argmax(-1), p.argmax(-1)))
    return [torch.cat(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_a_direct_float64_computation(seed: int):
    model, reference, row = llama(seed=seed), llama(seed=seed + 10), tokens(16 * 12, seed=seed)
    windows = make_windows(model, row, context=16)
    scores = score_windows(model, windows, reference)
    nll, reference_nll, kl, best, reference_best = direct(model, reference, windows.sequences)
    target = torch.cat([sequence[1:] for sequence in windows.sequences])
    torch.testing.assert_close(scores.nll, nll, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores.reference_nll, reference_nll, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores.kl, kl, rtol=1e-4, atol=1e-6)
    assert torch.equal(scores.agree, best == reference_best)
    assert torch.equal(scores.right, best == target)
    assert torch.equal(scores.reference_right, reference_best == target)


def test_a_model_does_not_diverge_from_itself():
    model = llama()
    scores = score_windows(model, make_windows(model, tokens(64), context=16), model)
    assert float(scores.kl.abs().max()) == 0
    assert bool(scores.agree.all())
    assert torch.equal(scores.nll, scores.reference_nll)


@pytest.mark.parametrize("positions", [1, 7, 64, 1000])
def test_chunks_change_nothing(positions: int):
    generator = torch.Generator().manual_seed(0)
    logits, reference = (torch.randn(50, 32, generator=generator) * 3 for _ in range(2))
    target = tokens(50)
    whole, parts = token_scores(logits, target, reference), token_scores(logits, target, reference, chunk_bytes=positions * 4 * 32)
    for name in ("nll", "kl", "agree", "right", "reference_nll", "reference_right"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=0, atol=1e-7)


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch):
    model, reference = llama(), llama(seed=1)
    windows = make_windows(model, [*tokens(64).reshape(4, 16), tokens(9), *tokens(64, seed=2).reshape(4, 16)], context=16)
    together = score_windows(model, windows, reference)
    monkeypatch.setattr("tersor.evaluation.logits.LOGIT_BYTES", 1)
    alone = score_windows(model, windows, reference)
    torch.testing.assert_close(alone.kl, together.kl, rtol=1e-4, atol=1e-6)
    assert by_window(alone.nll, windows).shape == (9,)


def test_what_both_models_rule_out_costs_nothing():
    logits = torch.tensor([[0.0, 1.0, -torch.inf]])
    scores = token_scores(logits, torch.tensor([0]), torch.tensor([[1.0, 0.0, -torch.inf]]))
    p, q = torch.tensor([1.0, 0.0]).log_softmax(0), torch.tensor([0.0, 1.0]).log_softmax(0)
    assert float(scores.kl) == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-6)


def test_what_only_the_model_rules_out_costs_everything():
    scores = token_scores(torch.tensor([[0.0, -torch.inf]]), torch.tensor([0]), torch.tensor([[0.0, 0.0]]))
    assert float(scores.kl) == torch.inf


def test_different_vocabularies_are_refused():
    model = llama()
    with pytest.raises(InvalidArgument, match="predicts 32 tokens and the reference tiny 40"):
        score_windows(model, make_windows(model, tokens(32), context=16), llama(vocabulary=40))


def test_a_model_that_gives_nan_is_named():
    model = llama(name="broken")
    with torch.no_grad():
        model.module.model.norm.weight[0] = torch.nan
    with pytest.raises(InvalidArgument, match="broken gives NaN"):
        score_windows(model, make_windows(model, tokens(32), context=16))


def test_progress_counts_windows():
    class Counting:
        total, done = 0, 0

        def start(self, stage: str, total: int) -> None:
            self.total = total

        def advance(self, steps: int = 1, note: str = "") -> None:
            self.done += steps

    model, progress = llama(), Counting()
    score_windows(model, make_windows(model, tokens(70), context=16), progress=progress)
    assert progress.total == progress.done == 4
