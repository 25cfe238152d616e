"""Weights that are tuned: what is finished is what was trained, and no step changes more than it may."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.finetuning.discrete import DiscreteWeight, discrete, move
from tersor.layerwise import LayerStats, additive_codebooks, awq, gptq, magnitude, rtn, sparsegpt
from tersor.weights import CompressedWeight, LowRankWeight

OUT, IN = 24, 32


def matrix(seed: int) -> Tensor:
    return torch.randn(OUT, IN, generator=torch.Generator().manual_seed(seed))


def stats(seed: int) -> LayerStats:
    random = torch.Generator().manual_seed(100 + seed)
    return LayerStats.from_inputs(torch.randn(600, IN, generator=random) @ torch.randn(IN, IN, generator=random))


KINDS: dict[str, Callable[[int], CompressedWeight]] = {
    "one codebook": lambda seed: additive_codebooks(matrix(seed), stats(seed), bits=4, group_size=4),
    "two codebooks": lambda seed: additive_codebooks(matrix(seed), stats(seed), n_codebooks=2, bits=3, group_size=4),
    "symmetric grid": lambda seed: gptq(matrix(seed), stats(seed), bits=2, group_size=8, scheme="symmetric"),
    "asymmetric grid": lambda seed: gptq(matrix(seed), stats(seed), bits=3, group_size=16),
    "float minimum": lambda seed: rtn(matrix(seed), None, bits=2, group_size=8, scheme="float_min"),
    "scaled columns": lambda seed: awq(matrix(seed), stats(seed), bits=3, group_size=8),
    "one bit": lambda seed: rtn(matrix(seed), None, bits=1, group_size=8, scheme="symmetric"),
    "mask": lambda seed: magnitude(matrix(seed), None, sparsity=0.6),
    "2:4": lambda seed: sparsegpt(matrix(seed), stats(seed), keep_n=2, of_m=4),
}
EVERY = pytest.mark.parametrize("make", KINDS.values(), ids=list(KINDS))


@EVERY
def test_what_is_finished_untouched_is_what_was_given(make: Callable[[int], CompressedWeight]):
    weight = make(0)
    tuned = discrete(weight)
    assert torch.equal(tuned.dense(), weight.dense())
    finished = tuned.finished()
    assert torch.equal(finished.dense(), weight.dense())
    assert (finished.kind, finished.nbytes, finished.config) == (weight.kind, weight.nbytes, weight.config)


@EVERY
@pytest.mark.parametrize("seed", range(3))
def test_moved_and_trained_it_is_still_exactly_what_it_stands_for(make: Callable[[int], CompressedWeight], seed: int):
    weight = make(seed)
    tuned = discrete(weight)
    random = torch.Generator().manual_seed(seed)
    for value in tuned.values.values():
        value += 0.05 * value.abs().mean() * torch.randn(value.shape, generator=random)
    current = tuned.dense()
    reference = current + 0.3 * torch.randn(OUT, IN, generator=random)
    assert move(tuned, reference, current, 0.2, 0.5, False) > 0
    finished = tuned.finished()
    assert torch.equal(finished.dense(), tuned.dense())
    assert finished.nbytes == weight.nbytes


@EVERY
@pytest.mark.parametrize("trust", [0.001, 0.02, None])
@pytest.mark.parametrize("fraction", [0.01, 0.1, 1.0])
def test_a_step_keeps_its_limits_and_comes_nearer(make: Callable[[int], CompressedWeight], trust: float | None, fraction: float):
    for seed in range(3):
        tuned = discrete(make(seed))
        current = tuned.dense()
        reference = current + 0.5 * torch.randn(OUT, IN, generator=torch.Generator().manual_seed(50 + seed))
        before, largest = tuned.choices.clone(), _largest_change(tuned, reference, current)
        changed = move(tuned, reference, current, fraction, trust, False)
        after = tuned.dense()
        assert changed <= max(-(-fraction * tuned.n_tiles // 1), 1)
        assert _changed_tiles(tuned, before) == changed
        if trust is not None:
            assert float((after - current).norm()) <= trust * float(current.norm()) + largest
        assert float((after - reference).norm()) <= float((current - reference).norm()) + 1e-5


def _largest_change(tuned: DiscreteWeight, reference: Tensor, current: Tensor) -> float:
    moves = tuned.candidates(reference, current, tuned.n_tiles, False)
    return float(moves.squares.max().sqrt()) + 1e-5


def _changed_tiles(tuned: DiscreteWeight, before: Tensor) -> int:
    differing = tuned.choices != before
    # A swap of a mask changes two entries; a code of several codebooks is one tile.
    if before.dtype == torch.bool:
        return int(differing.sum()) // 2
    return int((differing.any(-1) if differing.ndim == 3 else differing).sum())


@EVERY
def test_towards_itself_nothing_moves_unless_it_is_forced(make: Callable[[int], CompressedWeight]):
    tuned = discrete(make(1))
    current = tuned.dense()
    assert move(tuned, current, current, 1.0, None, False) == 0
    if tuned.choices.dtype != torch.bool:
        assert move(tuned, current, current, 0.05, None, True) > 0


@pytest.mark.parametrize("name", ["symmetric grid", "asymmetric grid", "float minimum", "one bit"])
def test_without_limits_a_grid_ends_at_the_nearest_codes(name: str):
    tuned = discrete(KINDS[name](2))
    current = tuned.dense()
    reference = current + torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0))
    move(tuned, reference, current, 1.0, None, False)
    # Whatever else a single code could be, it is no nearer.
    reached, codes = (tuned.dense() - reference).abs(), tuned.choices.clone()
    for other in range(int(codes.max()) + 1):
        tuned.choices = torch.full_like(codes, other)
        assert ((tuned.dense() - reference).abs() >= reached - 1e-5).all()


@EVERY
def test_gradients_reach_every_value(make: Callable[[int], CompressedWeight]):
    tuned = discrete(make(0))
    values = [value.requires_grad_() for value in tuned.values.values()]
    for gradient, value in zip(torch.autograd.grad(tuned.dense().square().sum(), values), values, strict=True):
        assert gradient.shape == value.shape
        assert float(gradient.abs().sum()) > 0


def test_a_kind_without_codes_is_named():
    with pytest.raises(InvalidArgument, match="a lowrank weight cannot be tuned"):
        discrete(LowRankWeight(torch.ones(4, 1), torch.ones(1, 4)))
