"""Training of the vector-quantised codec in three stages: all of it, then the smaller codebooks, then what foretells indices."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tersor.coding.blocks import padded
from tersor.coding.image_vq.codec import ImageVQ, ImageVQCodec
from tersor.coding.image_vq.network import VQConfig
from tersor.coding.pictures import training_pictures
from tersor.coding.training import with_options
from tersor.errors import InvalidArgument

_CROP, _BATCH = 64, 8
# Shares of the steps: the whole codec, then its smaller codebooks; the rest goes to priors and inpainter.
_BASE, _FINE = 0.55, 0.15
_RATE = 1e-3
# Priors and inpainter are small, and see the last stage only.
_LATE_RATE = 3e-3
# Crops that the first codebook is drawn from.
_FIRST = 32
# Squared errors of pictures in [-1, 1] are a few hundredths.
_PICTURE = 10.0
_REVIVE = 25


class ImageVQJob:
    """One training of a vector-quantised codec, for :func:`tersor.coding.training.run_job`.

    Squared error takes the place of the paper's perceptual and adversarial losses, for which no weights come with Python: pictures are
    nearer to the originals in dB, and smoother, than a VQGAN's.

    Args:
        pictures: uint8 ``[3, height, width]`` of any sizes.
        config: Shape of the codec.
        steps: Optimizer steps of all stages.
        seed: Of weights and crops.
        data: Names the pictures.
        crop: Sides of the pieces trained on; that of the smallest picture if it is smaller.
        batch: Pieces a step.

    Raises:
        InvalidArgument: If there is no picture, or one is smaller than the stride.
    """

    def __init__(
        self, pictures: Sequence[Tensor], config: VQConfig, steps: int, seed: int = 0, *, data: str = "", crop: int = _CROP,
        batch: int = _BATCH,
    ) -> None:  # fmt: skip
        if not pictures:
            raise InvalidArgument("there is nothing to train on")
        self.pictures = [padded(picture[None], config.stride)[0] for picture in pictures]
        self.crop = min(crop, *(min(picture.shape[1:]) for picture in self.pictures)) // config.stride * config.stride
        window = self.crop // config.stride
        self.module = ImageVQ(config, window, seed)
        self.network = self.module.network
        self.steps, self.seed, self.data, self.batch = steps, seed, data, batch
        self.config: dict[str, Any] = {**config.to_dict(), "window": window}
        base, fine = round(_BASE * steps), round(_FINE * steps) if len(config.sizes) > 1 else 0
        self.ends = (base, base + fine)
        random = torch.Generator().manual_seed(seed)
        self.network.start_from(self._crops(_FIRST, random), random)
        late = [*self.module.priors.parameters(), *self.module.inpainter.parameters()]
        groups: list[dict[str, Any]] = [{"params": list(self.network.parameters())}, {"params": late, "lr": _LATE_RATE}]
        self.optimizer = torch.optim.AdamW(groups, lr=_RATE, betas=(0.9, 0.99), weight_decay=0.0)

    def rate(self, step: int) -> float:
        """A cosine to nearly zero in every stage."""
        first, end = self._stage(step)[1:]
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - first) / max(end - first, 1)))

    def loss(self, step: int) -> Tensor:
        """Loss of the batch of ``step`` in its stage."""
        random = torch.Generator().manual_seed((self.seed + 1) * 1_000_003 + step)
        stage, batch = self._stage(step)[0], self._crops(self.batch, random)
        if step == self.ends[0]:
            self._reduce()
        if stage == 0:
            self._thaw(self.network.encoder, self.network.decoder, self.network.head(0))
            return self._picture_loss(batch, self.network.encoder(batch), 0, random, step % _REVIVE == 0)
        if stage == 1:
            # Encoder and decoder stay as they are, and every smaller codebook has its turn.
            number = 1 + step % (len(self.network.heads) - 1)
            self._thaw(self.network.head(number))
            with torch.no_grad():
                features = self.network.encoder(batch)
            return self._picture_loss(batch, features, number, random, False)
        self._thaw(self.module.priors, self.module.inpainter)
        return self._foretelling_loss(batch, random)

    @torch.no_grad()
    def finish(self) -> None:
        """Round the priors to integers."""
        if self.ends[0] >= self.steps:
            # A training of a step or two has no later stages.
            self._reduce()
        for number in range(len(self.network.heads)):
            self.module.prior(number).freeze(self.network.head(number).codebook)

    def _stage(self, step: int) -> tuple[int, int, int]:
        """Number, first step and end of the stage of ``step``."""
        stage = sum(step >= end for end in self.ends)
        return stage, (0, *self.ends)[stage], (*self.ends, self.steps)[stage]

    def _reduce(self) -> None:
        for number in range(1, len(self.network.heads)):
            self.network.reduce(number, self.seed + number)

    def _picture_loss(self, batch: Tensor, features: Tensor, number: int, random: torch.Generator, revive: bool) -> Tensor:
        decoded, quantisation, latents, indices = self.network.losses(features, number)
        self.network.head(number).restart(latents, indices, random, revive)
        return _PICTURE * (decoded - batch).square().mean() + quantisation

    def _foretelling_loss(self, batch: Tensor, random: torch.Generator) -> Tensor:
        loss = torch.zeros(())
        with torch.no_grad():
            features = self.network.encoder(batch)
        for number in range(len(self.network.heads)):
            with torch.no_grad():
                indices = self.network.placed(features, number)
            codebook = self.network.head(number).codebook.detach()
            loss = loss + self.module.prior(number).loss(indices, codebook)
            if number == 0:
                loss = loss + self.module.inpainter.loss(indices, codebook, random)
        return loss

    def _thaw(self, *parts: nn.Module) -> None:
        self.module.requires_grad_(False)
        for part in parts:
            part.requires_grad_(True)

    def _crops(self, count: int, random: torch.Generator) -> Tensor:
        sizes = torch.tensor([float(picture[0].numel()) for picture in self.pictures])
        chosen = torch.multinomial(sizes, count, replacement=True, generator=random).tolist()
        return torch.stack([self._crop(self.pictures[index], random) for index in chosen]).float() / 127.5 - 1

    def _crop(self, picture: Tensor, random: torch.Generator) -> Tensor:
        top, left = (int(torch.randint(side - self.crop + 1, (1,), generator=random)) for side in picture.shape[1:])
        piece = picture[:, top : top + self.crop, left : left + self.crop]
        return piece.flip(-1) if torch.rand(1, generator=random).item() < 0.5 else piece

    def grids(self, number: int) -> Iterator[Tensor]:
        """Indices of the training pictures by a head."""
        with torch.no_grad():
            for picture in self.pictures:
                yield self.network.indices(picture[None].float() / 127.5 - 1, number)[0]


def start(data: Path | None, steps: int, seed: int, options: Mapping[str, str]) -> ImageVQJob:
    """A training on pictures; see :class:`tersor.coding.training.Trainable`."""
    pictures, said = training_pictures(data)
    return ImageVQJob(pictures, with_options(VQConfig(), options), steps, seed, data=said)


def load(config: dict[str, Any], tensors: dict[str, Tensor], fingerprint: str) -> ImageVQCodec:
    """The codec of saved files; see :class:`tersor.coding.training.Trainable`."""
    shape = {key: value for key, value in config.items() if key != "window"}
    model = ImageVQ(VQConfig(**shape), int(config["window"]))
    model.load_state_dict(tensors)
    return ImageVQCodec(model, fingerprint)
