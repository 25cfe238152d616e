"""Small image networks for experiments on compression during training: real pictures, one training loop, honest splits."""

from __future__ import annotations

import io
import math
import statistics
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.errors import InvalidArgument
from tersor.training import Compression, Method

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Part:
    """Pictures ``[n, channels, height, width]`` in float32, about standard normal, and labels ``[n]``."""

    pixels: Tensor
    labels: Tensor

    def take(self, index: Tensor) -> Part:
        """The pictures at ``index``."""
        return Part(self.pixels[index], self.labels[index])


@dataclass(frozen=True)
class Images:
    """A classification task; choices are made on ``validation``, and ``test`` is looked at once.

    Attributes:
        name: For the record.
    """

    name: str
    train: Part
    validation: Part
    test: Part

    @property
    def classes(self) -> int:
        """Number of labels."""
        return int(self.train.labels.max()) + 1


def cifar(n_train: int = 8000, n_validation: int = 2000, n_test: int = 5000, seed: int = 0) -> Images:
    """CIFAR-10 as re-compressed JPEG; train and validation are disjoint draws of its training pictures.

    Raises:
        InvalidArgument: If ``TERSOR_DATA`` has it not.
    """
    train, test = _cifar_part("train"), _cifar_part("test")
    return _split("CIFAR-10 (JPEG)", train, test, (n_train, n_validation, n_test), seed)


def mnist(n_train: int = 8000, n_validation: int = 2000, n_test: int = 10000, seed: int = 0) -> Images:
    """MNIST.

    Raises:
        InvalidArgument: If ``TERSOR_DATA`` has it not.
    """
    import numpy as np

    from tersor import data

    with np.load(data.folder("images") / "mnist.npz", allow_pickle=False) as file:
        train, test = (
            Part(_normal(torch.from_numpy(file[f"x_{key}"])[:, None]), torch.from_numpy(file[f"y_{key}"]).long())
            for key in ("train", "test")
        )
    return _split("MNIST", train, test, (n_train, n_validation, n_test), seed)


def digits(seed: int = 0) -> Images:
    """The 1,797 digits of 8 x 8 pixels that scikit-learn ships: 1,000 to train, 200 to validate, 597 to test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels, labels = torch.from_numpy(bunch.images).float()[:, None] * (255 / 16), torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    whole = Part(_normal(pixels.to(torch.uint8)), labels)
    return _split("digits", whole.take(order[:1200]), whole.take(order[1200:]), (1000, 200, 597), seed)


class SmallConvNet(nn.Module):
    """Three convolutions with norms, halving the picture after each, and a classifier: 2.8 million products at 3 x 32 x 32.

    Args:
        channels: Of the input.
        classes: Labels.
        width: Channels of the first convolution; the others have twice and four times as many.
        seed: Of the initial weights.
    """

    def __init__(self, channels: int = 3, classes: int = 10, width: int = 16, seed: int = 0) -> None:
        super().__init__()
        widths = [channels, width, 2 * width, 4 * width]
        for index, (before, after) in enumerate(pairwise(widths), 1):
            self.add_module(f"conv{index}", nn.Conv2d(before, after, 3, padding=1, bias=False))
            self.add_module(f"norm{index}", nn.BatchNorm2d(after))
        self.head = nn.Linear(4 * width, classes)
        initialize(self, seed)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits ``[n, classes]`` of ``pixels``."""
        for index in (1, 2, 3):
            convolution, norm = self.get_submodule(f"conv{index}"), self.get_submodule(f"norm{index}")
            pixels = torch.relu(norm(convolution(pixels)))
            if min(pixels.shape[2:]) > 1:
                pixels = F.max_pool2d(pixels, 2)
        logits: Tensor = self.head(pixels.mean((2, 3)))
        return logits


def initialize(model: nn.Module, seed: int) -> nn.Module:
    """Draw the matrices and kernels of ``model`` from a He normal and set its biases to zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * math.sqrt(2 / parameter[0].numel())
        elif name.endswith("bias"):
            parameter.data.zero_()
    return model


@dataclass(frozen=True)
class Plan:
    """How a network is trained: SGD with Nesterov momentum and a cosine schedule.

    Attributes:
        epochs: Passes over the training pictures.
        rate: Peak learning rate.
        batch: Pictures a step.
        decay: Weight decay.
        flip: Mirror half of the pictures; not for digits.
        cycles: How often all that is repeated, the schedule of the rate from its start: for methods that train in rounds.
    """

    epochs: int = 6
    rate: float = 0.1
    batch: int = 128
    decay: float = 5e-4
    flip: bool = True
    cycles: int = 1

    def steps(self, images: Images) -> int:
        """Steps of the whole training."""
        return self.cycles * self.epochs * (len(images.train.labels) // self.batch)


@dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes:
        model: Plain modules, after ``finalize``.
        compression: The methods' counter, ``None`` for a plain training.
        seconds: Of the training.
        validation: Accuracy by epoch.
    """

    model: nn.Module
    compression: Compression | None
    seconds: float
    validation: list[float]


def fit(
    model: nn.Module, images: Images, plan: Plan, *, seed: int, methods: Sequence[Method] = (), loss: Loss = F.cross_entropy,
    finalize: bool = True,
) -> Trained:  # fmt: skip
    """Train ``model`` on ``images``, with ``methods`` on board.

    Args:
        model: Changed in place.
        images: Trains on ``train``; accuracies by epoch are of ``validation``.
        plan: Epochs and rates.
        seed: Of the order of pictures, of mirroring and of what methods draw.
        methods: What compresses the model meanwhile.
        loss: Of logits ``[n, classes]`` and labels ``[n]``.
        finalize: Leave plain modules; off to go on with the same compression.
    """
    total = plan.steps(images)
    compression = None
    if methods:
        compression = Compression(model, methods, total_steps=total, seed=seed, example_inputs=(images.train.pixels[:2],))
    optimizer = torch.optim.SGD(model.parameters(), lr=plan.rate, momentum=0.9, nesterov=True, weight_decay=plan.decay)
    if compression is not None:
        compression.attach(optimizer)
    rates = [group["lr"] for group in optimizer.param_groups]
    generator = torch.Generator().manual_seed(seed)
    cycle = total // plan.cycles
    began, step, history = time.perf_counter(), 0, []
    for _ in range(plan.cycles * plan.epochs):
        model.train()
        order = torch.randperm(len(images.train.labels), generator=generator)
        for index in order.split(plan.batch)[: len(order) // plan.batch]:
            for group, rate in zip(optimizer.param_groups, rates, strict=False):
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * (step % cycle) / cycle))
            pixels = images.train.pixels[index]
            if plan.flip:
                mirrored = torch.rand(len(index), 1, 1, 1, generator=generator) < 0.5
                pixels = torch.where(mirrored, pixels.flip(3), pixels)
            optimizer.zero_grad()
            loss(model(pixels), images.train.labels[index]).backward()
            optimizer.step()
            step += 1
        history.append(accuracy(model, images.validation))
        if compression is not None:
            compression.epoch_end({"accuracy": history[-1]})
    if compression is not None and finalize:
        compression.finalize()
    return Trained(model.eval(), compression, time.perf_counter() - began, history)


@torch.no_grad()
def accuracy(model: nn.Module, part: Part, batch: int = 500) -> float:
    """Share of ``part`` that ``model`` labels right, in evaluation mode; the mode is left as it was."""
    training = model.training
    model.eval()
    batches = zip(part.pixels.split(batch), part.labels.split(batch), strict=True)
    right = sum(int((model(pixels).argmax(1) == labels).sum()) for pixels, labels in batches)
    model.train(training)
    return right / len(part.labels)


@torch.no_grad()
def recalibrate(model: nn.Module, pixels: Tensor, batch: int = 128) -> None:
    """Estimate the statistics of every batch norm anew on ``pixels``, after a change of the weights before it."""
    norms = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    kept = [(layer.momentum, layer.training) for layer in norms]
    model.eval()
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    for part in pixels.split(batch):
        model(part)
    for layer, (momentum, training) in zip(norms, kept, strict=True):
        layer.momentum = momentum
        layer.train(training)


@torch.no_grad()
def products(model: nn.Module, pixels: Tensor) -> int:
    """Multiplications of one picture in linear layers and convolutions."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model.eval()(pixels)
    return int(counter.get_total_flops()) // 2 // len(pixels)


def latency(path: Any, pixels: Tensor, repeats: int = 30) -> float:
    """Median milliseconds of one pass of an ONNX file over ``pixels`` in onnxruntime, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: pixels.numpy()}
    session.run(None, feed)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def _normal(pixels: Tensor) -> Tensor:
    """Bytes as float32 with mean zero and deviation one by channel."""
    values = pixels.float() / 255
    mean, deviation = values.mean((0, 2, 3), keepdim=True), values.std((0, 2, 3), keepdim=True)
    return (values - mean) / deviation


def _split(name: str, train: Part, test: Part, sizes: tuple[int, int, int], seed: int) -> Images:
    n_train, n_validation, n_test = sizes
    if n_train + n_validation > len(train.labels):
        raise InvalidArgument(f"{name} has {len(train.labels)} training pictures, fewer than {n_train} + {n_validation}; ask for fewer")
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed))
    validation = train.take(order[n_train : n_train + n_validation])
    # The test pictures are the same whatever the seed.
    fixed = torch.randperm(len(test.labels), generator=torch.Generator().manual_seed(0))[:n_test]
    return Images(name, train.take(order[:n_train]), validation, test.take(fixed))


@cache
def _cifar_part(part: str) -> Part:
    import numpy as np
    from PIL import Image

    from tersor import data

    pictures, labels = [], []
    with zipfile.ZipFile(data.folder("images") / "cifar10_jpeg.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.startswith(f"{part}/") and name.endswith(".jpg"))
        classes = sorted({name.split("/")[1] for name in names})
        for name in names:
            pictures.append(np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")))
            labels.append(classes.index(name.split("/")[1]))
    return Part(_normal(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)), torch.tensor(labels))
