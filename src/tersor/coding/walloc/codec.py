"""WaLLoC on files: pictures or sounds to bytes that a new process decodes with the trained codec and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tersor.coding.blocks import padded
from tersor.coding.errors import CorruptStream
from tersor.coding.pictures import MOST_PIXELS, read_picture, read_sound, write_picture, write_sound
from tersor.coding.walloc.latents import LatentTables
from tersor.coding.walloc.network import WallocConfig, WallocNetwork
from tersor.errors import InvalidArgument

_LARGEST_RATE = 1 << 24
_SAMPLE = 32767.0


class Walloc(nn.Module):
    """The network and the tables of its latents: everything that is saved.

    Args:
        config: Shape.
        seed: Of the weights.
    """

    def __init__(self, config: WallocConfig, seed: int = 0) -> None:
        super().__init__()
        self.network = WallocNetwork(config, seed)
        self.tables = LatentTables(config.latent, config.largest)


class WallocCodec:
    """A small latent of integers: a fixed number of values for each picture or sound, which models can also learn from directly.

    Use it where encoding must be cheap, its encoder is one matrix, or where the latent is the input of another model; use the
    vector-quantised codec at rates below a tenth of a bit a pixel. :meth:`encode` and :meth:`decode` do files, :meth:`compress` and
    :meth:`decompress` tensors.

    Args:
        model: Trained, with its tables.
        fingerprint: Of its weights, written to every file.
        rate: For sounds: the samples a second that it was trained on.

    Reference:
        Jacobellis, Yadwadkar: "Learned compression for compressed learning", 2025.
    """

    name = "walloc"

    def __init__(self, model: Walloc, fingerprint: str = "", rate: int = 0) -> None:
        self.model = model.eval()
        self.network = model.network
        self.config = model.network.config
        self.fingerprint = fingerprint
        self.rate = rate

    @torch.no_grad()
    def latent(self, signal: Tensor) -> Tensor:
        """The integers that are stored, int64 ``[latent, ...]``, for a signal ``[channels, ...]`` in [-0.5, 0.5] of any size."""
        if signal.ndim != self.config.ndim + 1 or signal.shape[0] != self.config.channels or not signal.numel():
            raise InvalidArgument(f"this codec takes [{self.config.channels}] and {self.config.ndim} sides, got {tuple(signal.shape)}")
        if not bool(signal.isfinite().all()):
            raise InvalidArgument("the signal holds NaN or Inf")
        return torch.round(self.network.latent(padded(signal[None].float(), self.network.packet.stride))[0]).long()

    @torch.no_grad()
    def reconstruct(self, latent: Tensor, sides: tuple[int, ...]) -> Tensor:
        """The signal ``[channels, *sides]`` of integers, clamped to [-0.5, 0.5]."""
        signal = self.network.signal(latent[None].float())[0].clamp(-0.5, 0.5)
        return signal[(slice(None), *(slice(side) for side in sides))]

    def compress(self, signal: Tensor) -> bytes:
        """Bytes of a signal ``[channels, ...]``; its sides are not part of them."""
        return self.model.tables.encode(self._as_grid(self.latent(signal)))

    def decompress(self, data: bytes, sides: tuple[int, ...]) -> Tensor:
        """The signal of ``sides`` that :meth:`compress` coded, equal to :meth:`reconstruct` of its latent.

        Raises:
            CorruptStream: If the bytes are damaged or too few for the sides.
        """
        shape = [-(-side // self.network.packet.stride) for side in sides]
        grid = self.model.tables.decode(data, *([1, *shape] if self.config.ndim == 1 else shape))
        return self.reconstruct(grid.reshape(self.config.latent, *shape), sides)

    def encode(self, data: bytes) -> tuple[dict[str, Any], list[bytes]]:
        """Header and stream of a picture file, or of a WAV of 16 bits, after what the codec was trained on.

        Raises:
            InvalidArgument: If it is neither, or a sound of other channels than the codec was trained on.
        """
        if self.config.ndim == 2:
            picture = read_picture(data)
            return {"sides": list(picture.shape[1:])}, [self.compress(picture.float() / 255 - 0.5)]
        sound, rate = read_sound(data)
        if sound.shape[0] != self.config.channels:
            raise InvalidArgument(f"this codec was trained on sounds of {self.config.channels} channels, the file has {sound.shape[0]}")
        return {"sides": [sound.shape[1]], "rate": rate}, [self.compress(sound.float() / (2 * _SAMPLE))]

    def decode(self, header: Mapping[str, Any], streams: tuple[bytes, ...]) -> bytes:
        """A PNG, or a WAV of 16 bits.

        Raises:
            CorruptStream: If header and stream are not what :meth:`encode` makes.
        """
        sides, rate = header.get("sides"), header.get("rate")
        if not isinstance(sides, list) or len(sides) != self.config.ndim or any(type(side) is not int or side < 1 for side in sides):
            raise CorruptStream("the header of the compressed file lacks the size of its picture or sound")
        if len(streams) != 1 or torch.Size(sides).numel() > MOST_PIXELS:
            raise CorruptStream("the compressed file is of another codec: it has more than one stream, or a size beyond all limits")
        if self.config.ndim == 2:
            picture = self.decompress(streams[0], tuple(sides))
            return write_picture(torch.round((picture + 0.5) * 255).to(torch.uint8))
        if type(rate) is not int or not 1 <= rate <= _LARGEST_RATE:
            raise CorruptStream("the header of the compressed file lacks the samples a second of its sound")
        sound = self.decompress(streams[0], tuple(sides))
        return write_sound(torch.round(sound * 2 * _SAMPLE).clamp(-_SAMPLE, _SAMPLE).to(torch.int16), rate)

    def _as_grid(self, latent: Tensor) -> Tensor:
        return latent[:, None] if self.config.ndim == 1 else latent
