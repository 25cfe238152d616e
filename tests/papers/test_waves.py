"""The wave generator against the physics: energy, order of convergence, symmetry, arrival."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tersor.errors import InvalidArgument

pytest.importorskip("skfem")
from tersor.papers.waves import RANGES, WaveSolver, waves


def still(solver: WaveSolver, count: int):
    return lambda time: np.zeros((len(solver.points), count))


def test_energy_is_constant_once_the_sources_are_still():
    solver = WaveSolver(16)
    parameters = np.array([[0.2, 0.3, 2.0], [0.35, 0.8, 5.0]])
    after, seen = int(np.ceil(1 / 2.0 / solver.step)) + 1, []
    solver.run(
        np.zeros((len(solver.points), 2)), after + 200, solver.sources(parameters),
        lambda number, place, speed: seen.append(solver.energy(place, speed)),
    )  # fmt: skip
    energy = np.stack(seen)[after:]
    assert (energy > 1e-8).all()
    assert np.abs(energy / energy[0] - 1).max() < 1e-12
    # While a source pushes, it is not: the check could fail.
    assert np.abs(seen[3] / seen[2] - 1).max() > 0.1


def standing_wave_error(cells: int) -> float:
    """Of sin(2 pi x) sin(pi y) cos(sqrt(5) pi t) over one unit of time; in the lowest wave the errors of space and time cancel."""
    solver = WaveSolver(cells)
    shape = (np.sin(2 * np.pi * solver.points[:, 0]) * np.sin(np.pi * solver.points[:, 1]))[:, None]
    errors = []

    def visit(number, place, speed):
        errors.append(np.abs(place - shape * np.cos(np.sqrt(5) * np.pi * number * solver.step)).max())

    solver.run(shape, 2 * cells, still(solver, 1), visit)
    return max(errors)


def test_halving_element_and_step_quarters_the_error():
    coarse, middle, fine = (standing_wave_error(cells) for cells in (12, 24, 48))
    assert 3.5 < coarse / middle < 4.5
    assert 3.5 < middle / fine < 4.5
    assert fine < 0.01


def test_the_border_is_still_and_a_mirrored_source_makes_a_mirrored_wave():
    solver = WaveSolver(16)
    last = []
    parameters = np.array([[0.25, 0.3, 3.0], [0.25, 0.7, 3.0]])
    solver.run(np.zeros((len(solver.points), 2)), 40, solver.sources(parameters), lambda number, place, speed: last.append(place.copy()))
    order = np.lexsort((solver.points[:, 0], solver.points[:, 1])).reshape(17, 17)
    field = last[-1][order]
    np.testing.assert_allclose(field[::-1, :, 0], field[:, :, 1], atol=1e-12)
    border = np.ones((17, 17), dtype=bool)
    border[1:-1, 1:-1] = False
    assert not field[border].any()
    assert np.abs(field).max() > 1e-4


def test_nothing_arrives_before_light_could():
    # Speed 1: at a distance of 0.6 beyond the spread of the source nothing is felt at time 0.3.
    solver = WaveSolver(32)
    seen = []
    solver.run(
        np.zeros((len(solver.points), 1)), round(0.3 / solver.step), solver.sources(np.array([[0.1, 0.5, 4.0]])),
        lambda number, place, speed: seen.append(place.copy()),
    )  # fmt: skip
    far = solver.points[:, 0] > 0.7
    assert np.abs(seen[-1][far]).max() < 1e-4 * np.abs(seen[-1]).max()


def test_a_seed_gives_the_same_waves_and_another_gives_others():
    first, again, longer, other = waves(3, 0), waves(3, 0), waves(5, 0), waves(3, 1)
    assert torch.equal(first.fields, again.fields)
    assert torch.equal(first.parameters, longer.parameters[:3])
    # Each set is divided by its own largest value.
    ratio = longer.fields[0] / first.fields[0].where(first.fields[0] != 0, 1)
    assert float(ratio[ratio != 0].std()) < 1e-4
    assert not torch.equal(first.parameters, other.parameters)
    assert first.fields.shape == (3, 16, 16, 16)
    assert float(first.fields.abs().max()) == 1.0
    assert first.parameters.abs().max() <= 1
    assert (RANGES[:, 0] < RANGES[:, 1]).all()


def test_parts_are_disjoint_and_in_order():
    whole = waves(6, 0)
    parts = whole.split(3, 1, 2)
    assert [len(part.fields) for part in parts] == [3, 1, 2]
    assert torch.equal(torch.cat([part.fields for part in parts]), whole.fields)
    assert torch.equal(torch.cat([part.parameters for part in parts]), whole.parameters)
    with pytest.raises(InvalidArgument, match="6 waves"):
        whole.split(4, 4)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: waves(0, 0), "n must"),
        (lambda: waves(1, 0, cells=33), "even"),
        (lambda: waves(1, 0, cells=16), "cells"),
        (lambda: WaveSolver(1), "cells"),
    ],
)
def test_numbers_out_of_range_are_refused(make, said):
    with pytest.raises(InvalidArgument, match=said):
        make()
