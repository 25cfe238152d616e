"""The vector-quantised codec on files: a grid of indices to bytes that a new process decodes with the trained codec and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tersor.coding.blocks import padded
from tersor.coding.errors import CorruptStream
from tersor.coding.image_vq.inpainting import IndexInpainter
from tersor.coding.image_vq.network import VQConfig, VQNetwork
from tersor.coding.image_vq.prior import LEARNED, UNIFORM, IndexPrior
from tersor.coding.pictures import MOST_PIXELS, read_picture, write_picture
from tersor.errors import InvalidArgument


class ImageVQ(nn.Module):
    """The network, a prior for each of its codebooks, and the inpainter of the base codebook: everything that is saved.

    Args:
        config: Shape.
        window: Places a side that the inpainter looks at together.
        seed: Of the weights.
    """

    def __init__(self, config: VQConfig, window: int = 8, seed: int = 0) -> None:
        super().__init__()
        self.network = VQNetwork(config, seed)
        self.priors = nn.ModuleList(IndexPrior(size, config.embedding, seed=seed + 1) for size in config.sizes)
        self.inpainter = IndexInpainter(config.codes, config.embedding, window, seed=seed + 2)

    def prior(self, number: int) -> IndexPrior:
        """The prior of a rate, the base first."""
        prior = self.priors[number]
        assert isinstance(prior, IndexPrior)
        return prior


class ImageVQCodec:
    """Pictures at a few hundredths of a bit a pixel: recognisable, not faithful; use :class:`WallocCodec` where pixels matter.

    Args:
        model: Trained, with its priors.
        fingerprint: Of its weights, written to every file.
        codes: Which of its codebooks encodes: fewer codewords, fewer bytes. The base codebook without it; files tell which.

    Raises:
        InvalidArgument: If there is no codebook of so many codewords.

    Reference:
        Mao et al.: "Extreme image compression using fine-tuned VQGANs", 2024.
    """

    name = "image_vq"

    def __init__(self, model: ImageVQ, fingerprint: str = "", codes: int | None = None) -> None:
        self.model = model.eval()
        self.network = model.network
        self.config = model.network.config
        self.fingerprint = fingerprint
        self.codes = self.config.codes if codes is None else codes
        self.number = self._number(self.codes)

    def with_codes(self, codes: int) -> ImageVQCodec:
        """This codec, encoding with another of its codebooks."""
        other = copy.copy(self)
        other.codes, other.number = codes, self._number(codes)
        return other

    @torch.no_grad()
    def indices(self, picture: Tensor) -> Tensor:
        """int64 ``[rows, columns]`` of a picture ``[3, height, width]`` in [0, 1], of any size."""
        if picture.ndim != 3 or picture.shape[0] != 3 or not picture.numel() or not bool(picture.isfinite().all()):
            raise InvalidArgument(f"a picture is [3, height, width] without NaN or Inf, got {tuple(picture.shape)}")
        return self.network.indices(padded(2 * picture[None].float() - 1, self.config.stride), self.number)[0]

    @torch.no_grad()
    def reconstruct(self, indices: Tensor, sides: tuple[int, int], lost: Tensor | None = None, rounds: int = 1) -> Tensor:
        """The picture ``[3, *sides]`` of indices, in [0, 1].

        Args:
            indices: int64 ``[rows, columns]``.
            sides: Height and width.
            lost: bool ``[rows, columns]``: indices that did not arrive and are guessed; of the base codebook only.
            rounds: See :meth:`IndexInpainter.fill`.

        Raises:
            InvalidArgument: If indices were lost of another than the base codebook.
        """
        if lost is not None and bool(lost.any()):
            if self.number != 0:
                raise InvalidArgument(f"lost indices are guessed for the base codebook of {self.config.codes}, not for {self.codes}")
            indices = self.model.inpainter.fill(indices, lost, self.network.head(0).codebook, rounds)
        picture = self.network.pictures(indices[None], self.number)[0]
        return ((picture + 1) / 2).clamp(0, 1)[:, : sides[0], : sides[1]]

    def compress(self, picture: Tensor) -> bytes:
        """Bytes of a picture ``[3, height, width]`` in [0, 1]; its size is not part of them."""
        prior, indices = self.model.prior(self.number), self.indices(picture)
        # A picture unlike those of the training may be dearer under the prior than without it.
        return min((prior.encode(indices, mode) for mode in (LEARNED, UNIFORM)), key=len)

    def decompress(self, data: bytes, sides: tuple[int, int]) -> Tensor:
        """The picture that :meth:`compress` coded, equal to :meth:`reconstruct` of its indices.

        Raises:
            CorruptStream: If the bytes are damaged or too few for the sides.
        """
        rows, columns = (-(-side // self.config.stride) for side in sides)
        return self.reconstruct(self.model.prior(self.number).decode(data, rows, columns), sides)

    def encode(self, data: bytes) -> tuple[dict[str, Any], list[bytes]]:
        """Header and stream of a picture file.

        Raises:
            InvalidArgument: If it is none.
        """
        picture = read_picture(data)
        return {"codes": self.codes, "sides": list(picture.shape[1:])}, [self.compress(picture.float() / 255)]

    def decode(self, header: Mapping[str, Any], streams: tuple[bytes, ...]) -> bytes:
        """A PNG.

        Raises:
            CorruptStream: If header and stream are not what :meth:`encode` makes.
        """
        sides, codes = header.get("sides"), header.get("codes")
        if not isinstance(sides, list) or len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
            raise CorruptStream("the header of the compressed file lacks the size of its picture")
        if len(streams) != 1 or sides[0] * sides[1] > MOST_PIXELS or type(codes) is not int or codes not in self.config.sizes:
            raise CorruptStream("the compressed file names a codebook that its codec does not have, or a size beyond all limits")
        picture = self.with_codes(codes).decompress(streams[0], (sides[0], sides[1]))
        return write_picture(torch.round(picture * 255).to(torch.uint8))

    def _number(self, codes: int) -> int:
        if codes not in self.config.sizes:
            raise InvalidArgument(f"this codec has codebooks of {', '.join(map(str, self.config.sizes))} codewords, not of {codes}")
        return self.config.sizes.index(codes)
