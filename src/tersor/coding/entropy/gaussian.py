"""A prior for latents of which another latent tells mean and spread: Gaussians from a table of scales."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from tersor.coding.entropy.escapes import EscapeTables, code_values, read_values
from tersor.coding.entropy.factorised import lower_bound, rounded_with_noise
from tersor.errors import InvalidArgument

SMALLEST_SCALE = 0.11
LARGEST_SCALE = 256.0
N_SCALES = 64
_FLOOR = 1e-9
# Parts of the distance between two entries to which both sides round before they look up: smaller differences seldom show.
_STEPS = 16


class GaussianConditional(nn.Module):
    """Gaussians of given scales and means, coded with one of 64 tables each; :class:`EntropyBottleneck` needs no scales.

    Encoder and decoder must compute the scales by the same code on the same shapes: they are rounded to a fixed grid of their logarithm
    before they choose a table, which hides rounding errors except on the grid's edges.

    Args:
        tail_mass: Probability left to values outside of the tables, which are coded by an escape.

    Example:
        >>> import torch
        >>> prior = GaussianConditional()
        >>> prior.update()
        >>> latent, scales = torch.tensor([0.2, -7.6, 1000.0]), torch.tensor([0.5, 4.0, 1.0])
        >>> prior.decompress(prior.compress(latent, scales), scales).tolist()
        [0.0, -8.0, 1000.0]

    Reference:
        Ballé, Minnen, Singh, Hwang, Johnston: "Variational image compression with a scale hyperprior", 2018.
        Minnen, Ballé, Toderici: "Joint autoregressive and hierarchical priors for learned image compression", 2018.
    """

    def __init__(self, tail_mass: float = 1e-9) -> None:
        super().__init__()
        if not 0 < tail_mass < 0.5:
            raise InvalidArgument(f"tail_mass must lie between 0 and one half, got {tail_mass}")
        self.tail_mass = tail_mass
        self.tables = EscapeTables()

    @staticmethod
    def scale_table() -> Tensor:
        """``[64]`` scales in float64, evenly spaced in their logarithm."""
        return torch.linspace(math.log(SMALLEST_SCALE), math.log(LARGEST_SCALE), N_SCALES, dtype=torch.float64).exp()

    def likelihood(self, values: Tensor, scales: Tensor) -> Tensor:
        """Probability of the step around ``values``, which are relative to their means."""
        scales = lower_bound(scales, SMALLEST_SCALE)
        distance = values.abs()
        return _phi((0.5 - distance) / scales) - _phi((-0.5 - distance) / scales)

    def forward(
        self, latent: Tensor, scales: Tensor, means: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The latent with noise (training) or rounded around its means (evaluation), and the likelihoods, all of the latent's shape."""
        centre = torch.zeros_like(latent) if means is None else means
        quantised = rounded_with_noise(latent, generator) if self.training else torch.round(latent - centre) + centre
        return quantised, lower_bound(self.likelihood(quantised - centre, scales), _FLOOR)

    @torch.no_grad()
    def indexes(self, scales: Tensor) -> Tensor:
        """Which table each scale is coded with: the first that is at least as wide, after rounding to the grid."""
        bounded = scales.detach().double().clamp(SMALLEST_SCALE, LARGEST_SCALE)
        step = math.log(LARGEST_SCALE / SMALLEST_SCALE) / (N_SCALES - 1)
        # Rounded so that the entries of the table lie on the grid, each with a margin around it.
        return torch.ceil(torch.round(torch.log(bounded / SMALLEST_SCALE) / step * _STEPS) / _STEPS).long()

    @torch.no_grad()
    def update(self) -> None:
        """Make the integer tables; needed once before :meth:`compress`, and kept in the ``state_dict``."""
        radius = -_normal_quantile(self.tail_mass / 2)
        pmfs, offsets = [], []
        for scale in self.scale_table():
            width = math.ceil(radius * float(scale))
            pmfs.append(self.likelihood(torch.arange(-width, width + 1, dtype=torch.float64), scale).numpy())
            offsets.append(-width)
        self.tables.set(pmfs, np.array(offsets), self.tail_mass)

    def compress(self, latent: Tensor, scales: Tensor, means: Tensor | None = None) -> bytes:
        """Code ``round(latent - means)``, all tensors of one shape.

        Raises:
            InvalidArgument: Before :meth:`update`, or if values are NaN, Inf or of other shapes.
        """
        centre = torch.zeros_like(latent) if means is None else means
        if latent.shape != scales.shape or latent.shape != centre.shape or not bool(torch.isfinite(scales).all()):
            raise InvalidArgument(
                f"latent, scales and means must share a shape and be finite, got {tuple(latent.shape)} and {tuple(scales.shape)}"
            )
        values = torch.round(latent.detach().float() - centre.detach().float())
        return code_values(values.double().numpy(), self.tables, self.indexes(scales).numpy())

    def decompress(self, data: bytes, scales: Tensor, means: Tensor | None = None) -> Tensor:
        """The rounded latent of the shape of ``scales``, float32.

        Raises:
            CorruptStream: If the bytes are damaged in a way that shows; keep a checksum for the others.
        """
        values = torch.from_numpy(read_values(data, self.tables, self.indexes(scales).numpy())).float()
        return values if means is None else values + means.detach().float()


def _phi(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-x * math.sqrt(0.5))


def _normal_quantile(probability: float) -> float:
    return float(torch.special.ndtri(torch.tensor(probability, dtype=torch.float64)))
