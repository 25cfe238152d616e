"""Dropping blocks and their parts through the same search."""

from __future__ import annotations

import pytest

from tersor.allocation import ALLOCATORS, DROP, KEEP, depth_problem, dropped, evopress, plain_fitness
from tersor.errors import InvalidArgument

PARTS = [f"{block}.{part}" for block in range(6) for part in ("attention", "mlp")]
BLOCKS = [name.split(".")[0] for name in PARTS]


@pytest.mark.parametrize("name", [name for name in ALLOCATORS if name != "uniform"])
@pytest.mark.parametrize("drop", [0, 1, 5, 11])
def test_drops_exactly_as_many_as_asked(name, drop):
    problem = depth_problem(12, drop, scores=[1 + i / 10 for i in range(12)])
    short = {"evopress": {"generations": 3, "stages": ((1, 1),)}, "sparse": {"evaluations": 4}}
    found = ALLOCATORS[name](problem, fitness=plain_fitness(problem.error), **short.get(name, {}))
    assert len(dropped(problem, found.choices)) == drop


def test_sub_blocks_and_whole_blocks():
    scores = [float(i) for i in range(12)]
    loose = depth_problem(PARTS, 3, scores=scores)
    assert dropped(loose, ALLOCATORS["knapsack"](loose).choices) == PARTS[:3]
    whole = depth_problem(PARTS, 4, scores=scores, blocks=BLOCKS)
    found = evopress(whole, plain_fitness(whole.error), generations=30, offspring=6, stages=((1, 1),))
    assert dropped(whole, found.choices) == PARTS[:4]


@pytest.mark.parametrize("blocks", [None, BLOCKS], ids=["parts", "blocks"])
def test_protected_units_are_never_offered_for_dropping(blocks):
    problem = depth_problem(PARTS, 4, blocks=blocks, protected=["0.mlp"])
    seen = []

    def watch(choices):
        seen.append(dropped(problem, choices))
        return 0.0

    evopress(problem, plain_fitness(watch), generations=20, offspring=6, stages=((1, 1),), initial="random")
    assert all("0.mlp" not in names and len(names) == 4 for names in seen)
    assert any("0.attention" in names for names in seen) == (blocks is None)


def test_attention_and_mlp_counts_stay_with_grouped_mutation():
    problem = depth_problem(PARTS, 6)
    start = [DROP if index in (0, 2, 4, 1, 3, 5) else KEEP for index in range(12)]
    found = evopress(problem, plain_fitness(lambda c: float(c[0] == DROP)), groups="name", initial=start, generations=10, stages=((1, 1),))
    assert [sum(c == DROP for c in found.choices[part::2]) for part in (0, 1)] == [3, 3]
    assert found.choices[0] == KEEP


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        ((3, 4), {}, "exactly 4 units cannot be dropped; the nearest number that can is 3"),
        ((3, -1), {}, "nearest number that can is 0"),
        ((PARTS, 3), {"blocks": BLOCKS}, "nearest number that can is 2"),
        ((3, 3), {"protected": ["1"]}, "nearest number that can is 2"),
        ((3, 1), {"protected": ["9"]}, "protected unit '9' is not one of the units"),
        ((3, 1), {"scores": [1.0]}, "one value for each of the 3 units"),
        ((3, 1), {"blocks": ["a"]}, "one value for each of the 3 units"),
        ((0, 0), {}, "no units"),
    ],
)
def test_what_cannot_be_dropped_is_refused(arguments, options, sentence):
    with pytest.raises(InvalidArgument, match=sentence):
        depth_problem(*arguments, **options)
