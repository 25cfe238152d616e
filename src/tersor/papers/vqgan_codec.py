"""The VQGAN codec: a rate for each size of codebook, codebooks tuned after k-means, lost indices guessed from their neighbours."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tersor.papers.frame import Paper, Result, Row, measured

if TYPE_CHECKING:
    from torch import Tensor

    from tersor.coding.image_vq import ImageVQCodec, ImageVQJob

PAPER = Paper(
    key="vqgan-codec",
    claim="Smaller codebooks by k-means, tuned with encoder and decoder frozen, give lower rates at a monotone loss and lose less than "
    "k-means alone; a prior takes less than log2(K) bits an index; a transformer guesses lost indices better than a neighbour is copied.",
    where="tersor.coding.image_vq: ImageVQCodec, IndexPrior, IndexInpainter; tersor train-codec image_vq",
)

SEEDS = (0, 1, 2)
SHAPE: dict[str, Any] = {"stride": 4, "codes": 512, "smaller": "128,32,8", "width": 32, "embedding": 32}
LOSSES = (0.1, 0.2, 0.3, 0.5)
CLAIMED_LOSS = 0.2


@dataclass(frozen=True)
class Size:
    """Steps of all stages, and pictures measured."""

    steps: int
    pictures: int


FULL, QUICK = Size(450, 100), Size(60, 32)


def run(quick: bool) -> Result:
    """Three codecs on CIFAR-10: rates and errors of every codebook, tuned, not tuned and drawn at random, and indices lost on the way."""
    from tersor.papers.walloc import pictures_of

    size = QUICK if quick else FULL
    train, test = (((part + 0.5) * 255).round().byte() for part in (pictures_of("train"), pictures_of("test")))
    test = test[: size.pictures]
    rows: list[Row] = []
    for seed in SEEDS:
        job, untuned = _trained(train, seed, size.steps)
        rows += measured(_rates(job, untuned, test, seed))
        rows += measured(_losses(job, test, seed))
    checks = _checks(rows)
    notes = [f"{name}: {value:.3g} (must be above 0)" for name, value in checks.items()]
    return Result(
        rows, "k-means without tuning, log2(K) bits an index, a copy of the nearest neighbour", min(checks.values()), SEEDS,
        min(checks.values()) > 0, ("images/cifar10_lossless_part.npz",),
        [*notes, "trained by squared error, without the paper's perceptual and adversarial losses and its pretrained VQGAN, for which no "
         "weights are at hand; so nothing is said about perceptual quality against other codecs",
         "perceptual is the distance of random convolutional features; rates leave out headers and checksums, larger than such pictures"],
    )  # fmt: skip


_Plain = dict[int, "tuple[Tensor, Tensor]"]


def _trained(pictures: Tensor, seed: int, steps: int) -> tuple[ImageVQJob, _Plain]:
    """A finished training, and each reduced codebook before it was tuned with its thin layers, and likewise a random subset."""
    import torch

    from tersor.coding.image_vq import ImageVQJob, VQConfig
    from tersor.coding.training import run_job

    job = ImageVQJob(list(pictures), VQConfig(**SHAPE), steps, seed, crop=32, batch=16)
    run_job(job)
    random = torch.Generator().manual_seed(seed)
    network = job.network
    plain: _Plain = {}
    for number in range(1, len(network.heads)):
        head = network.head(number)
        tuned = {key: tensor.clone() for key, tensor in head.state_dict().items()}
        network.reduce(number, seed + number)
        base = network.head(0).codebook.detach()
        subset = base[torch.randperm(len(base), generator=random)[: len(head.codebook)]].clone()
        plain[number] = (head.codebook.detach().clone(), subset)
        head.load_state_dict(tuned)
    return job, plain


def _rates(job: ImageVQJob, plain: _Plain, pictures: Tensor, seed: int) -> Iterator[Row]:
    from tersor.coding.image_vq import ImageVQCodec
    from tersor.coding.image_vq.prior import OVERHEAD, UNIFORM

    for number, codes in enumerate(job.network.config.sizes):
        codec = ImageVQCodec(job.module, codes=codes)
        grids, decoded = _decoded(codec, pictures)
        pixels = pictures[:, 0].numel()
        prior = job.module.prior(number)
        yield {
            "method": "tuned", "codes": codes, "seed": seed, **_errors(decoded, pictures),
            "log2_bpp": math.log2(codes) / codec.config.stride**2,
            "uniform_bpp": sum(8 * (len(prior.encode(grid, UNIFORM)) - OVERHEAD) for grid in grids) / pixels,
            "prior_bpp": sum(8 * (len(prior.encode(grid)) - OVERHEAD) for grid in grids) / pixels,
            "static_bpp": _static_bits(job, number, grids) / pixels, "used": int(grids.unique().numel()),
        }  # fmt: skip
        for name, codebook in zip(("k-means", "random codewords"), plain.get(number, ()), strict=False):
            yield {"method": name, "codes": codes, "seed": seed, **_errors(_with_codebook(job, number, codebook, pictures), pictures)}


def _decoded(codec: ImageVQCodec, pictures: Tensor) -> tuple[Tensor, Tensor]:
    import torch

    with torch.no_grad():
        grids = codec.network.indices(pictures.float() / 127.5 - 1, codec.number)
        return grids, ((codec.network.pictures(grids, codec.number) + 1) / 2).clamp(0, 1)


def _with_codebook(job: ImageVQJob, number: int, codebook: Tensor, pictures: Tensor) -> Tensor:
    """Decoded with another codebook between the thin layers of the base."""
    import torch

    from tersor.coding.image_vq import ImageVQCodec

    head, base = job.network.head(number), job.network.head(0)
    kept = {key: tensor.clone() for key, tensor in head.state_dict().items()}
    with torch.no_grad():
        head.before.load_state_dict(base.before.state_dict())
        head.after.load_state_dict(base.after.state_dict())
        head.codebook.copy_(codebook)
        decoded = _decoded(ImageVQCodec(job.module, codes=job.network.config.sizes[number]), pictures)[1]
    head.load_state_dict(kept)
    return decoded


def _errors(decoded: Tensor, pictures: Tensor) -> Row:
    """Squared error, PSNR, and the distance of features of a fixed random network, which sees edges rather than brightness."""
    import torch
    from torch.nn import functional

    from tersor.coding.quality import psnr

    wanted = pictures.float() / 255
    random = torch.Generator().manual_seed(0)
    weights = [torch.randn(32, 3, 3, 3, generator=random) / 27**0.5, torch.randn(32, 32, 3, 3, generator=random) / 288**0.5]
    weights = [weight - weight.mean((2, 3), keepdim=True) for weight in weights]
    distance = 0.0
    x, y = decoded, wanted
    for weight in weights:
        x, y = (functional.avg_pool2d(functional.relu(functional.conv2d(values, weight, padding=1)), 2) for values in (x, y))
        distance += float((x - y).square().mean() / y.square().mean())
    return {"mse": float((decoded - wanted).square().mean()), "psnr": psnr(decoded, wanted), "perceptual": distance}


def _static_bits(job: ImageVQJob, number: int, grids: Tensor) -> float:
    """Under how often each index occurs in the training pictures."""
    import torch

    from tersor.coding.entropy import IntTable

    seen = torch.cat([grid.flatten() for _, grid in zip(range(1000), job.grids(number), strict=False)])
    table = IntTable.from_counts(seen.numpy(), job.network.config.sizes[number])
    return table.ideal_bits(grids.numpy())


def _losses(job: ImageVQJob, pictures: Tensor, seed: int) -> Iterator[Row]:
    """Indices lost at random: those guessed by the transformer beside the most frequent one and a copy of the nearest that arrived."""
    import torch

    from tersor.coding.image_vq import ImageVQCodec

    codec = ImageVQCodec(job.module)
    grids, decoded = _decoded(codec, pictures)
    codebook = codec.network.head(0).codebook.detach()
    frequent = int(torch.cat([grid.flatten() for _, grid in zip(range(200), job.grids(0), strict=False)]).mode().values)
    wanted = pictures.float() / 255
    yield {"method": "nothing lost", "lost": 0.0, "seed": seed, "mse": float((decoded - wanted).square().mean())}
    random = torch.Generator().manual_seed(seed)
    for share in LOSSES:
        lost = torch.rand(grids.shape, generator=random) < share
        lost[:, 0, 0] &= lost.flatten(1).float().mean(1) < 1
        fills = {
            "transformer": torch.stack([codec.model.inpainter.fill(g, m, codebook) for g, m in zip(grids, lost, strict=True)]),
            "transformer, 4 rounds": torch.stack([codec.model.inpainter.fill(g, m, codebook, 4) for g, m in zip(grids, lost, strict=True)]),
            "nearest neighbour": torch.stack([_copied(g, m) for g, m in zip(grids, lost, strict=True)]),
            "most frequent": grids.masked_fill(lost, frequent),
        }
        for name, filled in fills.items():
            with torch.no_grad():
                shown = ((codec.network.pictures(filled, 0) + 1) / 2).clamp(0, 1)
            right = float((filled == grids)[lost].float().mean())
            yield {"method": name, "lost": share, "seed": seed, "right": right, "mse": float((shown - wanted).square().mean())}


def _copied(grid: Tensor, lost: Tensor) -> Tensor:
    """Every lost place takes the index of the nearest place that arrived."""
    import torch
    from scipy.ndimage import distance_transform_edt

    if bool(lost.all()):
        return grid
    places = distance_transform_edt(lost.numpy(), return_distances=False, return_indices=True)
    return grid[torch.from_numpy(places[0]).long(), torch.from_numpy(places[1]).long()]


def _checks(rows: list[Row]) -> dict[str, float]:
    """What has to be above zero for the claim to hold: relative gaps, the worst over the seeds."""

    def of(method: str, key: str, **where: Any) -> list[float]:
        chosen = [row for row in rows if row["method"] == method and all(row.get(name) == value for name, value in where.items())]
        return [float(row[key]) for row in chosen]

    sizes = sorted({row["codes"] for row in rows if row["method"] == "tuned"})

    def rise(fewer: list[float], more: list[float]) -> float:
        return min(b / a - 1 for a, b in zip(fewer, more, strict=True))

    def rises(key: str) -> float:
        return min(map(rise, (of("tuned", key, codes=size) for size in sizes[1:]), (of("tuned", key, codes=size) for size in sizes)))

    def gains(better: str, worse: str, key: str, **where: Any) -> float:
        return min(1 - a / b for a, b in zip(of(better, key, **where), of(worse, key, **where), strict=True))

    at = {"lost": CLAIMED_LOSS}
    lossy = [of("nothing lost", "mse"), *(of("transformer", "mse", lost=share) for share in LOSSES)]
    return {
        "rise of the squared error with each smaller codebook": rises("mse"),
        "rise of the perceptual distance with each smaller codebook": rises("perceptual"),
        "what tuning takes off the error of k-means": min(gains("tuned", "k-means", "mse", codes=size) for size in sizes[:-1]),
        "what k-means takes off the error of random codewords": min(
            gains("k-means", "random codewords", "mse", codes=size) for size in sizes[:-1]
        ),
        "what the prior takes off log2(K)": min(1 - a / b for a, b in zip(of("tuned", "prior_bpp"), of("tuned", "log2_bpp"), strict=True)),
        "what the transformer takes off the error of a copy, 20 % lost": gains("transformer", "nearest neighbour", "mse", **at),
        "what the transformer takes off the error of the most frequent": gains("transformer", "most frequent", "mse", **at),
        "how much more often it is right than a copy": min(
            a - b for a, b in zip(of("transformer", "right", **at), of("nearest neighbour", "right", **at), strict=True)
        ),
        "rise of the error with the share lost": min(map(rise, lossy, lossy[1:])),
    }
