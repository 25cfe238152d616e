"""What the hashing of positions promises: even loads, independent draws, one memory for many matrices."""

from __future__ import annotations

import pytest
import torch

from tersor.errors import InvalidArgument
from tersor.weights import HashedWeight, distinct_nbytes
from tersor.weights.hashed import places_of


def loads(mapping: str, numel: int, size: int, seed: int, offset: int = 0) -> torch.Tensor:
    places, _ = places_of(torch.arange(1), numel, size, seed=seed, offset=offset, mapping=mapping)
    return torch.bincount(places.flatten(), minlength=size)


@pytest.mark.parametrize(("numel", "size"), [(1000, 1000), (1000, 7), (999, 100), (5, 100), (1024, 1000), (17, 1)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_folding_loads_every_value_alike(numel: int, size: int, seed: int):
    used = loads("fold", numel, size, seed)
    assert used.sum() == numel
    assert used.min() >= numel // size
    # A last run that is not whole is one more use of some.
    assert used.max() <= -(-numel // size)


@pytest.mark.parametrize("offset", [1, 37, 250])
def test_folding_goes_on_from_matrix_to_matrix(offset: int):
    size, numel = 100, 400 - offset
    first, second = loads("fold", offset, size, 3), loads("fold", numel, size, 3, offset)
    assert torch.equal(first + second, loads("fold", 400, size, 3))
    assert torch.equal(first + second, torch.full((size,), 4))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_hashing_loads_values_like_balls_thrown_into_bins(seed: int):
    used = loads("hash", 20_000, 1000, seed).double()
    assert used.max() > 20
    # The variance of a bin is 20 * (1 - 1/1000); its estimate over 1000 bins is within 4 sigma = 18 %.
    assert abs(used.var() / 19.98 - 1) < 0.18


def test_signs_are_fair_and_independent_of_places():
    places, signs = places_of(torch.arange(100), 1000, 2, seed=4, offset=0, mapping="hash")
    for mean in (signs.mean(), (signs * (2.0 * places - 1)).mean(), (signs[:, 1:] * signs[:, :-1]).mean(), (signs[1:] * signs[:-1]).mean()):
        assert abs(mean) < 4 / 100_000**0.5 * 1.1


def test_tiles_are_contiguous_runs():
    places, _ = places_of(torch.arange(6), 10, 64, seed=1, offset=0, mapping="tile", tile=(2, 5))
    for row in (0, 2, 4):
        for column in (0, 5):
            run = torch.cat([places[row, column : column + 5], places[row + 1, column : column + 5]])
            assert torch.equal(run - run[0], torch.arange(10))
    assert places.min() >= 0
    assert places.max() < 64


def test_other_seeds_give_other_matrices():
    memory = torch.randn(50, generator=torch.Generator().manual_seed(0))
    found = [HashedWeight(memory, (20, 20), seed=seed, mapping="hash").dense() for seed in (0, 1, 2**62 - 1)]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_a_matrix_of_several_blocks_is_the_same_as_row_by_row():
    memory = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    weight = HashedWeight(memory, (1100, 1000), seed=7)
    rows = torch.tensor([0, 1047, 1048, 1099])
    assert torch.equal(weight.dense()[rows], weight.rows(rows))


def test_one_memory_counts_once():
    memory = torch.zeros(100)
    weights = [HashedWeight(memory, (30, 10), offset=300 * index) for index in range(3)]
    assert distinct_nbytes(weights) == 4 * 100 + 3 * (2 * 8 + 4)
    assert sum(weight.nbytes for weight in weights) == 3 * (4 * 100 + 20)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"memory": torch.zeros(3, 3)}, "a memory is a vector"),
        ({"memory": torch.tensor([torch.nan])}, "NaN or Inf"),
        ({"mapping": "nearest"}, "mapping must be one of"),
        ({"mapping": "tile"}, "needs a tile"),
        ({"tile": (2, 2)}, "takes no tile"),
        ({"mapping": "tile", "tile": (4, 4)}, "does not fit into a memory of 10"),
        ({"seed": -1}, "at least 0"),
    ],
    ids=["matrix", "nan", "mapping", "no-tile", "tile", "large-tile", "seed"],
)
def test_bad_input_is_one_sentence(options: dict, words: str):
    with pytest.raises(InvalidArgument, match=words):
        HashedWeight(**{"memory": torch.zeros(10), "shape": (4, 4), **options})
