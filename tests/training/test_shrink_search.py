"""The cost models count what is built, and the search finds what looking at everything finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tersor.errors import InvalidArgument
from tersor.training import (
    ROBERTA_SPACE,
    PublishedCost,
    RobertaCost,
    SearchSpace,
    build_student,
    exhaustive_search,
    fitness,
    genetic_search,
    random_architecture,
    random_search,
)  # fmt: skip
from tersor.training.student import logits

NAMES = ("num_attention_heads", "hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
SMALL = SearchSpace({
    "num_attention_heads": (1, 2, 4), "hidden_size": tuple(range(8, 72, 4)), "intermediate_size": tuple(range(16, 144, 16)),
    "num_hidden_layers": (1, 2, 3, 4), "vocab_size": (300, 500, 1000),
})  # fmt: skip


def shape(*values: int) -> dict[str, int]:
    return dict(zip(NAMES, values, strict=True))


def drawn(seed: int) -> dict[str, int]:
    """A random shape that can be built, multiples of nothing but the heads."""
    random = np.random.default_rng(seed)
    heads = int(random.choice([1, 2, 3, 5]))
    inner, layers = (int(random.integers(1, most)) for most in (150, 6))
    return shape(heads, heads * int(random.integers(1, 20)), inner, layers, int(random.integers(260, 3000)))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("pair", [False, True], ids=["single", "pair"])
def test_parameters_bytes_and_operations_are_those_of_the_model(seed: int, pair: bool):
    architecture = drawn(seed)
    cost = RobertaCost(length=5 + seed, classes=2 + seed % 3, pair=pair)
    student = build_student(architecture, cost).eval()
    student.config._attn_implementation = "eager"
    tensors = list(student.parameters())
    assert sum(tensor.numel() for tensor in tensors) == cost.parameters(architecture)
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors) == cost.weight_bytes(architecture)
    ids = torch.full((1, 2, cost.length) if pair else (1, cost.length), 7)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        logits(student, ids)
    assert counter.get_total_flops() == cost.flops(architecture)


@pytest.mark.parametrize(
    ("values", "megabytes", "billions"),
    [((12, 768, 3072, 12, 50265), 500.951048, 138.406299384), ((8, 96, 64, 12, 1000), 3.06164, 2.253176568)],
    ids=["CodeBERT", "3 MB"],
)
def test_the_published_counts(values: tuple[int, ...], megabytes: float, billions: float):
    cost, architecture = PublishedCost(), shape(*values)
    assert cost.nbytes(architecture) / 1e6 == pytest.approx(megabytes, rel=1e-12)
    assert cost.flops(architecture) / 1e9 == pytest.approx(billions, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_published_count_has_a_pooler_that_the_model_has_not(seed: int):
    architecture = drawn(seed)
    pooler = architecture["hidden_size"] ** 2 + architecture["hidden_size"]
    assert PublishedCost(positions=514).parameters(architecture) - RobertaCost(length=512).parameters(architecture) == pooler


@pytest.mark.parametrize(
    ("megabytes", "best", "optimum"),
    [(3, (8, 96, 64, 12, 1000), 2.191537), (25, (8, 320, 32, 12, 2000), 10.425339), (50, (8, 448, 160, 12, 1000), 18.530536)],
)
def test_the_published_space_has_a_known_optimum_that_every_seed_finds(megabytes: int, best: tuple[int, ...], optimum: float):
    bound = megabytes * 10**6
    whole = exhaustive_search(ROBERTA_SPACE, PublishedCost(), bound, hard=False)
    assert whole.architecture == shape(*best)
    assert whole.fitness == pytest.approx(optimum, abs=1e-6)
    for seed in range(5):
        found = genetic_search(ROBERTA_SPACE, PublishedCost(), bound, hard=False, seed=seed)
        assert found.fitness >= 0.98 * optimum
        assert found.evaluations < 0.05 * len(ROBERTA_SPACE)


def test_published_operators_alone_beat_random_search_and_stop_below_the_optimum():
    bound, seeds = 3_000_000, range(5)
    bred = [genetic_search(ROBERTA_SPACE, PublishedCost(), bound, hard=False, climbers=0, seed=seed) for seed in seeds]
    random = [random_search(ROBERTA_SPACE, PublishedCost(), bound, hard=False, seed=seed) for seed in seeds]
    assert np.mean([result.fitness for result in bred]) > np.mean([result.fitness for result in random])
    assert np.mean([result.fitness for result in bred]) < 0.98 * 2.191537


@pytest.mark.parametrize("seed", range(6))
def test_a_small_space_is_searched_nearly_to_the_optimum_of_a_plain_loop(seed: int):
    from itertools import product

    cost = RobertaCost(length=32)
    bound = int(np.random.default_rng(seed).integers(80_000, 600_000))
    every = [shape(*values) for values in product(*SMALL.choices.values()) if values[1] % values[0] == 0]
    fitting = [architecture for architecture in every if cost.nbytes(architecture) <= bound]
    best = max(cost.flops(architecture) / 1e9 - (bound - cost.nbytes(architecture)) / 1e6 for architecture in fitting)
    assert exhaustive_search(SMALL, cost, bound).fitness == pytest.approx(best, abs=1e-12)
    found = genetic_search(SMALL, cost, bound, seed=seed, generations=20).fitness
    assert best - 0.01 * bound / 1e6 <= found <= best + 1e-12


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("climbers", [0, 3])
def test_the_bound_is_kept_and_the_best_never_falls(seed: int, climbers: int):
    bound = 120_000 + 40_000 * seed
    found = genetic_search(SMALL, RobertaCost(length=32), bound, seed=seed, generations=15, climbers=climbers)
    assert found.nbytes <= bound
    assert found.architecture["hidden_size"] % found.architecture["num_attention_heads"] == 0
    assert all(found.architecture[name] in values for name, values in SMALL.choices.items())
    assert list(found.history) == sorted(found.history)
    assert found.history[-1] == found.fitness == fitness(RobertaCost(length=32), found.architecture, bound)


def test_same_seed_same_search_and_another_seed_another():
    first, again, other = (genetic_search(ROBERTA_SPACE, PublishedCost(), 10**7, climbers=0, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first.history != other.history


class Convolutions:
    """A family of another kind: depth and channels of 3 x 3 convolutions."""

    def parameters(self, architecture):
        return architecture["depth"] * 9 * architecture["channels"] ** 2

    def nbytes(self, architecture):
        return 4 * self.parameters(architecture)

    def flops(self, architecture):
        return 2 * 32 * 32 * self.parameters(architecture)


def test_the_cost_model_and_the_names_are_interchangeable():
    space = SearchSpace({"depth": tuple(range(1, 30)), "channels": tuple(range(4, 200))}, allowed=None)
    found = genetic_search(space, Convolutions(), 1_000_000, generations=10)
    # Two names are all that a climber changes at once.
    assert found.fitness == exhaustive_search(space, Convolutions(), 1_000_000).fitness
    assert found.nbytes == 36 * found.architecture["depth"] * found.architecture["channels"] ** 2 <= 1_000_000


def test_random_architectures_are_of_nearly_the_size_and_differ():
    cost = RobertaCost(length=32)
    found = [random_architecture(SMALL, cost, 300_000, seed=seed) for seed in range(6)]
    assert all(285_000 <= cost.nbytes(architecture) <= 300_000 for architecture in found)
    assert len({tuple(architecture.values()) for architecture in found}) > 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: genetic_search(SMALL, RobertaCost(32), 1000), "takes at most 1,000 bytes"),
        (lambda: exhaustive_search(SMALL, RobertaCost(32), 1000), "takes at most 1,000 bytes"),
        (lambda: genetic_search(SMALL, RobertaCost(32), 10**6, population=1), "population of 2"),
        (lambda: genetic_search(SMALL, RobertaCost(32), 10**6, crossover=1.5), "between 0 and 1"),
        (lambda: random_search(SMALL, RobertaCost(32), 10**6, evaluations=0), "1 evaluation"),
        (lambda: random_architecture(SMALL, RobertaCost(32), 10**9, attempts=50), "widen the tolerance"),
        (lambda: SearchSpace({"depth": ()}), "the choices of depth"),
        (lambda: SearchSpace({"depth": (1, 1)}), "different positive integers"),
        (lambda: SearchSpace({}), "at least one name"),
        (lambda: RobertaCost(length=0), "inputs of 1 token"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message: str):
    with pytest.raises(InvalidArgument, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
