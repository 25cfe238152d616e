"""Shapes as codes of a few dozen bytes: an encoder's latent, bridged to the latent of a generator that draws the surface again."""

from tersor.coding.mesh.codec import BridgeCodec, FieldGenerator, GeometryEncoder, GeometryGenerator, PointEncoder
from tersor.coding.mesh.geometry import Geometry, chamfer, normal_consistency, read_geometry, sample, surface, write_obj
from tersor.coding.mesh.networks import CodeQuantiser, LatentBridge, ShapeEncoder, ShapeGenerator
from tersor.coding.mesh.shapes import draw_shape, shape_set
from tersor.coding.mesh.training import MeshJob, MeshSettings, ShapeModels, fit_bridge, synthesise_pairs

__all__ = [
    "BridgeCodec",
    "CodeQuantiser",
    "FieldGenerator",
    "Geometry",
    "GeometryEncoder",
    "GeometryGenerator",
    "LatentBridge",
    "MeshJob",
    "MeshSettings",
    "PointEncoder",
    "ShapeEncoder",
    "ShapeGenerator",
    "ShapeModels",
    "chamfer",
    "draw_shape",
    "fit_bridge",
    "normal_consistency",
    "read_geometry",
    "sample",
    "shape_set",
    "surface",
    "synthesise_pairs",
    "write_obj",
]
