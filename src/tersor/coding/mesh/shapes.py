"""A family of shapes of known dimension: unions of one to three superquadrics, boxes, tori and capsules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tersor.coding.mesh.geometry import RADIUS, Geometry, sample, surface

KINDS = ("superquadric", "box", "torus", "capsule")
MOST_PARTS = 3
# Parts are placed at most this far from the origin, so that they touch.
_SPREAD = 0.35
_RESOLUTION = 24
_CANVAS = 1.7


@dataclass(frozen=True)
class Part:
    """One solid.

    Attributes:
        kind: One of :data:`KINDS`.
        sizes: ``[3]``: half axes of a superquadric or box; both radii of a torus; radius and half length of a capsule.
        power: Exponent of a superquadric: 2 is an ellipsoid, 8 nearly a box.
        rotation: ``[3, 3]``.
        centre: ``[3]``.
    """

    kind: str
    sizes: Tensor
    power: float
    rotation: Tensor
    centre: Tensor

    def distance(self, points: Tensor) -> Tensor:
        """Signed distance of ``[n, 3]``, negative inside; to first order for superquadrics."""
        local = (points - self.centre) @ self.rotation
        a, b, _ = self.sizes.tolist()
        if self.kind == "box":
            outside = local.abs() - self.sizes
            return outside.clamp(min=0).norm(dim=1) + outside.max(1).values.clamp(max=0)
        if self.kind == "torus":
            ring = local[:, :2].norm(dim=1) - a
            return torch.stack([ring, local[:, 2]], 1).norm(dim=1) - b
        if self.kind == "capsule":
            end = local[:, 2].clamp(-b, b)
            return torch.cat([local[:, :2], (local[:, 2] - end)[:, None]], 1).norm(dim=1) - a
        scaled = (local / self.sizes).abs().clamp(min=1e-6)
        radius = scaled.pow(self.power).sum(1).pow(1 / self.power)
        slope = ((scaled / radius[:, None]).pow(self.power - 1) / self.sizes).norm(dim=1)
        return (radius - 1) / slope


@dataclass(frozen=True)
class Shape:
    """A union of parts, moved and scaled so that it is centred and reaches :data:`RADIUS`, as far as a coarse mesh of it tells."""

    parts: Sequence[Part]
    centre: Tensor
    scale: float

    def distance(self, points: Tensor) -> Tensor:
        """Signed distance of points ``[n, 3]``, negative inside."""
        original = points / self.scale + self.centre
        return self.scale * torch.stack([part.distance(original) for part in self.parts]).min(0).values

    def mesh(self, resolution: int = _RESOLUTION) -> Geometry:
        """The surface as a mesh."""
        return surface(self.distance, resolution)


def draw_shape(seed: int) -> Shape:
    """The shape of a seed."""
    random = np.random.default_rng(seed)
    parts = [_part(random) for _ in range(random.integers(1, MOST_PARTS + 1))]
    raw = Shape(parts, torch.zeros(3), 1 / _CANVAS)
    vertices = torch.from_numpy(raw.mesh(24).vertices).float() * _CANVAS
    centre = (vertices.min(0).values + vertices.max(0).values) / 2
    return Shape(parts, centre, RADIUS / float((vertices - centre).norm(dim=1).max()))


def _part(random: np.random.Generator) -> Part:
    kind = KINDS[random.integers(len(KINDS))]
    low, high = {"torus": ((0.3, 0.1, 0.1), (0.5, 0.2, 0.2)), "capsule": ((0.12, 0.2, 0.1), (0.3, 0.6, 0.2))}.get(
        kind, ((0.2, 0.2, 0.2), (0.6, 0.6, 0.6))
    )
    rotation, upper = np.linalg.qr(random.standard_normal((3, 3)))
    values = (random.uniform(low, high), rotation * np.sign(np.diag(upper)), random.uniform(-_SPREAD, _SPREAD, 3))
    sizes, turned, centre = (torch.from_numpy(value).float() for value in values)
    return Part(kind, sizes, float(random.uniform(2, 8)), turned, centre)


@dataclass(frozen=True)
class ShapeSet:
    """Samples of many shapes.

    Attributes:
        points: ``[n, p, 3]`` on the surfaces.
        normals: ``[n, p, 3]``.
        queries: ``[n, q, 3]``, half of them near the surface.
        distances: ``[n, q]`` at the queries.
        coarse: ``[n, side ** 3]`` distances at the places of a coarse grid.
    """

    points: Tensor
    normals: Tensor
    queries: Tensor
    distances: Tensor
    coarse: Tensor


def shape_set(first: int, count: int, *, points: int = 1024, queries: int = 1024, side: int = 8) -> ShapeSet:
    """Samples of the shapes of seeds ``first`` to ``first + count - 1``, and how far everything is from them.

    Args:
        first: First seed; sets of seeds that do not overlap share no shape.
        count: Shapes.
        points: On each surface.
        queries: Places where the distance is known.
        side: Of the coarse grid.
    """
    from tersor.coding.mesh.geometry import grid

    places = grid(side)
    rows = []
    for seed in range(first, first + count):
        shape = draw_shape(seed)
        on, normals = sample(shape.mesh(), points, seed)
        random = torch.Generator().manual_seed(seed)
        near = on[torch.randint(points, (queries // 2,), generator=random)] + 0.06 * torch.randn(queries // 2, 3, generator=random)
        asked = torch.cat([near.clamp(-1, 1), 2 * torch.rand(queries - queries // 2, 3, generator=random) - 1])
        rows.append((on, normals, asked, shape.distance(asked), shape.distance(places)))
    return ShapeSet(*(torch.stack(column) for column in zip(*rows, strict=True)))
