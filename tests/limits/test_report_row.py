"""Certificates of a model in the report of a run."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from tersor.evaluation.report import render
from tersor.evaluation.run_report import ReportRow, RunReport
from tersor.limits.generalization import certify
from tersor.pipeline.reporting import _row


def measured(windows: int = 400, tokens: int = 20):
    nll = np.random.default_rng(0).uniform(2.0, 3.0, windows) * tokens
    return SimpleNamespace(
        perplexity=math.exp(2.5), perplexity_stderr=0.1, kl=None, kl_stderr=None, top1=None,
        window_nll=tuple(nll), window_tokens=(tokens,) * windows,
    )  # fmt: skip


def model(parameters: int):
    return SimpleNamespace(n_parameters=parameters, vocabulary=512)


def test_a_row_holds_what_the_windows_prove_and_what_they_prove_with_the_bytes():
    evaluation = measured()
    row = _row("original", model(50), 100, None, evaluation)
    losses = np.array(evaluation.window_nll) / 20
    assert row.certified == certify(losses, nbytes=100, vocabulary=512, trained_on=False).bound
    assert row.occam == certify(losses, nbytes=100, vocabulary=512).bound
    assert 2.5 < row.certified < row.occam < _row("original", model(5000), 10_000, None, evaluation).occam


def test_a_model_without_a_finite_perplexity_proves_nothing():
    row = _row("original", model(50), 100, None, SimpleNamespace(**{**vars(measured()), "perplexity": math.inf}))
    assert row.certified is None
    assert row.occam is None


def test_the_page_shows_them_where_there_are_any():
    report = RunReport("m", "2026-01-01", "c", {}, None, {"evaluation": "t"}, [ReportRow("original", 100, 16.0, 12.0)], [])
    assert "by its bytes" not in render(report)
    page = render(replace(report, rows=[ReportRow("original", 100, 16.0, 12.0, certified=2.718, occam=3.142)]))
    assert "by its bytes" in page
    assert "2.718" in page
    assert "3.142" in page
