"""Training of WaLLoC: squared error with noise for rounding, nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tersor.coding.blocks import padded
from tersor.coding.pictures import holds_sounds, training_pictures, training_sounds
from tersor.coding.training import with_options
from tersor.coding.walloc.codec import Walloc, WallocCodec
from tersor.coding.walloc.network import Training, WallocConfig
from tersor.errors import InvalidArgument

# Four samples for each value of the latent, of which eight milliseconds of telephone speech have sixteen.
SOUND = WallocConfig(channels=1, levels=6, latent=16, bits=6, ndim=1)
_SOUND_CROP, _PICTURE_CROP = 4096, 64
_BATCH = 8
_RATE, _LAST_RATE = 1e-3, 1e-5
# Crops that the first encoder and the tables are computed from, at most.
_FITTED = 256
_TOGETHER = 64


class WallocJob:
    """One training of a WaLLoC codec, for :func:`tersor.coding.training.run_job`.

    Args:
        signals: ``[channels, ...]`` in [-0.5, 0.5], of any sizes.
        config: Shape of the codec.
        steps: Optimizer steps.
        seed: Of weights, crops and noise.
        data: Names the signals.
        training: What stands for rounding: ``"noise"``, or ``"none"`` for comparison.
        crop: Sides of the pieces trained on; the smallest side of the signals if that is smaller, rounded down to the codec's stride.
        batch: Pieces a step.
        rate: For sounds: samples a second.

    Raises:
        InvalidArgument: If there is no signal, or one is smaller than the stride.
    """

    def __init__(
        self, signals: Sequence[Tensor], config: WallocConfig, steps: int, seed: int = 0, *, data: str = "", training: Training = "noise",
        crop: int | None = None, batch: int = _BATCH, rate: int = 0,
    ) -> None:  # fmt: skip
        self.module = Walloc(config, seed)
        self.steps, self.seed, self.data, self.training, self.batch = steps, seed, data, training, batch
        self.config: dict[str, Any] = {**config.to_dict(), "rate": rate}
        stride = self.module.network.packet.stride
        self.signals = [padded(signal[None], stride)[0] for signal in signals]
        if not self.signals:
            raise InvalidArgument("there is nothing to train on")
        usual = _PICTURE_CROP if config.ndim == 2 else _SOUND_CROP
        smallest = min(min(signal.shape[1:]) for signal in self.signals)
        self.crop = max(min(crop or usual, smallest) // stride, 1) * stride
        self.module.network.start_from(self._crops(_FITTED, torch.Generator().manual_seed(seed)))
        self.optimizer = torch.optim.AdamW(self.module.network.parameters(), lr=_RATE, betas=(0.9, 0.99), weight_decay=0.0)

    def rate(self, step: int) -> float:
        """A short warm-up, then a cosine from the optimizer's rate to a hundredth of it."""
        warm = min((step + 1) / max(self.steps / 20, 1), 1.0)
        low = _LAST_RATE / _RATE
        return warm * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * step / self.steps)))

    def loss(self, step: int) -> Tensor:
        """Mean squared error of the batch of ``step``."""
        random = torch.Generator().manual_seed((self.seed + 1) * 1_000_003 + step)
        batch = self._crops(self.batch, random)
        error: Tensor = (self.module.network(batch, random, self.training) - batch).square().mean()
        return error

    @torch.no_grad()
    def finish(self) -> None:
        """Count the tables of the latents."""
        self.module.tables.fit(self._latents())

    def _crops(self, count: int, random: torch.Generator) -> Tensor:
        # A signal is drawn by its size, then a place in it.
        sizes = torch.tensor([float(signal[0].numel()) for signal in self.signals])
        chosen = torch.multinomial(sizes, count, replacement=True, generator=random).tolist()
        crops = []
        for index in chosen:
            signal = self.signals[index]
            begins = [int(torch.randint(side - self.crop + 1, (1,), generator=random)) for side in signal.shape[1:]]
            crops.append(signal[(slice(None), *(slice(begin, begin + self.crop) for begin in begins))])
        batch = torch.stack(crops)
        flip = torch.rand(1, generator=random).item() < 0.5
        return batch.flip(-1) if flip and batch.ndim == 4 else batch

    def _latents(self) -> Iterator[Tensor]:
        # Thousands of small pictures of one size go through at once.
        for _, same in groupby(self.signals, lambda signal: signal.shape):
            for batch in torch.stack(list(same)).split(_TOGETHER):
                latents = torch.round(self.module.network.latent(batch))
                yield latents[:, :, None] if latents.ndim == 3 else latents


def start(data: Path | None, steps: int, seed: int, options: Mapping[str, str]) -> WallocJob:
    """A training on pictures, or on sounds where ``data`` holds some; see :class:`tersor.coding.training.Trainable`."""
    if data is not None and holds_sounds(data):
        sounds, rate, said = training_sounds(data)
        config = with_options(SOUND, {"channels": str(sounds[0].shape[0]), **options})
        return WallocJob([sound.float() / 65534 for sound in sounds], config, steps, seed, data=said, rate=rate)
    pictures, said = training_pictures(data)
    config = with_options(WallocConfig(), options)
    return WallocJob([picture.float() / 255 - 0.5 for picture in pictures], config, steps, seed, data=said)


def load(config: dict[str, Any], tensors: dict[str, Tensor], fingerprint: str) -> WallocCodec:
    """The codec of saved files; see :class:`tersor.coding.training.Trainable`."""
    shape = {key: value for key, value in config.items() if key != "rate"}
    model = Walloc(WallocConfig(**shape))
    model.load_state_dict(tensors)
    return WallocCodec(model, fingerprint, int(config["rate"]))
