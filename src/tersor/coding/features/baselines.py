"""What a learned prior is measured against: the same split with plainly quantised features, and pictures sent as pictures."""

from __future__ import annotations

import io

import torch
from torch import Tensor, nn

from tersor.coding.features.student import EntropicStudent
from tersor.errors import InvalidArgument

# Bytes of a WebP file before its coded frame: RIFF header, chunk header, frame header.
_WEBP_HEADER = 30
_SCAN = b"\xff\xda"


class QuantisedStudent(EntropicStudent):
    """A bottleneck of few channels whose features are quantised evenly between their smallest and largest value: no prior, no rate.

    Args:
        teacher: As for :class:`EntropicStudent`.
        channels: Of the bottleneck; each costs ``bits`` a place.
        bits: 1 to 8.
        width: The hidden layers of the encoder have ``4 width`` and ``2 width`` channels.
        seed: Of the weights.

    Raises:
        InvalidArgument: On other bits.

    Reference:
        Matsubara, Baidya, Callegaro, Levorato, Singh: "Distilled split deep neural networks for edge-assisted real-time systems", 2019.
    """

    def __init__(self, teacher: nn.Sequential, channels: int = 1, bits: int = 8, *, width: int = 8, seed: int = 0) -> None:
        super().__init__(teacher, channels, width=width, seed=seed)
        if not 1 <= bits <= 8:
            raise InvalidArgument(f"features are quantised to 1 to 8 bits, got {bits}")
        self.bits = bits

    @property
    def nbytes(self) -> int:
        """Bytes of an image: packed levels, and the two ends of the range in half precision."""
        return -(-self.prior.channels * self.image[0] // 2 * self.image[1] // 2 * self.bits // 8) + 4

    def latent(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The latent on its levels, gradients straight through, and likelihoods of one: nothing is paid for bits."""
        latent = self.encoder(x)
        low = latent.detach().amin((1, 2, 3), keepdim=True)
        step = (latent.detach().amax((1, 2, 3), keepdim=True) - low).clamp(min=1e-6) / (2**self.bits - 1)
        levels = torch.round((latent.detach() - low) / step)
        return latent + (low + step * levels - latent).detach(), torch.ones_like(latent)


def as_picture(image: Tensor, form: str, quality: int, side: int | None = None) -> tuple[Tensor, int, int]:
    """An image sent as a picture file.

    Args:
        image: uint8 ``[3, h, w]``.
        form: ``"JPEG"`` or ``"WEBP"``.
        quality: Of that format.
        side: Height and width to which the image is reduced first, and enlarged from afterwards.

    Returns:
        The image that arrives, uint8 ``[3, h, w]``; the bytes of the file; and its bytes without headers and tables, as if those were
        agreed upon before.
    """
    import numpy as np
    from PIL import Image

    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    size = picture.size
    if side is not None:
        picture = picture.resize((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, form, quality=quality)
    data = file.getvalue()
    with Image.open(io.BytesIO(data)) as found:
        arrived = found.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(arrived)).permute(2, 0, 1), len(data), _payload(data, form)


def _payload(data: bytes, form: str) -> int:
    if form == "WEBP":
        return len(data) - _WEBP_HEADER
    scan = data.index(_SCAN)
    # Behind the scan's own header, without the mark of the end.
    return len(data) - (scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")) - 2
