"""Meshes and point clouds between files, surfaces and samples, and how far one is from another."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tersor.errors import InvalidArgument

Floats = NDArray[np.float64]
# Largest distance of a shape's surface from the origin after normalisation; the grid of the generator ends at 1.
RADIUS = 0.9
# Rows of a distance matrix that are in memory at once.
_ROWS = 1024


@dataclass(frozen=True)
class Geometry:
    """A mesh, or a point cloud if it has no faces.

    Attributes:
        vertices: ``[n, 3]``.
        faces: ``[m, 3]`` indexes of vertices; ``m`` is 0 for a point cloud.
    """

    vertices: Floats
    faces: NDArray[np.int64]

    @property
    def is_cloud(self) -> bool:
        """Whether there are only points."""
        return not len(self.faces)

    def moved(self, centre: Floats, scale: float) -> Geometry:
        """The geometry with ``centre`` at the origin, ``scale`` times as large."""
        return Geometry((self.vertices - centre) * scale, self.faces)


def read_geometry(data: bytes) -> Geometry:
    """The mesh or point cloud of an OBJ file; faces of more than three corners are cut into triangles, textures are ignored.

    Raises:
        InvalidArgument: If it is no such file, has no vertex, or holds NaN or Inf; or trimesh is missing.
    """
    _need("trimesh", "read")
    import trimesh

    try:
        text = data.decode("utf-8")
        loaded = trimesh.load(io.StringIO(text), file_type="obj", process=False, skip_materials=True, force=None)
        parts = list(loaded.geometry.values()) if isinstance(loaded, trimesh.Scene) else [loaded]
        vertices = [np.asarray(part.vertices, dtype=np.float64).reshape(-1, 3) for part in parts]
        starts = np.cumsum([0, *map(len, vertices)])
        lists = [np.asarray(getattr(part, "faces", np.zeros((0, 3))), dtype=np.int64) for part in parts]
        faces = [found + at for found, at in zip(lists, starts[:-1], strict=True)]
        found = Geometry(np.concatenate(vertices), np.concatenate(faces))
    except Exception as error:  # the parser raises whatever damaged text makes it do
        said = type(error).__name__
        raise InvalidArgument(f"the file is no OBJ mesh or point cloud ({said}); give lines 'v x y z' and 'f a b c'") from None
    _check(found)
    return found


def write_obj(geometry: Geometry) -> bytes:
    """The OBJ file of a geometry, six digits after the point."""
    lines = [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in geometry.vertices.tolist()]
    lines += [f"f {a + 1} {b + 1} {c + 1}" for a, b, c in geometry.faces.tolist()]
    return ("\n".join(lines) + "\n").encode()


def sample(geometry: Geometry, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points of the surface, uniform by area, or of the cloud, and their normals.

    Args:
        geometry: What to sample.
        count: Points.
        seed: Of the points.

    Returns:
        float32 ``[count, 3]`` twice; the normals of a cloud are zero.

    Raises:
        InvalidArgument: If the mesh has no area.
    """
    random = np.random.default_rng(seed)
    if geometry.is_cloud:
        chosen = random.choice(len(geometry.vertices), count, replace=len(geometry.vertices) < count)
        points = torch.from_numpy(geometry.vertices[chosen]).float()
        return points, torch.zeros_like(points)
    corners = geometry.vertices[geometry.faces]
    edges = corners[:, 1:] - corners[:, :1]
    normals = np.cross(edges[:, 0], edges[:, 1])
    areas = np.linalg.norm(normals, axis=1)
    if not areas.sum() > 0:
        raise InvalidArgument("the faces of the mesh have no area; give a mesh that is not flat, or the vertices alone as a point cloud")
    chosen = random.choice(len(areas), count, p=areas / areas.sum())
    mix = random.random((count, 2))
    mix = np.where(mix.sum(1, keepdims=True) > 1, 1 - mix, mix)
    points = corners[chosen, 0] + (mix[:, :, None] * edges[chosen]).sum(1)
    return torch.from_numpy(points).float(), torch.from_numpy(normals[chosen] / areas[chosen, None]).float()


def pose(geometry: Geometry) -> tuple[Floats, float]:
    """Centre of the bounding box, and the scale that brings the farthest vertex to :data:`RADIUS`.

    Raises:
        InvalidArgument: If all vertices are one point.
    """
    used = geometry.vertices if geometry.is_cloud else geometry.vertices[np.unique(geometry.faces)]
    centre = (used.min(0) + used.max(0)) / 2
    reach = float(np.linalg.norm(used - centre, axis=1).max())
    if not reach > 0:
        raise InvalidArgument("all vertices of the geometry are one point: it has no shape")
    return centre, RADIUS / reach


def grid(resolution: int) -> Tensor:
    """float32 ``[resolution ** 3, 3]``: the places of a cube from -1 to 1, the last coordinate running fastest."""
    axis = torch.linspace(-1, 1, resolution)
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)


def surface(distance: Callable[[Tensor], Tensor], resolution: int = 32) -> Geometry:
    """The zero surface of a distance function in the cube from -1 to 1, by marching cubes; empty if there is none.

    Args:
        distance: Of points ``[n, 3]`` to ``[n]``, negative inside.
        resolution: Places an axis.

    Raises:
        InvalidArgument: If scikit-image is missing.
    """
    _need("skimage", "drawn")
    from skimage.measure import marching_cubes

    values = distance(grid(resolution)).reshape((resolution,) * 3).double().numpy()
    # Nothing leaves the cube: surfaces are closed.
    values = np.pad(values[1:-1, 1:-1, 1:-1], 1, constant_values=1.0)
    if not values.min() < 0:
        return Geometry(np.zeros((0, 3)), np.zeros((0, 3), np.int64))
    step = 2 / (resolution - 1)
    vertices, faces, _, _ = marching_cubes(values, 0.0, spacing=(step,) * 3)
    return Geometry(vertices.astype(np.float64) - 1, faces.astype(np.int64))


def nearest(points: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Distance from each of ``points`` ``[n, 3]`` to the nearest of ``others`` ``[m, 3]``, and which that is."""
    found = [torch.cdist(part, others, compute_mode="donot_use_mm_for_euclid_dist").min(1) for part in points.split(_ROWS)]
    return torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])


def chamfer(points: Tensor, others: Tensor) -> float:
    """Mean distance to the nearest point of the other set, over both directions, in the unit of the coordinates.

    Raises:
        InvalidArgument: If one is empty or not of shape ``[n, 3]``.
    """
    _check_sets(points, others)
    return float(nearest(points, others)[0].mean() + nearest(others, points)[0].mean()) / 2


def normal_consistency(points: Tensor, normals: Tensor, others: Tensor, other_normals: Tensor) -> float:
    """Mean ``|cos|`` between the normals of each point and of the nearest of the other set, over both directions: 1 is best.

    Raises:
        InvalidArgument: If one is empty or not of shape ``[n, 3]``.
    """
    _check_sets(points, others)
    forth, back = nearest(points, others)[1], nearest(others, points)[1]
    first = (normals * other_normals[forth]).sum(1).abs().mean()
    second = (other_normals * normals[back]).sum(1).abs().mean()
    return float(first + second) / 2


def _need(package: str, work: str) -> None:
    if find_spec(package) is None:
        raise InvalidArgument(f"surfaces are {work} by {package}, which is missing; pip install 'tersor[coding]'")


def _check_sets(points: Tensor, others: Tensor) -> None:
    for one in (points, others):
        if one.ndim != 2 or one.shape[1] != 3 or not len(one):
            raise InvalidArgument(f"point sets are [n, 3] with at least one point, got {tuple(one.shape)}")


def _check(geometry: Geometry) -> None:
    if not len(geometry.vertices) or not np.isfinite(geometry.vertices).all():
        raise InvalidArgument("the geometry has no vertices, or vertices that are NaN or Inf")
    if len(geometry.faces) and (geometry.faces.min() < 0 or geometry.faces.max() >= len(geometry.vertices)):
        raise InvalidArgument("a face of the geometry names a vertex that is not there")
