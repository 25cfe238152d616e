"""The network of WaLLoC: a linear encoder on wavelet packets, latents on a few integers, a small convolutional decoder."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tersor.coding.blocks import Normalise, Residual, initialise
from tersor.coding.entropy.factorised import rounded_with_noise
from tersor.coding.walloc.wavelets import WaveletPacket
from tersor.errors import InvalidArgument

Companding = Literal["cdf", "clip"]
Training = Literal["noise", "none"]
# Wider than any latent that fits a file worth having; what a damaged configuration may ask for.
_MOST = 4096
# The scale of the companding: the extreme integers lie 1.85 standard deviations out.
_SPREAD = 1.85
_EDGE = 1e-4
# The share of a latent that training starts with within so many standard deviations of the companding.
_COVERED, _INSIDE = 0.999, 1.5


@dataclass(frozen=True)
class WallocConfig:
    """Shape of a WaLLoC codec.

    Attributes:
        channels: Of the signal: 3 for pictures.
        levels: Of the wavelet packets: 3 make 64 channels of each one of a picture, at an eighth of its sides.
        latent: Channels of the latent; dimensions shrink by ``channels * 2 ** (levels * ndim) / latent``.
        bits: The latent takes the ``2 ** bits - 1`` integers around zero.
        width: Channels of the decoder.
        blocks: Its residual blocks; 0 for a linear decoder, which principal components bound.
        ndim: 2 for pictures, 1 for sounds.
        companding: ``"cdf"`` spreads latents over their integers by the Gaussian distribution function, as in the paper; ``"clip"``
            cuts off what lies outside, for comparison.
    """

    channels: int = 3
    levels: int = 3
    latent: int = 12
    bits: int = 5
    width: int = 96
    blocks: int = 2
    ndim: int = 2
    companding: Companding = "cdf"

    def __post_init__(self) -> None:
        sizes = (self.channels, self.latent, self.width, self.blocks + 1)
        if any(type(size) is not int or not 1 <= size <= _MOST for size in sizes) or self.companding not in ("cdf", "clip"):
            raise InvalidArgument(f"channels, latent and width are 1 to {_MOST}, blocks 0 or more, companding 'cdf' or 'clip'; got {self}")
        if type(self.bits) is not int or not 2 <= self.bits <= 10:
            raise InvalidArgument(f"bits must be 2 to 10, got {self.bits}")
        if self.latent > self.channels * WaveletPacket(self.levels, self.ndim).gain:
            raise InvalidArgument(f"a latent of {self.latent} channels is larger than the signal; latent must be at most its packets")

    @property
    def largest(self) -> int:
        """Largest integer of a latent."""
        return (1 << (self.bits - 1)) - 1

    @property
    def reduction(self) -> float:
        """Values of the signal for each value of the latent."""
        return self.channels * WaveletPacket(self.levels, self.ndim).gain / self.latent

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


class Compander(nn.Module):
    """Latents of any distribution to evenly used steps and back, by the Gaussian distribution function; without parameters.

    Args:
        largest: Largest integer.
        companding: ``"cdf"``, or ``"clip"`` for none.

    Reference:
        Jacobellis, Yadwadkar: "Learned compression for compressed learning", 2025.
    """

    def __init__(self, largest: int, companding: Companding = "cdf") -> None:
        super().__init__()
        self.largest, self.companding = largest, companding
        self.scale = largest / _SPREAD
        # Just within the last step, so that what rounds never leaves the range.
        self.reach = largest + 0.5 - 1e-3

    def forward(self, values: Tensor) -> Tensor:
        """Values on the scale of the integers, within plus and minus ``largest`` and one half."""
        if self.companding == "clip":
            return values.clamp(-self.reach, self.reach)
        return self.reach * torch.erf(values / (self.scale * math.sqrt(2)))

    def inverse(self, steps: Tensor) -> Tensor:
        """Values from integers; the outermost come back a little further in, as the inverse of the distribution has no end."""
        if self.companding == "clip":
            return steps
        inside = (steps / (2 * self.reach) + 0.5).clamp(_EDGE, 1 - _EDGE)
        return self.scale * math.sqrt(2) * torch.erfinv(2 * inside - 1)


class WallocNetwork(nn.Module):
    """Signal to latent to signal. Values of signals lie in [-0.5, 0.5].

    Args:
        config: Its shape.
        seed: Of the weights.
    """

    def __init__(self, config: WallocConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.packet = WaveletPacket(config.levels, config.ndim)
        self.compander = Compander(config.largest, config.companding)
        convolution = nn.Conv2d if config.ndim == 2 else nn.Conv1d
        inside, width = config.channels * self.packet.gain, config.width
        # Without a generator of their own the layers would draw from, and move, the global one.
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            self.encoder = convolution(inside, config.latent, 1)
            self.linear = convolution(config.latent, inside, 1)
            blocks = [Residual(convolution, width) for _ in range(config.blocks)]
            first, last = convolution(config.latent, width, 3, padding=1), convolution(width, inside, 3, padding=1)
            self.deep = nn.Sequential(first, *blocks, Normalise(width), nn.SiLU(), last) if blocks else None
        self.to_empty(device="cpu")
        initialise(self, torch.Generator().manual_seed(seed))
        # The deep branch begins at zero, so that training begins at the linear codec.
        if self.deep is not None:
            nn.init.zeros_(self.deep[-1].weight)  # type: ignore[arg-type]

    @torch.no_grad()
    def start_from(self, signals: Tensor) -> None:
        """Set the codec to the principal components of the packets of ``signals``, scaled to the integers: where training begins best."""
        config = self.config
        rows = self.packet.forward(signals).movedim(1, -1).flatten(0, -2).double()
        mean = rows.mean(0)
        _, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
        components = vectors[:, -config.latent :].flip(1).T
        # Where steps grow wide the error of rounding does: all but a thousandth of each latent lies well inside, as bright skies must.
        far = ((rows - mean) @ components.T).abs().quantile(_COVERED, 0).clamp(min=1e-6)
        scale = (_INSIDE * self.compander.scale if config.companding == "cdf" else config.largest) / far
        for layer, weight, bias in (
            (self.encoder, scale[:, None] * components, -scale * (components @ mean)),
            (self.linear, components.T / scale, mean),
        ):
            assert layer.bias is not None
            layer.weight.copy_(weight.reshape(layer.weight.shape).float())
            layer.bias.copy_(bias.float())

    def latent(self, signal: Tensor) -> Tensor:
        """Latents before rounding, on the scale of the integers: ``[batch, latent, ...]`` of ``[batch, channels, ...]``."""
        steps: Tensor = self.compander(self.encoder(self.packet.forward(signal)))
        return steps

    def signal(self, steps: Tensor) -> Tensor:
        """Signal of latents, not yet clamped to its range."""
        values = self.compander.inverse(steps)
        bands = self.linear(values)
        return self.packet.inverse(bands if self.deep is None else bands + self.deep(values / self.compander.scale))

    def forward(self, signal: Tensor, generator: torch.Generator | None = None, training: Training = "noise") -> Tensor:
        """The decoded signal: rounded in eval mode, and with uniform noise, or as ``training`` says, in training mode."""
        steps = self.latent(signal)
        if not self.training:
            return self.signal(torch.round(steps))
        return self.signal(rounded_with_noise(steps, generator) if training == "noise" else steps)
