"""Every decoder on damaged and forged input: a typed error or the right data. benchmarks/mutations.py gives a hundred thousand to each."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from tersor.coding import CorruptStream
from tersor.coding.entropy import Container

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
# A few in the suite; more by TERSOR_MUTATIONS, which benchmarks/mutations.py also takes.
CASES = int(os.environ.get("TERSOR_MUTATIONS", "150"))
# Not here: a network's milliseconds, and compilers that wait for their first call; the rooms' own tests damage these too.
LEFT_OUT = ("text", "mesh", "image_vq", "windows, greedy")
sys.path.insert(0, str(BENCHMARKS))
try:
    import decoders
    import mutating
finally:
    sys.path.remove(str(BENCHMARKS))


@pytest.mark.parametrize("name", [name for name in decoders.targets() if name not in LEFT_OUT])
def test_damage_and_forgery_end_in_typed_errors_or_right_data(name: str) -> None:
    target = decoders.targets()[name]()
    right = target.decode(target.valid)
    found = [mutating.outcome(target, right, case) for case in range(CASES)]
    assert [said for said in found if said[0] in ("wrong", "untyped")] == []
    assert sum(said[0] == "typed" for said in found) > 0


def test_an_outcome_names_what_a_decoder_may_not_do() -> None:
    container = Container(0, {"size": 3}, (b"abc",)).to_bytes()

    def target(decode, **options):
        return decoders.Target(decode, container, **options)

    def fails(data):
        raise KeyError("size")

    def seen(decode, **options):
        return {mutating.outcome(target(decode, **options), "right", case)[0] for case in range(40)}

    assert seen(fails) == {"untyped"}
    assert seen(lambda data: "right") == {"right"}
    assert seen(lambda data: "other") == {"wrong"}
    # Damage under the old checksum must show even where nothing stands against forgery.
    assert seen(lambda data: "other", checked=False) == {"wrong", "changed"}
    assert seen(lambda data: "other", checked=False, container=False) == {"changed"}


def test_forgeries_are_containers_and_damage_is_drawn_from_its_seed() -> None:
    data = Container(3, {"size": 12, "names": ["a"]}, (b"abc", bytes(40))).to_bytes()
    readable = 0
    for case in range(200):
        first, second = (mutating.forged(data, np.random.default_rng(case)) for _ in range(2))
        assert first == second
        try:
            Container.from_bytes(first)
            readable += 1
        except CorruptStream:
            continue
    # Those that damage lengths and counts of the container are not.
    assert readable > 140
