"""Additive codebooks: each step is the best of its kind on small cases, and the whole beats the even grid at equal bytes."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from tersor.errors import InvalidArgument
from tersor.kernels.codebook import lookup
from tersor.layerwise import LayerStats, _codebooks, additive_codebooks, gptq, layer_error


def fit(seed: int, rows: int = 3, groups: int = 2, size: int = 2, count: int = 1, entries: int = 4) -> _codebooks.Fit:
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(40, groups * size, generator=random) @ torch.randn(groups * size, groups * size, generator=random)
    return _codebooks.Fit(
        torch.randn(rows, groups * size, generator=random), (inputs.T @ inputs / 40).contiguous(),
        torch.randint(0, entries, (rows, groups, count), generator=random, dtype=torch.uint8),
        torch.randn(count, entries, size, generator=random), torch.rand(rows, generator=random) + 0.5,
    )  # fmt: skip


def row_losses(problem: _codebooks.Fit, codes: torch.Tensor) -> torch.Tensor:
    error = (problem.target - lookup(codes, problem.codebooks, problem.scale)).double()
    return ((error @ problem.hessian.double()) * error).sum(1)


@pytest.mark.parametrize("beam", [1, 2, 5])
@pytest.mark.parametrize("seed", range(6))
def test_a_sweep_ends_where_no_change_was_refused_and_never_loses(seed: int, beam: int):
    problem = fit(seed, rows=8, groups=4, count=2)
    before = row_losses(problem, problem.codes)
    for _ in range(20):
        if not _codebooks.fit_codes(problem, beam):
            break
        after = row_losses(problem, problem.codes)
        assert (after <= before + 1e-5).all()
        before = after
    # At its end no single replacement lowers the loss of any row.
    for group, m, code in product(range(4), range(2), range(4)):
        other = problem.codes.clone()
        other[:, group, m] = code
        assert (row_losses(problem, other) >= before - 1e-4).all()


@pytest.mark.parametrize("seed", range(8))
def test_a_beam_as_wide_as_the_choices_finds_the_best_codes_of_all(seed: int):
    problem = fit(seed, entries=4, groups=3)
    every = torch.tensor(list(product(range(4), repeat=3)), dtype=torch.uint8).unsqueeze(-1)
    best = torch.stack([row_losses(problem, choice.expand(3, 3, 1)) for choice in every]).min(0).values
    _codebooks.fit_codes(problem, 64)
    torch.testing.assert_close(row_losses(problem, problem.codes), best, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_the_codebooks_are_the_least_squares_solution(seed: int):
    problem = fit(seed, rows=12, groups=3, count=1)
    problem.scale = torch.ones(12)
    root = torch.linalg.cholesky(problem.hessian.double())
    columns = []
    for index in range(problem.codebooks.numel()):
        unit = torch.zeros(problem.codebooks.numel())
        unit[index] = 1
        columns.append((lookup(problem.codes, unit.view_as(problem.codebooks), problem.scale).double() @ root).flatten())
    solved = torch.linalg.lstsq(torch.stack(columns, 1), (problem.target.double() @ root).flatten().unsqueeze(1))
    _codebooks.fit_codebooks(problem, 200)
    # The scales are fitted afterwards, so the loss may only be lower still.
    residual = torch.stack(columns, 1) @ solved.solution - (problem.target.double() @ root).flatten().unsqueeze(1)
    assert problem.loss <= float(residual.square().sum()) * (1 + 1e-4)


def test_kmeans_recovers_well_separated_centres():
    random = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0]])
    points = centres.repeat_interleave(100, 0) + 0.01 * torch.randn(400, 2, generator=random)
    every = (_codebooks.kmeans(points, 4, torch.Generator().manual_seed(seed)) for seed in range(5))
    found = min(every, key=lambda means: float(torch.cdist(points, means).amin(1).sum()))
    assert float(torch.cdist(centres, found).amin(1).max()) < 0.01


@pytest.mark.parametrize("seed", range(3))
def test_below_the_even_grid_at_equal_bytes(make_layer: Any, seed: int):
    problem = make_layer(seed, 256, 128)
    compressed = additive_codebooks(problem.weight, problem.stats, n_codebooks=1, bits=8, group_size=4)
    # The grid is given more bytes: two bits and a scale for every 16 weights.
    even = gptq(problem.weight, problem.stats, bits=2, group_size=16)
    assert compressed.nbytes <= even.nbytes * 1.05
    ours, theirs = (layer_error(problem.weight, made, problem.held_out) for made in (compressed, even))
    assert ours < theirs


def test_rounds_lower_the_error_and_a_beam_lowers_it_further(make_layer: Any):
    problem = make_layer(0, 96, 64)
    options = {"n_codebooks": 2, "bits": 4, "group_size": 4, "tolerance": 0.0}
    errors = [additive_codebooks(problem.weight, problem.stats, rounds=rounds, **options).report["error"] for rounds in (0, 1, 4)]
    assert errors[2] < errors[1] < errors[0] < additive_codebooks(problem.weight, problem.stats, rounds=0, **options).report["start_error"]
    assert additive_codebooks(problem.weight, problem.stats, rounds=4, beam=4, **options).report["error"] < errors[2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"group_size": 7}, "group_size 7 does not divide"), ({"bits": 9}, "bits must be an integer"),
        ({"n_codebooks": 0}, "n_codebooks"), ({"beam": 0}, "beam"), ({"tolerance": 1.0}, "tolerance"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_out_of_range_are_named(options: dict[str, Any], said: str):
    weight = torch.ones(8, 16)
    with pytest.raises(InvalidArgument, match=said):
        additive_codebooks(weight, LayerStats.identity(16), **options)


def test_without_statistics_it_says_what_is_missing():
    with pytest.raises(InvalidArgument, match="needs the statistics"):
        additive_codebooks(torch.ones(8, 16), None)
