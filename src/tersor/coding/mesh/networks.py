"""An encoder of point sets and a generator of surfaces that know nothing of one another, and the bridge between their latents."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from tersor.coding.entropy.escapes import EscapeTables, code_values, read_values
from tersor.errors import InvalidArgument

Kind = Literal["mlp", "wide", "deep"]
_EPS = 1e-8
# Layers of the deep bridge, and which of them is the code.
_DEEP, _DEEP_CODE = 12, 5
# A code is standardised; at 8 bits a deviation is 32 steps, so that 256 steps reach four deviations to each side.
_STEPS_AT_8 = 32.0
_TAIL = 1e-6
BITS = (3, 12)


class ShapeEncoder(nn.Module):
    """Points of a surface ``[n, p, 3]`` to latents ``[n, width]``, whatever their order: one small network a point, then the maximum.

    Reference:
        Qi, Su, Mo, Guibas: "PointNet: deep learning on point sets for 3D classification and segmentation", 2017.
    """

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.points = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, width))

    def forward(self, points: Tensor) -> Tensor:
        features: Tensor = self.points(points)
        return features.amax(-2)


class ShapeGenerator(nn.Module):
    """Latents ``[n, latent]`` to signed distances at places of the cube from -1 to 1.

    Args:
        latent: Width of the latent.
        width: Of the hidden layers.
        depth: Hidden layers.
        waves: Frequencies at which each coordinate is given beside itself.

    Reference:
        Park, Florence, Straub, Newcombe, Lovegrove: "DeepSDF", 2019.
    """

    def __init__(self, latent: int = 64, width: int = 128, depth: int = 4, waves: int = 3) -> None:
        super().__init__()
        self.latent = latent
        self.waves = waves
        self.place = nn.Linear(3 + 6 * waves, width)
        self.code = nn.Linear(latent, width, bias=False)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.last = nn.Linear(width, 1)

    def forward(self, latent: Tensor, places: Tensor) -> Tensor:
        """Distances ``[n, q]`` for latents ``[n, latent]`` at places ``[n, q, 3]`` or ``[q, 3]``."""
        turns = places[..., None] * (math.pi * 2.0 ** torch.arange(self.waves, device=places.device))
        seen = torch.cat([places, turns.sin().flatten(-2), turns.cos().flatten(-2)], -1)
        x = functional.relu(self.place(seen) + self.code(latent)[:, None])
        for layer in self.layers:
            x = functional.relu(layer(x))
        distances: Tensor = self.last(x).squeeze(-1)
        return distances


class _Residual(nn.Module):
    """Layers of the deep bridge from one index to another: linear, normalised, with a residual after the first and every fourth."""

    def __init__(self, width: int, first: int, end: int, dropout: float) -> None:
        super().__init__()
        self.first, self.end = first, end
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(first, end))
        self.linears = nn.ModuleList(nn.Linear(width, width) for _ in range(first, end))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        kept = x
        for index, norm, linear in zip(range(self.first, self.end), self.norms, self.linears, strict=True):
            x = linear(self.dropout(functional.gelu(norm(x))))
            if index % 4 == 0 or index == 1:
                x = x + kept
                kept = x
        return x


class LatentBridge(nn.Module):
    """From the latent of an encoder to a small code, and from the code to the latent of a generator. Nothing goes around the code.

    The published network for meshes counts the output of its second layer as the code but feeds that plus the first layer's output on, so
    its code alone cannot be decoded. Here the sum is the code: same layers, same width, and a cut.

    Args:
        d_in: Width of the encoder's latent.
        d_code: Numbers of the code.
        d_out: Width of the generator's latent.
        kind: ``"mlp"``: the published three layers, all as wide as the code. ``"wide"``: hidden layers of ``width`` on both sides, for
            codes of few numbers. ``"deep"``: the twelve layers for point clouds, all as wide as the code.
        width: Of the hidden layers of ``"wide"``.
        dropout: While training.

    Raises:
        InvalidArgument: On an unknown kind or sizes below 1.

    Reference:
        Dagli, Xiang, Malik and others: "Squeeze3D: your 3D generation model is secretly an extreme neural compressor", 2025.
    """

    in_mean: Tensor
    in_scale: Tensor
    out_mean: Tensor
    out_scale: Tensor

    def __init__(self, d_in: int, d_code: int, d_out: int, kind: Kind = "wide", width: int = 256, dropout: float = 0.0) -> None:
        super().__init__()
        if kind not in get_args(Kind) or min(d_in, d_code, d_out, width) < 1 or not 0 <= dropout < 1:
            raise InvalidArgument(f"a bridge is one of {', '.join(get_args(Kind))} with sizes of at least 1 and a dropout below 1")
        self.d_code = d_code
        self.forth: nn.Module
        self.back: nn.Module
        if kind == "wide":
            self.forth, self.back = (
                nn.Sequential(nn.Linear(before, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, after))
                for before, after in ((d_in, d_code), (d_code, d_out))
            )
        elif kind == "mlp":
            self.forth = nn.Sequential(nn.Linear(d_in, d_code), _Residual(d_code, 1, 2, dropout))
            self.back = nn.Sequential(nn.LayerNorm(d_code), nn.GELU(), nn.Dropout(dropout), nn.Linear(d_code, d_out))
        else:
            self.forth = nn.Sequential(nn.Linear(d_in, d_code), _Residual(d_code, 1, _DEEP_CODE + 1, dropout))
            self.back = nn.Sequential(
                _Residual(d_code, _DEEP_CODE + 1, _DEEP, dropout), nn.LayerNorm(d_code), nn.GELU(), nn.Linear(d_code, d_out)
            )
        for name, size, value in (("in_mean", d_in, 0.0), ("in_scale", d_in, 1.0), ("out_mean", d_out, 0.0), ("out_scale", d_out, 1.0)):
            self.register_buffer(name, torch.full((size,), value))

    @torch.no_grad()
    def standardise(self, inputs: Tensor, outputs: Tensor) -> None:
        """Keep mean and deviation of the latents of training pairs: on raw latents, dimensions of large variance hide the others."""
        for tensor, mean, scale in ((inputs, self.in_mean, self.in_scale), (outputs, self.out_mean, self.out_scale)):
            mean.copy_(tensor.mean(0))
            scale.copy_(tensor.std(0).clamp(min=1e-4))

    def code(self, latent: Tensor) -> Tensor:
        """``[n, d_in]`` to ``[n, d_code]``."""
        found: Tensor = self.forth((latent - self.in_mean) / self.in_scale)
        return found

    def decode(self, code: Tensor) -> Tensor:
        """``[n, d_code]`` to ``[n, d_out]``."""
        found: Tensor = self.back(code) * self.out_scale + self.out_mean
        return found

    def loss(self, inputs: Tensor, outputs: Tensor, apart: float = 1.0) -> tuple[Tensor, Tensor]:
        """Squared error of the standardised latents, and ``apart`` times how far codes of different samples are from orthogonal.

        Args:
            inputs: ``[n, d_in]``.
            outputs: ``[n, d_out]``.
            apart: Weight of the second term. The published 1e7 belongs to raw latents; on standardised ones it drowns the error.
        """
        code = self.code(inputs)
        error = (self.back(code) - (outputs - self.out_mean) / self.out_scale).square().mean()
        unit = code / (code.norm(dim=1, keepdim=True) + _EPS)
        return error, apart * (unit @ unit.T - torch.eye(len(code))).square().mean()


class CodeQuantiser(nn.Module):
    """Codes as integers on a grid fitted to training codes, coded under one table a dimension.

    Args:
        d_code: Numbers of a code.
        bits: A deviation is ``2 ** (bits - 3)`` steps wide; 8 and 6 are usual.

    Raises:
        InvalidArgument: If bits are outside of 3 to 12.
    """

    mean: Tensor
    step: Tensor

    def __init__(self, d_code: int, bits: int = 8) -> None:
        super().__init__()
        if not BITS[0] <= bits <= BITS[1]:
            raise InvalidArgument(f"codes are quantised to {BITS[0]} to {BITS[1]} bits, got {bits}")
        self.per_deviation = _STEPS_AT_8 * 2.0 ** (bits - 8)
        self.tables = EscapeTables()
        self.register_buffer("mean", torch.zeros(d_code))
        self.register_buffer("step", torch.ones(d_code))

    @torch.no_grad()
    def fit(self, codes: Tensor) -> None:
        """Set grid and tables from codes ``[n, d_code]``: half a normal distribution, half the smoothed counts of what was seen."""
        self.mean.copy_(codes.mean(0))
        self.step.copy_((codes.std(0) / self.per_deviation).clamp(min=1e-6))
        reach = math.ceil(5 * self.per_deviation)
        places = torch.arange(-reach, reach + 1, dtype=torch.float64) / self.per_deviation
        normal = torch.exp(-places.square() / 2)
        normal = normal / normal.sum()
        # A kernel of a fifth of a deviation between the counts.
        near = torch.exp(-((places[:, None] - places[None]) * 5).square() / 2)
        near = near / near.sum(0, keepdim=True)
        pmfs = []
        for column in self.quantise(codes).T:
            counts = torch.bincount((column.long().clamp(-reach, reach) + reach), minlength=len(places)).double()
            pmfs.append(((near @ (counts / counts.sum()) + normal) / 2).numpy())
        self.tables.set(pmfs, torch.full((len(self.mean),), -reach).numpy(), _TAIL)

    def quantise(self, codes: Tensor) -> Tensor:
        """Codes ``[n, d_code]`` as whole numbers, float32."""
        return torch.round((codes - self.mean) / self.step)

    def dequantise(self, steps: Tensor) -> Tensor:
        """Whole numbers as codes."""
        return steps * self.step + self.mean

    def ideal_bits(self, steps: Tensor) -> float:
        """Information of whole numbers ``[n, d_code]`` under the tables, those outside of them at the price of the escape alone."""
        tables, offsets = self.tables.as_tables(), self.tables.offsets.tolist()
        total = 0.0
        for column, table, offset in zip(steps.long().T, tables, offsets, strict=True):
            symbols = column - offset
            outside = (symbols < 0) | (symbols >= len(table) - 1)
            total += table.ideal_bits(torch.where(outside, len(table) - 1, symbols).numpy())
        return total

    def compress(self, codes: Tensor) -> bytes:
        """The stream of one code ``[d_code]``.

        Raises:
            InvalidArgument: Before :meth:`fit`, or on NaN or Inf.
        """
        return code_values(self.quantise(codes[None])[0].double().numpy(), self.tables, self._indexes(), "reference")

    def decompress(self, stream: bytes) -> Tensor:
        """The quantised code ``[d_code]`` of a stream, the same on every machine.

        Raises:
            CorruptStream: If it is damaged in a way that shows.
        """
        return self.dequantise(torch.from_numpy(read_values(stream, self.tables, self._indexes(), "reference")).float())

    def _indexes(self) -> NDArray[np.int64]:
        return np.arange(len(self.mean))
