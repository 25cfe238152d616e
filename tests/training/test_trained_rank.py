"""Trained rank pruning: truncations keep their energy, the nuclear term is a gradient of the norm, the last cut changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import training_cases as cases
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.errors import InvalidArgument, TersorError
from tersor.training import Compression, TrainedRankPruning, factor_model
from tersor.training.factored import matricised
from tersor.training.trained_rank import truncation

SCHEMES = ("channel", "spatial", "decouple")
EVERY = pytest.mark.parametrize("scheme", SCHEMES)


def _matrix(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) @ torch.diag(0.7 ** torch.arange(columns).double())


@pytest.mark.parametrize("shape", [(9, 9), (5, 12), (12, 5)])
@pytest.mark.parametrize("energy", [0.3, 0.9, 0.98, 0.9999])
def test_a_truncation_is_the_smallest_rank_with_its_energy(shape: tuple[int, int], energy: float) -> None:
    for seed in range(3):
        matrix = _matrix(*shape, seed)
        truncated, direction, rank = truncation(matrix, energy)
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        shares = s.square().cumsum(0) / s.square().sum()
        assert rank == int((shares < energy).sum()) + 1
        torch.testing.assert_close(truncated, (u[:, :rank] * s[:rank]) @ vh[:rank])
        torch.testing.assert_close(direction, u[:, :rank] @ vh[:rank])
        assert float((matrix - truncated).square().sum()) <= (1 - energy) * float(matrix.square().sum()) * (1 + 1e-9)
        # No other matrix of that rank is closer.
        for other in range(20):
            rival = truncated + 0.01 * _matrix(shape[0], rank, 100 + other) @ _matrix(rank, shape[1], 200 + other)
            rival = torch.linalg.svd(rival, full_matrices=False)
            rival_matrix = (rival.U[:, :rank] * rival.S[:rank]) @ rival.Vh[:rank]
            assert float((matrix - rival_matrix).norm()) >= float((matrix - truncated).norm()) - 1e-12


def test_ranks_rise_with_the_energy() -> None:
    matrix = _matrix(20, 16, 0)
    ranks = [truncation(matrix, energy)[2] for energy in torch.linspace(0.05, 1, 30).tolist()]
    assert ranks == sorted(ranks)
    assert (ranks[0], ranks[-1]) == (1, 16)


@pytest.mark.parametrize("energy", [0.5, 0.98, 1.0])
def test_degenerate_matrices_keep_rank_one(energy: float) -> None:
    for matrix in (torch.zeros(3, 4), torch.ones(3, 4), 1e-30 * torch.ones(4, 3)):
        truncated, direction, rank = truncation(matrix, min(energy, 0.98))
        torch.testing.assert_close(truncated.float(), matrix)
        assert rank == 1
        assert bool(direction.isfinite().all())
        # Directions that are only rounding have no part in the norm's gradient.
        assert float(truncation(matrix, energy)[1].norm()) <= 1 + 1e-6


def test_each_filter_of_a_stack_finds_its_own_rank() -> None:
    stack = torch.stack([torch.ones(4, 5).double(), _matrix(4, 5, 0), torch.eye(4, 5).double()])
    truncated, _, rank = truncation(stack, 0.95)
    singles = [truncation(matrix, 0.95) for matrix in stack]
    assert rank == max(single[2] for single in singles) == 4
    torch.testing.assert_close(truncated, torch.stack([single[0] for single in singles]))


@EVERY
def test_the_penalty_is_the_nuclear_norm_and_its_gradient(scheme: Any) -> None:
    model = cases.SmallNet()
    method = TrainedRankPruning(0.9, period=2, nuclear_weight=0.25, scheme=scheme)
    compression = Compression(model, [method])
    assert method.penalty() is None
    compression.after_step()
    assert method.penalty() is None
    compression.after_step()
    value = method.penalty()
    assert value is not None
    layers = [model.conv1, model.conv2, model.head]
    norms = [torch.linalg.svdvals(matricised(layer.weight.detach().double(), scheme)).sum() for layer in layers]
    torch.testing.assert_close(float(value.detach()), 0.25 * float(sum(norms)), rtol=1e-5, atol=0)
    value.backward()
    # A step along it takes the same off every singular value that is left, and touches no direction that was cut.
    for layer in layers:
        before = torch.linalg.svdvals(matricised(layer.weight.detach().double(), scheme))
        after = torch.linalg.svdvals(matricised((layer.weight - 0.1 * layer.weight.grad).detach().double(), scheme))
        expected = torch.where(before > 1e-5, before - 0.025, before)
        torch.testing.assert_close(after, expected, rtol=0, atol=1e-5)
    # One step later it is gone.
    compression.after_step()
    assert method.penalty() is None


def _trained(methods: Sequence[TrainedRankPruning], steps: int = 40, seed: int = 0) -> tuple[nn.Module, Compression | None]:
    model = cases.SmallNet(seed)
    compression = Compression(model, methods) if methods else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    if compression is not None:
        compression.attach(optimizer)
    pixels, labels = cases.batch()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(pixels), labels).backward()
        optimizer.step()
    return model, compression


@EVERY
def test_finalize_after_a_truncation_changes_nothing_but_the_layers(scheme: Any) -> None:
    model, compression = _trained([TrainedRankPruning(0.7, period=4, scheme=scheme, ignore=["conv1"])])
    assert compression is not None
    pixels = cases.batch()[0]
    model.eval()
    before, products = model(pixels), sum(parameter.numel() for parameter in model.parameters())
    smaller = compression.report()["trained_rank_pruning"]["smaller"]
    assert smaller
    compression.finalize()
    assert [name for name, layer in model.named_children() if isinstance(layer, nn.Sequential)] == smaller
    torch.testing.assert_close(model(pixels), before, rtol=1e-5, atol=1e-5)
    assert sum(parameter.numel() for parameter in model.parameters()) < products


def test_the_rank_grows_back_between_truncations() -> None:
    model, compression = _trained([TrainedRankPruning(0.7, period=8, targets=["conv2"])], steps=8)
    assert compression is not None
    rank = compression.report()["trained_rank_pruning"]["ranks"]["conv2"]

    def actual() -> int:
        return int(torch.linalg.matrix_rank(model.conv2.weight.detach().flatten(1).double(), rtol=1e-5))

    assert actual() == rank < 16
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pixels, labels = cases.batch()
    F.cross_entropy(model(pixels), labels).backward()
    optimizer.step()
    assert actual() > rank


def test_truncation_in_training_costs_less_than_after_it() -> None:
    losses: dict[str, list[float]] = {"trained": [], "afterwards": []}
    pixels, labels = cases.batch()
    for seed in range(3):
        model, compression = _trained([TrainedRankPruning(0.6, period=1, ignore=["conv1"])], steps=60, seed=seed)
        assert compression is not None
        ranks = compression.report()["trained_rank_pruning"]["ranks"]
        compression.finalize()
        plain, _ = _trained([], steps=60, seed=seed)
        factor_model(plain, {name: ranks[name] for name in ranks}, only_smaller=False)
        for key, net in (("trained", model), ("afterwards", plain)):
            losses[key].append(F.cross_entropy(net(pixels), labels).item())
    assert all(ours < theirs for ours, theirs in zip(losses["trained"], losses["afterwards"], strict=True))
    assert sum(losses["trained"]) < 0.8 * sum(losses["afterwards"])


def test_the_nuclear_term_lowers_the_stable_rank() -> None:
    def stable_rank(weight: float) -> float:
        total = 0.0
        for seed in range(3):
            model, _ = _trained([TrainedRankPruning(1.0, period=1, nuclear_weight=weight)], seed=seed)
            values = torch.linalg.svdvals(model.conv2.weight.detach().flatten(1))
            total += float(values.square().sum() / values[0].square())
        return total / 3

    assert stable_rank(0.03) < 0.9 * stable_rank(0.0)


def test_all_energy_and_no_weight_change_nothing() -> None:
    plain, _ = _trained([])
    model, compression = _trained([TrainedRankPruning(1.0, period=1, nuclear_weight=0.0)])
    assert compression is not None
    compression.finalize()
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), plain.parameters(), strict=True))


def test_a_training_that_ends_before_the_first_truncation_is_truncated_in_the_end() -> None:
    model, compression = _trained([TrainedRankPruning(0.6, period=100, ignore=["conv1"])], steps=3)
    assert compression is not None
    expected = truncation(model.conv2.weight.flatten(1), 0.6)[2]
    compression.finalize()
    assert model.conv2[0].out_channels == expected


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"energy": 0.0}, "energy must be a number above 0 and at most 1"),
        ({"energy": 1.1}, "energy"),
        ({"energy": float("nan")}, "energy"),
        ({"period": 0}, "period"),
        ({"nuclear_weight": -1.0}, "nuclear_weight"),
        ({"scheme": "rows"}, "scheme"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        TrainedRankPruning(**options)


@pytest.mark.parametrize(
    ("options", "named"), [({"targets": ["nothing"]}, "'nothing' names"), ({"targets": ["0"]}, "groups"), ({"ignore": ["1"]}, "no plain")]
)
def test_what_does_not_fit_the_model_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        Compression(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Linear(4, 4)), [TrainedRankPruning(**options)])


def test_a_weight_that_is_not_finite_is_refused_by_name() -> None:
    model = cases.SmallNet()
    compression = Compression(model, [TrainedRankPruning(period=1)])
    model.conv2.weight.data[0, 0, 0, 0] = float("inf")
    with pytest.raises(TersorError, match=r"conv2\.weight is not finite after step 1"):
        compression.after_step()
