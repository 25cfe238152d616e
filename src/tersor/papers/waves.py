"""Waves on a square by finite elements: the data of the experiment on a-priori compressed convolutions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor.errors import InvalidArgument, TersorError
from tersor.layerwise.checking import check_integer

Array = np.ndarray[Any, np.dtype[Any]]
# Uniform ranges: where the source is, and its frequency. It lies in the left half, the zone that is looked at in the right one.
RANGES = np.array([[0.1, 0.4], [0.1, 0.9], [2.0, 5.0]])
# Of the Gaussian that the source is spread by, in sides of the square.
_SPREAD = 0.05
_FIRST_STEP, _EVERY = 64, 4
_BETA, _GAMMA = 0.25, 0.5


class WaveSolver:
    """``u_tt = laplace u + f`` on the unit square, 0 on its border: bilinear elements in space, Newmark's mean acceleration in time.

    Of second order in both, stable at any step, and without a source it keeps the discrete energy to the last bits.

    Args:
        cells: Elements along a side; the step in time is half of an element.

    Raises:
        InvalidArgument: If there are fewer than two cells.
        TersorError: If scikit-fem is not installed.
    """

    def __init__(self, cells: int = 32) -> None:
        check_integer("cells", cells, 2)
        try:
            import skfem
            from skfem.models.poisson import laplace, mass
        except ImportError:
            raise TersorError("this needs scikit-fem, which is not installed; pip install 'tersor[training]'") from None
        from scipy.sparse.linalg import splu

        line = np.linspace(0, 1, cells + 1)
        basis = skfem.Basis(skfem.MeshQuad.init_tensor(line, line), skfem.ElementQuad1())
        self.step = 0.5 / cells
        self.points: Array = basis.doflocs.T
        self.inside: Array = np.setdiff1d(np.arange(basis.N), basis.get_dofs().flatten())
        self._mass, self._stiffness = (form.assemble(basis)[self.inside][:, self.inside].tocsc() for form in (mass, laplace))
        self._solve = splu(self._mass + _BETA * self.step**2 * self._stiffness).solve
        self._solve_mass = splu(self._mass).solve

    def run(self, start: Array, steps: int, source: Callable[[float], Array], visit: Callable[[int, Array, Array], None]) -> None:
        """Several waves side by side.

        Args:
            start: Displacement ``[n_nodes, n_waves]`` at rest at time 0.
            steps: In time.
            source: The force ``[n_nodes, n_waves]`` at a time.
            visit: Called after every step with its number from 1, displacement and velocity, each ``[n_nodes, n_waves]``.
        """
        force = lambda time: self._mass @ source(time)[self.inside]  # noqa: E731 - as short as its formula
        place, speed = start[self.inside].astype(np.float64), np.zeros_like(start[self.inside], dtype=np.float64)
        pull = self._solve_mass(force(0.0) - self._stiffness @ place)
        whole = [np.zeros_like(start, dtype=np.float64) for _ in range(2)]
        for number in range(1, steps + 1):
            place += self.step * speed + self.step**2 * (0.5 - _BETA) * pull
            speed += self.step * (1 - _GAMMA) * pull
            pull = self._solve(force(number * self.step) - self._stiffness @ place)
            place += _BETA * self.step**2 * pull
            speed += _GAMMA * self.step * pull
            whole[0][self.inside], whole[1][self.inside] = place, speed
            visit(number, *whole)

    def energy(self, place: Array, speed: Array) -> Array:
        """``v' M v / 2 + u' K u / 2`` of each wave, from what ``visit`` saw."""
        place, speed = place[self.inside], speed[self.inside]
        return 0.5 * ((speed * (self._mass @ speed)).sum(0) + (place * (self._stiffness @ place)).sum(0))

    def sources(self, parameters: Array) -> Callable[[float], Array]:
        """For ``parameters [n, 3]`` (x, y, frequency) the force of :meth:`run`: a Gaussian that swings once, then is still."""
        away = ((self.points[:, None] - parameters[None, :, :2]) ** 2).sum(2)
        shape, frequency = np.exp(-away / (2 * _SPREAD**2)), parameters[:, 2]
        return lambda time: shape * np.where(time < 1 / frequency, np.sin(2 * np.pi * frequency * time), 0.0)


@dataclass(frozen=True)
class Waves:
    """Simulated waves.

    Attributes:
        parameters: ``[n, 3]`` in float32: x, y and frequency of the source, each scaled to -1 to 1.
        fields: ``[n, 16, 16, 16]`` in float32: time, y, x in the zone that is looked at, divided by the largest magnitude of all.
    """

    parameters: Tensor
    fields: Tensor

    def split(self, *sizes: int) -> list[Waves]:
        """Consecutive parts; they come from the same distribution, in which the order means nothing.

        Raises:
            InvalidArgument: If there are not that many.
        """
        if sum(sizes) > len(self.fields):
            raise InvalidArgument(f"there are {len(self.fields)} waves, fewer than {' + '.join(map(str, sizes))}; simulate more")
        parts = (whole[: sum(sizes)].split(list(sizes)) for whole in (self.parameters, self.fields))
        return [Waves(*part) for part in zip(*parts, strict=True)]


def waves(n: int, seed: int, cells: int = 32) -> Waves:
    """Simulate ``n`` waves whose sources are drawn uniformly from ``RANGES``.

    The zone is 16 x 16 nodes in the right half, seen 16 times from when the first waves arrive.

    Args:
        n: Waves; 160 take a few seconds.
        seed: Of the sources; the first waves of a seed do not depend on ``n``.
        cells: See :class:`WaveSolver`; at least 32 and even.

    Raises:
        InvalidArgument: If a number is out of range.
    """
    check_integer("n", n, 1)
    check_integer("cells", cells, 32)
    if cells % 2:
        raise InvalidArgument(f"cells must be even, so that the zone begins in the middle, got {cells}")
    solver = WaveSolver(cells)
    generator = np.random.default_rng(seed)
    drawn = generator.uniform(size=(n, 3))
    parameters = RANGES[:, 0] + drawn * (RANGES[:, 1] - RANGES[:, 0])
    order = np.lexsort((solver.points[:, 0], solver.points[:, 1])).reshape(cells + 1, cells + 1)
    low = cells // 2 - 8
    zone = order[low : low + 16, cells // 2 : cells // 2 + 16]
    frames: list[Array] = []

    def visit(number: int, place: Array, speed: Array) -> None:
        if number >= _FIRST_STEP and (number - _FIRST_STEP) % _EVERY == 0:
            frames.append(place[zone])

    solver.run(np.zeros((len(solver.points), n)), _FIRST_STEP + 15 * _EVERY, solver.sources(parameters), visit)
    fields = np.stack(frames).transpose(3, 0, 1, 2)
    return Waves(torch.from_numpy(2 * drawn - 1).float(), torch.from_numpy(fields / np.abs(fields).max()).float())
