"""The network of the vector-quantised codec: one encoder and decoder, and a codebook with two thin layers for each rate."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tersor.coding.blocks import Normalise, Residual, initialise
from tersor.errors import InvalidArgument

STRIDES = (4, 8, 16)
Start = Literal["latents", "codebook"]
_MOST_CODES, _MOST_WIDTH = 1 << 14, 2048
# Latents that are compared with a codebook at once.
_CHUNK = 1 << 14
_DECAY = 0.98


@dataclass(frozen=True)
class VQConfig:
    """Shape and losses of a vector-quantised codec.

    Attributes:
        stride: Pixels a side of what one index stands for: 4, 8 or 16.
        codes: Codewords of the base codebook; the rate is ``log2(codes) / stride ** 2`` bits a pixel before the prior.
        smaller: Codewords of the reduced codebooks, separated by commas: one rate each, with the same encoder and decoder.
        width: Channels of encoder and decoder.
        embedding: Dimensions of a codeword.
        commitment: Weight of the term that holds latents to their codewords.
        legacy_beta: Not 0: put that weight on the codewords' own term instead, as the original code does.
        start: Where reduced codebooks start from: k-means of the base codewords as they are used (``"latents"``), or each counted once
            (``"codebook"``, as in the paper).
    """

    stride: int = 8
    codes: int = 512
    smaller: str = "128,32,8"
    width: int = 64
    embedding: int = 32
    commitment: float = 0.25
    legacy_beta: int = 0
    start: Start = "latents"

    def __post_init__(self) -> None:
        if self.stride not in STRIDES or self.start not in ("latents", "codebook"):
            raise InvalidArgument(f"stride must be one of {STRIDES}, start 'latents' or 'codebook', got {self.stride} and {self.start!r}")
        widths = (self.width, self.embedding)
        if any(type(width) is not int or not 1 <= width <= _MOST_WIDTH for width in widths) or not self.commitment >= 0:
            raise InvalidArgument(f"width and embedding must be 1 to {_MOST_WIDTH}, commitment 0 or more, got {self}")
        if any(not 2 <= size <= _MOST_CODES for size in self.sizes) or list(self.sizes) != sorted(set(self.sizes), reverse=True):
            raise InvalidArgument(f"codebooks have 2 to {_MOST_CODES} codewords, each smaller than the one before it; got {self.sizes}")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codewords of every codebook, the base first."""
        try:
            return (int(self.codes), *(int(size) for size in self.smaller.split(",") if size.strip()))
        except ValueError:
            raise InvalidArgument(f"smaller is a list such as 128,32,8, got {self.smaller!r}") from None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


class Head(nn.Module):
    """A codebook between two thin layers: what differs from rate to rate.

    Args:
        config: Of the codec.
        codes: Codewords.
    """

    def __init__(self, config: VQConfig, codes: int) -> None:
        super().__init__()
        self.before = nn.Conv2d(config.width, config.embedding, 1)
        self.after = nn.Conv2d(config.embedding, config.width, 1)
        self.codebook = nn.Parameter(torch.empty(codes, config.embedding))
        # How often each codeword was used lately; those never used are given a new place.
        self.usage: Tensor
        self.register_buffer("usage", torch.empty(codes))

    @torch.no_grad()
    def nearest(self, latents: Tensor) -> Tensor:
        """The codeword nearest to each of ``[n, embedding]``, the first of several: int64 ``[n]``."""
        half = self.codebook.square().sum(1) / 2
        return torch.cat([(half - part @ self.codebook.T).argmin(1) for part in latents.split(_CHUNK)])

    @torch.no_grad()
    def restart(self, latents: Tensor, indices: Tensor, random: torch.Generator, revive: bool) -> None:
        """Keep the counts of use, and move codewords that nothing is near to onto latents of the batch."""
        counts = torch.bincount(indices, minlength=len(self.codebook)).float()
        self.usage.mul_(_DECAY).add_(counts, alpha=1 - _DECAY)
        dead = self.usage < 0.02 * self.usage.mean()
        if revive and bool(dead.any()):
            chosen = torch.randint(len(latents), (int(dead.sum()),), generator=random)
            self.codebook[dead] = latents[chosen]
            self.usage[dead] = self.usage.mean()


class VQNetwork(nn.Module):
    """Pictures ``[batch, 3, height, width]`` in [-1, 1], sides multiples of the stride, to indices and back.

    Args:
        config: Its shape.
        seed: Of the weights.

    Reference:
        Mao et al.: "Extreme image compression using fine-tuned VQGANs", 2024; Esser, Rombach, Ommer: "Taming transformers for
        high-resolution image synthesis", 2021.
    """

    def __init__(self, config: VQConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        width, stem = config.width, config.stride // 2
        wide = width + width // 2
        # Without a generator of their own the layers would draw from, and move, the global one.
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            self.encoder = nn.Sequential(
                nn.PixelUnshuffle(stem), nn.Conv2d(3 * stem * stem, width, 3, padding=1), Residual(nn.Conv2d, width),
                nn.PixelUnshuffle(2), nn.Conv2d(4 * width, wide, 1), Residual(nn.Conv2d, wide), Residual(nn.Conv2d, wide),
                Normalise(wide), nn.SiLU(), nn.Conv2d(wide, width, 1),
            )  # fmt: skip
            self.decoder = nn.Sequential(
                nn.Conv2d(width, wide, 3, padding=1), Residual(nn.Conv2d, wide), Residual(nn.Conv2d, wide),
                nn.Conv2d(wide, 4 * width, 1), nn.PixelShuffle(2), Residual(nn.Conv2d, width), Residual(nn.Conv2d, width),
                Normalise(width), nn.SiLU(), nn.Conv2d(width, 3 * stem * stem, 3, padding=1), nn.PixelShuffle(stem),
            )  # fmt: skip
            self.heads = nn.ModuleList(Head(config, size) for size in config.sizes)
        self.to_empty(device="cpu")
        initialise(self, torch.Generator().manual_seed(seed))
        for number in range(len(self.heads)):
            nn.init.ones_(self.head(number).usage)

    def head(self, number: int) -> Head:
        """The head of a rate, the base first."""
        head = self.heads[number]
        assert isinstance(head, Head)
        return head

    @torch.no_grad()
    def start_from(self, pictures: Tensor, random: torch.Generator) -> None:
        """Set the base codebook to latents of ``pictures``: codewords that begin elsewhere are never used."""
        head = self.head(0)
        latents = head.before(self.encoder(pictures)).movedim(1, -1).flatten(0, -2)
        chosen = torch.randint(len(latents), (len(head.codebook),), generator=random)
        head.codebook.copy_(latents[chosen] + 1e-3 * torch.randn(head.codebook.shape, generator=random))

    @torch.no_grad()
    def reduce(self, number: int, seed: int, start: Start | None = None) -> None:
        """Start the codebook of a smaller rate at k-means of the base codewords, its thin layers at those of the base."""
        from sklearn.cluster import KMeans

        base, head = self.head(0), self.head(number)
        head.before.load_state_dict(base.before.state_dict())
        head.after.load_state_dict(base.after.state_dict())
        weights = base.usage.double().numpy() if (start or self.config.start) == "latents" else None
        fitted = KMeans(len(head.codebook), n_init=1, random_state=seed).fit(base.codebook.double().numpy(), sample_weight=weights)
        head.codebook.copy_(torch.from_numpy(fitted.cluster_centers_).float())
        nn.init.ones_(head.usage)

    def indices(self, pictures: Tensor, number: int) -> Tensor:
        """int64 ``[batch, height / stride, width / stride]``: the codeword of every place, by the head of a rate."""
        return self.placed(self.encoder(pictures), number)

    def placed(self, features: Tensor, number: int) -> Tensor:
        """Indices of what the encoder made of pictures."""
        latents = self.head(number).before(features)
        return self.head(number).nearest(latents.movedim(1, -1).flatten(0, -2)).reshape(latents.shape[0], *latents.shape[2:])

    def pictures(self, indices: Tensor, number: int) -> Tensor:
        """Pictures of indices ``[batch, rows, columns]``, not yet clamped to [-1, 1]."""
        head = self.head(number)
        decoded: Tensor = self.decoder(head.after(head.codebook[indices].movedim(-1, 1)))
        return decoded

    def losses(self, features: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Training pass from features of the encoder.

        Args:
            features: ``[batch, width, rows, columns]``.
            number: Of the head.

        Returns:
            Decoded pictures, with the gradient of the codewords passed straight through to the features; the quantisation loss; latents
            ``[n, embedding]``; and their indices ``[n]``.
        """
        head, config = self.head(number), self.config
        latents = head.before(features).movedim(1, -1)
        flat = latents.flatten(0, -2)
        indices = head.nearest(flat.detach())
        codewords = head.codebook[indices].reshape(latents.shape)
        to_codes, to_latents = (codewords - latents.detach()).square().mean(), (codewords.detach() - latents).square().mean()
        quantisation = config.commitment * to_codes + to_latents if config.legacy_beta else to_codes + config.commitment * to_latents
        passed = latents + (codewords - latents).detach()
        return self.decoder(head.after(passed.movedim(-1, 1))), quantisation, flat.detach(), indices
