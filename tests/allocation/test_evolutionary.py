"""EvoPress: elitism, counting, reproducibility, resuming, and where it beats adding errors up."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from tersor.allocation import Problem, Unit, evopress, fill, lgreco, plain_fitness, uniform
from tersor.errors import CorruptFile, InvalidArgument, TersorError

QUICK = {"generations": 8, "offspring": 6, "stages": ((3, 8), (2, 16), (1, 64))}


class Noisy:
    """Additive error plus noise that depends on the minibatch, like a model measured on few tokens."""

    def __init__(self, problem: Problem, fail_at: int | None = None) -> None:
        self.problem, self.calls, self.sizes, self.fail_at = problem, [], [], fail_at

    def __call__(self, candidates, *, parent, tokens, seed):
        self.calls.append((tuple(candidates), parent, tokens, seed))
        self.sizes.append(len(candidates))
        if self.fail_at == len(self.calls):
            raise KeyboardInterrupt
        spread = 1 / math.sqrt(tokens)
        return [
            self.problem.error(candidate) + spread * np.random.default_rng([seed, *candidate]).normal() for candidate in candidates
        ]


@pytest.fixture
def problem(make_problem) -> Problem:
    return make_problem(7, units=20, levels=4, largest=1000)


@pytest.mark.parametrize("groups", ["none", "size"])
@pytest.mark.parametrize("seed", range(5))
def test_on_a_frozen_minibatch_the_parent_never_gets_worse(problem, groups, seed):
    found = evopress(problem, plain_fitness(problem.error), seed=seed, groups=groups, initial="random", generations=15, offspring=5)
    values = [row["fitness"] for row in found.history]
    assert values == sorted(values, reverse=True)
    assert found.fitness == values[-1] == found.error


@pytest.mark.parametrize("initial", ["uniform", "knapsack", "lgreco", None])
def test_never_worse_than_its_start_on_the_selection_data(problem, initial):
    found = evopress(problem, plain_fitness(problem.error), initial=initial, **QUICK)
    start = lgreco(problem) if initial in ("knapsack", "lgreco") else uniform(problem)
    assert found.error <= start.error


def test_in_the_last_stage_the_new_parent_is_never_above_the_old(problem):
    found = evopress(problem, Noisy(problem), **QUICK)
    assert all(row["fitness"] <= row["parent_fitness"] for row in found.history)


def test_evaluations_are_the_sum_of_the_stage_sizes(problem):
    fitness = Noisy(problem)
    found = evopress(problem, fitness, initial="random", initial_candidates=5, initial_tokens=32, **QUICK)
    first, per_generation = fitness.sizes[0], fitness.sizes[1:]
    assert first == 5
    assert per_generation == [6, 3, 2 + 1] * 8  # the parent joins in the last stage only
    assert found.evaluations == sum(fitness.sizes) == found.history[-1]["evaluations"]
    assert found.history[-1]["tokens"] == 5 * 32 + 8 * (6 * 8 + 3 * 16 + 3 * 64)


def test_the_parent_joins_the_last_stage_only_even_if_survivors_are_one_before(problem):
    fitness = Noisy(problem)
    evopress(problem, fitness, initial="knapsack", generations=1, offspring=4, stages=((1, 8), (1, 8), (1, 8)))
    assert fitness.sizes == [4, 1, 2]


def test_every_stage_has_a_fresh_minibatch_shared_by_all_its_candidates(problem):
    fitness = Noisy(problem)
    evopress(problem, fitness, initial="knapsack", **QUICK)
    seeds = [seed for *_, seed in fitness.calls]
    assert len(set(seeds)) == len(seeds)
    assert [tokens for *_, tokens, _ in fitness.calls[:3]] == [8, 16, 64]


def test_candidates_are_feasible_distinct_and_not_the_parent(problem):
    fitness = Noisy(problem)
    evopress(problem, fitness, initial="knapsack", **QUICK)
    for candidates, parent, tokens, _ in fitness.calls:
        assert len(set(candidates)) == len(candidates)
        assert all(problem.check(candidate) == candidate for candidate in candidates)
        assert (parent in candidates) == (tokens == 64)


def test_fused_units_always_move_together(make_problem):
    problem = make_problem(3, units=12, fused=True)
    fitness = Noisy(problem)
    found = evopress(problem, fitness, groups="none", **QUICK)
    assert problem.feasible(found.choices)
    assert all(problem.feasible(candidate) for candidates, *_ in fitness.calls for candidate in candidates)


@pytest.mark.parametrize("groups", ["none", "size", "name"])
def test_same_seed_same_result_and_other_seeds_differ(problem, groups):
    options = {**QUICK, "groups": groups, "initial": "random"}
    runs = [evopress(problem, Noisy(problem), seed=seed, **options) for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0].choices != runs[2].choices


def test_values_that_are_not_finite_sort_last(problem):
    start = lgreco(problem).choices

    def broken(candidates, *, parent, tokens, seed):
        return [problem.error(c) if c == start or c[0] == start[0] else math.nan for c in candidates]

    found = evopress(problem, broken, initial=start, **QUICK)
    assert found.choices[0] == start[0]
    assert math.isfinite(found.fitness)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_if_everything_is_broken_the_parent_stays(problem, value, tmp_path):
    start = uniform(problem).choices
    found = evopress(problem, plain_fitness(lambda _: value), initial=start, state_path=tmp_path / "s.json", **QUICK)
    assert found.choices == start
    assert found.fitness == math.inf
    json.dumps(found.to_json(), allow_nan=False)
    json.loads((tmp_path / "s.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} in the state"))


def test_killed_at_any_evaluation_it_resumes_to_the_same_result(problem, tmp_path):
    whole = Noisy(problem)
    options = {**QUICK, "initial": "random", "initial_candidates": 4, "seed": 3}
    undisturbed = evopress(problem, whole, state_path=tmp_path / "whole.json", **options)
    for call in range(1, len(whole.calls) + 1):
        path = tmp_path / f"{call}.json"
        with pytest.raises(KeyboardInterrupt):
            evopress(problem, Noisy(problem, fail_at=call), state_path=path, **options)
        assert evopress(problem, Noisy(problem), state_path=path, **options) == undisturbed
        assert path.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert sorted(tmp_path.glob(".*.tmp")) == []


def test_killed_in_every_generation_in_turn_it_ends_the_same(problem, tmp_path):
    options = {**QUICK, "initial": "random", "seed": 3}
    undisturbed = evopress(problem, Noisy(problem), **options)
    path = tmp_path / "state.json"
    for _ in range(QUICK["generations"]):
        with pytest.raises(KeyboardInterrupt):
            evopress(problem, Noisy(problem), state_path=path, progress=interrupt, **options)
    assert evopress(problem, Noisy(problem), state_path=path, **options) == undisturbed


def interrupt(generation: int, fitness: float) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_the_last_state_whole(problem, tmp_path, monkeypatch, failing):
    path = tmp_path / "state.json"
    undisturbed = evopress(problem, Noisy(problem), initial="uniform", **QUICK)
    evopress(problem, Noisy(problem), initial="uniform", state_path=path, **{**QUICK, "generations": 3})
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[failing], no_space)
        with pytest.raises(TersorError, match=r"cannot write .*state.json: No space left"):
            evopress(problem, Noisy(problem), initial="uniform", state_path=path, **QUICK)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]
    assert evopress(problem, Noisy(problem), initial="uniform", state_path=path, **QUICK) == undisturbed


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_state_in_a_missing_folder_is_refused_in_one_sentence(problem, tmp_path):
    with pytest.raises(TersorError, match="No such file or directory"):
        evopress(problem, Noisy(problem), state_path=tmp_path / "missing" / "state.json", **QUICK)


def test_numpy_costs_can_be_stored(tmp_path):
    units = tuple(Unit(str(i), tuple(np.array([1, 2])), tuple(np.array([1.0, 0.5]))) for i in range(4))
    found = evopress(Problem(units, np.int64(6)), plain_fitness(np.sum), seed=np.int64(3), state_path=tmp_path / "s.json", **QUICK)
    json.dumps(found.to_json())


def test_more_generations_continue_a_finished_search(problem, tmp_path):
    path = tmp_path / "state.json"
    options = {"offspring": 4, "stages": ((1, 8),), "initial": "uniform"}
    evopress(problem, Noisy(problem), generations=3, state_path=path, **options)
    longer = evopress(problem, Noisy(problem), generations=7, state_path=path, **options)
    assert longer == evopress(problem, Noisy(problem), generations=7, **options)
    with pytest.raises(InvalidArgument, match="7 generations, more than the 5 asked for"):
        evopress(problem, Noisy(problem), generations=5, state_path=path, **options)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        pytest.param({"seed": 1}, "made with seed=0, not 1", id="seed"),
        pytest.param({"offspring": 7}, "made with offspring=6, not 7", id="offspring"),
        pytest.param({"groups": "size"}, "made with groups='none', not 'size'", id="groups"),
        pytest.param({"stages": ((1, 8),)}, "made with stages=", id="stages"),
        pytest.param({"initial": "random"}, "made with initial=", id="initial"),
    ],
)
def test_a_state_of_other_settings_is_refused(problem, tmp_path, change, sentence):
    path = tmp_path / "state.json"
    evopress(problem, Noisy(problem), state_path=path, **QUICK)
    before = path.read_bytes()
    with pytest.raises(InvalidArgument, match=sentence):
        evopress(problem, Noisy(problem), state_path=path, **{**QUICK, **change})
    assert path.read_bytes() == before


def test_a_state_of_another_problem_is_refused(problem, tmp_path):
    path = tmp_path / "state.json"
    evopress(problem, Noisy(problem), state_path=path, **QUICK)
    with pytest.raises(InvalidArgument, match="made for another problem"):
        evopress(Problem(problem.units, problem.budget + 1), Noisy(problem), state_path=path, **QUICK)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda text: text[: len(text) // 2], id="truncated"),
        pytest.param(lambda text: "[]", id="not-an-object"),
        pytest.param(lambda text: text.replace('"format": 1', '"format": 99'), id="format"),
        pytest.param(lambda text: json.dumps(json.loads(text) | {"parent": [99] * 20}), id="parent"),
        pytest.param(lambda text: json.dumps(json.loads(text) | {"generation": 3}), id="generation"),
        pytest.param(lambda text: json.dumps(json.loads(text) | {"surprise": 3}), id="unknown-field"),
    ],
)
def test_a_damaged_state_is_refused(problem, tmp_path, damage):
    path = tmp_path / "state.json"
    evopress(problem, Noisy(problem), state_path=path, **QUICK)
    path.write_text(damage(path.read_text()))
    with pytest.raises(CorruptFile, match="delete it to start again"):
        evopress(problem, Noisy(problem), state_path=path, **QUICK)


def test_patience_ends_an_idle_search_and_so_does_its_resumption(problem, tmp_path):
    path = tmp_path / "state.json"
    best = lgreco(problem, exact=True).choices
    options = {**QUICK, "generations": 100, "initial": best, "patience": 4, "state_path": path}
    found = evopress(problem, plain_fitness(lambda c: float(c != best)), **options)
    assert len(found.history) == 4
    assert evopress(problem, plain_fitness(lambda c: float(c != best)), **options) == found


@pytest.mark.parametrize("groups", ["none", "size"])
def test_without_a_legal_move_it_stops_and_says_so(groups, tmp_path):
    problem = Problem(tuple(Unit(str(i), (3,), (0.0,)) for i in range(4)), 12)
    options = {"groups": groups, "generations": 50, "state_path": tmp_path / "state.json"}
    found = evopress(problem, plain_fitness(problem.error), **options)
    assert found.choices == (0, 0, 0, 0)
    assert [row["offspring"] for row in found.history] == [0]
    assert found.evaluations == 0
    assert found.fitness is None
    assert evopress(problem, plain_fitness(problem.error), **options) == found


def test_fewer_legal_moves_than_offspring_are_all_judged():
    problem = Problem(tuple(Unit(str(i), (0, 1), (1.0, 0.0)) for i in range(3)), 1)
    found = evopress(problem, plain_fitness(problem.error), generations=2, offspring=50, stages=((1, 1),), initial=(1, 0, 0))
    assert [row["offspring"] for row in found.history] == [2, 2]


def test_starts_uniform_where_that_uses_the_budget_and_does_not_judge_it():
    units = tuple(Unit(str(i), (2, 3, 4), (3.0, 2.0, 1.0), 1) for i in range(10))
    found = evopress(Problem(units, 30), plain_fitness(lambda c: 0.0), generations=0)
    assert found.choices == (1,) * 10
    assert found.evaluations == 0


def test_starts_from_the_best_of_random_and_filled_uniform_elsewhere():
    units = tuple(Unit(str(i), (2, 3, 4), (3.0, 2.0, 1.0), 1) for i in range(10))
    problem = Problem(units, 34)
    wanted = fill(problem, (1,) * 10)
    found = evopress(problem, plain_fitness(lambda c: float(c != wanted)), generations=0, initial_candidates=9)
    assert found.choices == wanted
    assert 2 <= found.evaluations <= 10
    assert problem.cost(found.choices) == 34


def test_progress_is_told_every_generation(problem):
    seen = []
    found = evopress(problem, Noisy(problem), progress=lambda generation, fitness: seen.append((generation, fitness)), **QUICK)
    assert seen == [(row["generation"], row["fitness"]) for row in found.history]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"generations": -1}, "generations must not be negative"),
        ({"offspring": 0}, "offspring must be at least 1"),
        ({"stages": ()}, "pairs"),
        ({"stages": (3, 5)}, "pairs"),
        ({"stages": ((2, 8),)}, "last leaves one survivor"),
        ({"stages": ((0, 8), (1, 8))}, "at least 1"),
        ({"stages": ((1, 0),)}, "at least 1"),
        ({"max_switches": 0}, "max_switches must be at least 1"),
        ({"initial_candidates": 0}, "initial_candidates must be at least 1"),
        ({"patience": 0}, "patience at least 1"),
        ({"seed": -1}, "seed must not be negative"),
        ({"groups": "shape"}, "groups must be"),
        ({"initial": "best"}, "initial must be"),
        ({"initial": (0, 0)}, "the initial choices: 2 given for 20 units"),
        ({"initial": (3,) * 20}, "the initial choices cost"),
    ],
)
def test_bad_options_are_refused(problem, options, sentence):
    with pytest.raises(InvalidArgument, match=sentence):
        evopress(problem, plain_fitness(problem.error), **{**QUICK, **options})


def test_a_stage_larger_than_the_text_is_refused_before_any_work(problem):
    fitness = Noisy(problem)
    fitness.available_tokens = 63
    with pytest.raises(InvalidArgument, match="asks for 64 tokens but the evaluator has 63"):
        evopress(problem, fitness, **QUICK)
    assert fitness.calls == []


def test_a_fitness_that_loses_candidates_is_refused(problem):
    with pytest.raises(InvalidArgument, match="returned 0 values for 16 candidates"):
        evopress(problem, lambda *_, **__: [], initial="random", **QUICK)


@pytest.mark.parametrize("initial", ["lgreco", "random"])
@pytest.mark.parametrize("seed", range(8))
def test_finds_the_optimum_that_the_knapsack_misses_where_errors_interact(seed, initial):
    """Some pairs of units amplify each other's damage: layer errors say nothing of that, whole candidates do."""
    rng = np.random.default_rng(seed)
    damage = rng.uniform(0.5, 2, (8, 1)) * np.array([2.0, 1.0, 0.5])
    pairs = np.triu(rng.exponential(size=(8, 8)) * (rng.random((8, 8)) < 0.3), 1)
    problem = Problem(tuple(Unit(str(i), (2, 3, 4), tuple(row)) for i, row in enumerate(damage.tolist())), 24)

    def true_error(choices):
        hurt = damage[np.arange(8), list(choices)]
        return float(hurt.sum() + hurt @ pairs @ hurt)

    optimum = min(true_error(choices) for choices in itertools.product(range(3), repeat=8) if sum(choices) <= 8)
    assert true_error(lgreco(problem, exact=True).choices) > 1.02 * optimum
    found = evopress(problem, plain_fitness(true_error), initial=initial, generations=40, offspring=12, seed=seed)
    assert true_error(found.choices) == pytest.approx(optimum)
