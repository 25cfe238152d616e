"""WaLLoC: noise for rounding and companding pay, the latent beats fewer pixels, as a picture and as what a classifier sees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tersor.papers.frame import Paper, Result, Row, measured

if TYPE_CHECKING:
    from torch import Tensor

    from tersor.coding.walloc import WallocCodec

PAPER = Paper(
    key="walloc",
    claim="Trained with noise for rounding, WaLLoC's integers lose less of a picture than without; at the same number of values they "
    "beat bicubic down-sampling by more than 1.5 dB, and a classifier that sees them beats one that sees the smaller pictures.",
    where="tersor.coding.walloc: WallocCodec, WaveletPacket; tersor train-codec walloc",
)

SEEDS = (0, 1, 2)
# One sixteenth of the values of a picture: 12 channels at an eighth of its sides, or a quarter of its sides. The bits are the paper's.
SHAPE: dict[str, Any] = {"levels": 3, "latent": 12, "bits": 4, "width": 64, "blocks": 2}
FACTOR = 4
VARIANTS: dict[str, tuple[dict[str, Any], Any]] = {
    "walloc": ({}, "noise"), "without noise": ({}, "none"), "without companding": ({"companding": "clip"}, "noise"),
}  # fmt: skip
BETTER = 1.5
LINEAR = 0.3


@dataclass(frozen=True)
class Size:
    """Steps of every training, and epochs of the classifiers."""

    steps: int
    linear: int
    epochs: int


FULL, QUICK = Size(300, 200, 40), Size(40, 20, 15)


def run(quick: bool) -> Result:
    """Codecs in three variants and three seeds on CIFAR-10, bounds of linear ones, mosaics of their latents, classifiers on them."""
    size = QUICK if quick else FULL
    train, test = (_labelled(part) for part in ("train", "test"))
    rows: list[Row] = []
    codecs: dict[int, WallocCodec] = {}
    for seed in SEEDS:
        for name in VARIANTS:
            codec = _trained(train[0], seed, size.steps, *VARIANTS[name])
            rows += measured([_row(name, seed, codec, test[0])])
            if name == "walloc":
                codecs[seed] = codec
    rows += measured(_bounds(train[0], test[0], size.linear, size.steps))
    rows += measured(_mosaics(codecs[0], test[0]))
    rows += measured(_classifiers(codecs, train, test, size.epochs))
    checks = _checks(rows)
    notes = [f"{name}: {value:.3g} (must be above 0)" for name, value in checks.items()]
    return Result(
        rows, "the same codec without noise, bicubic down-sampling to as many values, a classifier on that", min(checks.values()), SEEDS,
        min(checks.values()) > 0, ("images/cifar10_lossless_part.npz",),
        [*notes, "rates are those of tables counted on the training pictures, over the test pictures, without headers",
         "the decoder adds a network to a linear one that starts at principal components; the paper's is wider and trained for days"],
    )  # fmt: skip


def pictures_of(part: str) -> Tensor:
    """CIFAR-10 without JPEG's marks, ``"train"`` or ``"test"``: ``[n, 3, 32, 32]`` in [-0.5, 0.5]."""
    return _labelled(part)[0]


def _labelled(part: str) -> tuple[Tensor, Tensor]:
    import numpy as np
    import torch

    from tersor.data import folder

    with np.load(folder("images") / "cifar10_lossless_part.npz", allow_pickle=False) as file:
        names = [name for name in file.files if part in name]
        pixels = next(file[name] for name in names if file[name].ndim == 4)
        labels = next(file[name] for name in names if file[name].ndim == 1)
    return torch.from_numpy(pixels).float() / 255 - 0.5, torch.from_numpy(labels).long()


def _trained(pictures: Tensor, seed: int, steps: int, changes: dict[str, Any], training: Any) -> WallocCodec:
    from tersor.coding.training import run_job
    from tersor.coding.walloc import WallocCodec, WallocConfig, WallocJob

    job = WallocJob(list(pictures), WallocConfig(**{**SHAPE, **changes}), steps, seed, training=training, batch=32)
    run_job(job)
    return WallocCodec(job.module)


def _psnr(decoded: Tensor, pictures: Tensor) -> float:
    from tersor.coding.quality import psnr

    return psnr(decoded.clamp(-0.5, 0.5) + 0.5, pictures + 0.5)


def _latents(codec: WallocCodec, pictures: Tensor) -> Tensor:
    import torch

    with torch.no_grad():
        return torch.round(codec.network.latent(pictures))


def _decoded(codec: WallocCodec, latents: Tensor) -> Tensor:
    import torch

    with torch.no_grad():
        return codec.network.signal(latents)


def _row(name: str, seed: int, codec: WallocCodec, pictures: Tensor) -> Row:
    latents = _latents(codec, pictures)
    bits = codec.model.tables.ideal_bits(latents)
    return {
        "method": name, "seed": seed, "psnr": _psnr(_decoded(codec, latents), pictures), "bits_per_value": bits / latents.numel(),
        "bits_per_pixel": bits / pictures[:, 0].numel(), "values": latents[0].numel(),
    }  # fmt: skip


def _bounds(train: Tensor, test: Tensor, linear: int, steps: int) -> Iterator[Row]:
    """What down-sampling keeps, what principal components do, and how near a linear codec of many bits comes to them."""
    import torch
    from torch.nn import functional

    from tersor.coding.walloc import WallocConfig, WallocNetwork

    small = functional.interpolate(test, scale_factor=1 / FACTOR, mode="bicubic", antialias=True)
    back = functional.interpolate(small, scale_factor=FACTOR, mode="bicubic")
    yield {"method": "bicubic down and up, not rounded", "psnr": _psnr(back, test), "values": small[0].numel()}
    network = WallocNetwork(WallocConfig(**SHAPE))
    network.start_from(train)
    with torch.no_grad():
        packets = network.packet
        projected = packets.inverse(network.linear(network.encoder(packets.forward(test))))
    values = SHAPE["latent"] * test[0, 0].numel() // 4 ** SHAPE["levels"]
    yield {"method": "principal components, not rounded", "psnr": _psnr(projected, test), "values": values}
    others: tuple[tuple[str, dict[str, Any], str, int], ...] = (
        ("linear, 10 bits", {"blocks": 0, "bits": 10}, "noise", linear), ("walloc, 8 bits", {"bits": 8}, "noise", steps),
        ("walloc, 3 bits", {"bits": 3}, "noise", steps), ("without noise, 3 bits", {"bits": 3}, "none", steps),
    )  # fmt: skip
    for name, changes, training, count in others:
        yield _row(name, 0, _trained(train, 0, count, changes, training), test)


def _mosaics(codec: WallocCodec, pictures: Tensor) -> Iterator[Row]:
    """Latents of all pictures through lossless image formats, each channel a sheet of tiles, beside our tables."""
    import io

    from PIL import Image

    latents = _latents(codec, pictures)
    count, channels, height, width = latents.shape
    across = int(count**0.5)
    kept = latents[: across * across].reshape(across, across, channels, height, width)
    sheet = kept.permute(2, 0, 3, 1, 4).reshape(channels * across * height, across * width) + codec.config.largest
    for name, options in (("PNG", {"optimize": True}), ("WebP", {"lossless": True, "quality": 100, "method": 6})):
        out = io.BytesIO()
        Image.fromarray(sheet.byte().numpy()).save(out, name, **options)
        yield {"method": f"latents as {name}, one sheet", "bits_per_value": 8 * len(out.getvalue()) / sheet.numel()}
    ours = sum(len(codec.model.tables.encode(latent)) for latent in latents)
    yield {"method": "latents by our tables, each picture alone, checksums included", "bits_per_value": 8 * ours / latents.numel()}


def _classifiers(codecs: dict[int, WallocCodec], train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], epochs: int) -> Iterator[Row]:
    from torch.nn import functional

    def smaller(pictures: Tensor) -> Tensor:
        return functional.interpolate(pictures, scale_factor=1 / FACTOR, mode="bicubic", antialias=True)

    for seed in SEEDS:
        both = [pictures for pictures, _ in (train, test)]
        views = {
            "classifier on latents": [_latents(codecs[seed], pictures) for pictures in both],
            "classifier on smaller pictures": [smaller(pictures) for pictures in both],
        }
        for name, view in views.items():
            inputs = [values.flatten(1) for values in view]
            accuracy = _accuracy(inputs[0], train[1], inputs[1], test[1], seed, epochs)
            yield {"method": name, "seed": seed, "values": inputs[0].shape[1], "accuracy": accuracy}


def _accuracy(inputs: Tensor, labels: Tensor, held_out: Tensor, wanted: Tensor, seed: int, epochs: int) -> float:
    """Of two layers of 256 on standardised values, the same for every kind of input."""
    from itertools import pairwise

    import torch
    from torch.nn import functional

    random = torch.Generator().manual_seed(seed)
    mean, spread = inputs.mean(0), inputs.std(0).clamp(min=1e-6)
    inputs, held_out = (inputs - mean) / spread, (held_out - mean) / spread
    sizes = (inputs.shape[1], 256, 10)
    weights = [torch.randn(a, b, generator=random) / a**0.5 for a, b in pairwise(sizes)]
    biases = [torch.zeros(b) for b in sizes[1:]]
    parameters = [parameter.requires_grad_() for parameter in (*weights, *biases)]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)

    def logits(x: Tensor) -> Tensor:
        return functional.relu(x @ weights[0] + biases[0]) @ weights[1] + biases[1]

    for _ in range(epochs):
        for chosen in torch.randperm(len(inputs), generator=random).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(logits(inputs[chosen]), labels[chosen], label_smoothing=0.1).backward()
            optimizer.step()
    with torch.no_grad():
        return float((logits(held_out).argmax(1) == wanted).float().mean())


def _checks(rows: list[Row]) -> dict[str, float]:
    """What has to be above zero for the claim to hold; the worst over the seeds, for classifiers the mean."""

    def of(method: str, key: str) -> list[float]:
        return [float(row[key]) for row in rows if row["method"] == method]

    def gaps(first: str, second: str, key: str) -> list[float]:
        return [a - b for a, b in zip(of(first, key), of(second, key), strict=True)]

    bicubic = of("bicubic down and up, not rounded", "psnr")[0]
    components = of("principal components, not rounded", "psnr")[0]
    accuracy = gaps("classifier on latents", "classifier on smaller pictures", "accuracy")
    plain = zip(gaps("walloc", "without companding", "psnr"), gaps("without companding", "walloc", "bits_per_value"), strict=True)
    return {
        "dB that noise gains over none": min(gaps("walloc", "without noise", "psnr")),
        "dB or bits a value that companding gains": min(max(pair) for pair in plain),
        f"dB over bicubic beyond {BETTER}": min(of("walloc", "psnr")) - bicubic - BETTER,
        f"dB within {LINEAR} that the linear codec stays of principal components": LINEAR - components + of("linear, 10 bits", "psnr")[0],
        "dB that the network gains over principal components": of("walloc, 8 bits", "psnr")[0] - components,
        "accuracy that the latent gains": sum(accuracy) / len(accuracy),
    }
