"""Meshes and point clouds to a few dozen bytes: an encoder's latent, bridged to that of a generator, quantised and coded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tersor.coding.entropy.container import Container
from tersor.coding.entropy.fingerprints import check_model, fingerprint
from tersor.coding.errors import CorruptStream
from tersor.coding.mesh.geometry import Geometry, pose, read_geometry, sample, surface, write_obj
from tersor.coding.mesh.networks import CodeQuantiser, LatentBridge, ShapeEncoder, ShapeGenerator
from tersor.errors import InvalidArgument

NAME = "mesh"
# Points that the encoder sees. Drawn from a fixed seed, so that the same mesh gives the same bytes.
POINTS = 1024
_SEED = 0
RESOLUTION = 32
_POSE = np.dtype("<f4")
_LARGEST = 1e30
# As tersor encode writes it: the codec's number, and the digits of the fingerprint.
_CONTAINER, _SHORT = 10, 16


class GeometryEncoder(Protocol):
    """What turns geometry into a latent; a pretrained model of yours fits behind it."""

    def encode(self, geometry: Geometry) -> Tensor:
        """The latent ``[d_in]`` of a normalised geometry."""


class GeometryGenerator(Protocol):
    """What turns a latent into geometry; a pretrained model of yours fits behind it."""

    def decode(self, latent: Tensor) -> Geometry:
        """The normalised geometry of a latent ``[d_out]``; empty if it is of none."""


class PointEncoder(nn.Module):
    """:class:`ShapeEncoder` over points drawn from the surface."""

    def __init__(self, network: ShapeEncoder) -> None:
        super().__init__()
        self.network = network

    @torch.no_grad()
    def encode(self, geometry: Geometry) -> Tensor:
        """The latent of a normalised geometry."""
        latent: Tensor = self.network(sample(geometry, POINTS, _SEED)[0][None])[0]
        return latent


class FieldGenerator(nn.Module):
    """:class:`ShapeGenerator` on a grid, and the surface where its distance is zero."""

    def __init__(self, network: ShapeGenerator, resolution: int = RESOLUTION) -> None:
        super().__init__()
        self.network = network
        self.resolution = resolution

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Geometry:
        """The mesh of a latent; empty if the field is nowhere negative."""
        return surface(lambda places: self.network(latent[None], places)[0], self.resolution)


class BridgeCodec(nn.Module):
    """Encoder, bridge, quantiser and generator as one codec. What is sent is the code and the pose: centre and scale in 16 bytes.

    Args:
        encoder: A module with ``encode`` as :class:`GeometryEncoder` has it.
        bridge: Trained.
        generator: A module with ``decode`` as :class:`GeometryGenerator` has it.
        quantiser: Fitted.
        identity: Fingerprint of the model; computed from the weights without it.
    """

    name = NAME

    def __init__(
        self, encoder: PointEncoder, bridge: LatentBridge, generator: FieldGenerator, quantiser: CodeQuantiser, identity: str | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.bridge, self.generator, self.quantiser = encoder, bridge, generator, quantiser
        self.eval().requires_grad_(False)
        self.fingerprint = fingerprint(self.state_dict(), {"codec": NAME}) if identity is None else identity

    @torch.no_grad()
    def steps(self, geometry: Geometry) -> Tensor:
        """The integers ``[d_code]`` that stand for a normalised geometry."""
        return self.quantiser.quantise(self.bridge.code(self.encoder.encode(geometry)[None]))[0]

    def reconstruct(self, geometry: Geometry) -> Geometry:
        """What decoding will give, without coding; of a normalised geometry."""
        with torch.no_grad():
            return self._generated(self.quantiser.dequantise(self.steps(geometry)))

    def compress(self, geometry: Geometry) -> bytes:
        """One container: header, pose, code; the bytes that :func:`tersor.coding.encode` makes of the OBJ file.

        Raises:
            InvalidArgument: If the geometry has no extent, or its code is of no surface.
        """
        header, streams = self._packed(geometry)
        return Container(_CONTAINER, {**header, "model": self.fingerprint[:_SHORT]}, tuple(streams)).to_bytes()

    def decompress(self, data: bytes) -> Geometry:
        """The geometry of :meth:`compress`: a mesh, whose vertices are the cloud if a cloud was given.

        Raises:
            CorruptStream: If the data is damaged or of another codec.
            ModelMismatch: If another model wrote it.
        """
        container = Container.from_bytes(data)
        if container.codec != _CONTAINER:
            raise CorruptStream(f"the file is of codec {container.codec}, not of {NAME}; tersor decode finds the right one")
        check_model(container.header.get("model"), self.fingerprint[:_SHORT])
        return self._unpacked(container.header, container.streams)

    def encode(self, data: bytes) -> tuple[dict[str, Any], list[bytes]]:
        """Header and streams of an OBJ file.

        Raises:
            InvalidArgument: If it is no OBJ file, has no extent, or its code is of no surface.
        """
        return self._packed(read_geometry(data))

    def decode(self, header: Mapping[str, Any], streams: tuple[bytes, ...]) -> bytes:
        """An OBJ file.

        Raises:
            CorruptStream: If header and streams are not what :meth:`encode` makes.
        """
        return write_obj(self._unpacked(header, streams))

    def _packed(self, geometry: Geometry) -> tuple[dict[str, Any], list[bytes]]:
        centre, scale = pose(geometry)
        where = np.array([*centre, scale], dtype=_POSE)
        if not (np.isfinite(where).all() and (np.abs(where) < _LARGEST).all() and where[3] > 0):
            raise InvalidArgument("the coordinates of the geometry are too large or too close together for float32; scale it")
        code = self.bridge.code(self.encoder.encode(geometry.moved(centre, scale))[None])[0]
        if not len(self._generated(self.quantiser.dequantise(self.quantiser.quantise(code))).vertices):
            raise InvalidArgument("the model finds no surface for this geometry, which is too unlike its training; use another codec")
        return {"cloud": geometry.is_cloud}, [where.tobytes(), self.quantiser.compress(code)]

    def _unpacked(self, header: Mapping[str, Any], streams: tuple[bytes, ...]) -> Geometry:
        cloud = header.get("cloud")
        if type(cloud) is not bool or len(streams) != 2 or len(streams[0]) != 4 * _POSE.itemsize:
            raise CorruptStream("the compressed geometry lacks its kind, its pose or its code")
        where = np.frombuffer(streams[0], _POSE).astype(np.float64)
        if not (np.isfinite(where).all() and (np.abs(where) < _LARGEST).all() and where[3] > 0):
            raise CorruptStream("the pose of the compressed geometry is no finite centre and positive scale")
        found = self._generated(self.quantiser.decompress(streams[1]))
        if not len(found.vertices):
            raise CorruptStream("the code of the compressed geometry is of no surface: it is damaged")
        placed = found.moved(np.zeros(3), 1 / float(where[3]))
        return Geometry(placed.vertices + where[:3], placed.faces[:0] if cloud else placed.faces)

    def _generated(self, code: Tensor) -> Geometry:
        with torch.no_grad():
            latent = self.bridge.decode(code[None])[0]
        if not math.isfinite(float(latent.abs().sum())):
            return Geometry(np.zeros((0, 3)), np.zeros((0, 3), np.int64))
        return self.generator.decode(latent)
