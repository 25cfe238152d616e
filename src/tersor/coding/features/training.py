"""The codec ``features`` of ``tersor train-codec``: its training, and small images to bytes to what a network says of them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from tersor.coding.errors import CorruptStream
from tersor.coding.features.fitting import FitConfig, batches, rate, stage1_loss, stage2_loss, start_blocks
from tersor.coding.features.resnet import CIFAR10, cifar_resnet, load_teacher, normalise
from tersor.coding.features.student import EntropicStudent, Transform
from tersor.coding.training import with_options
from tersor.errors import InvalidArgument

NAME = "features"
TEACHER, IMAGES = "resnet20-12fca82f.th", "cifar10_lossless_part.npz"
# Of the steps, the part that learns to resemble the teacher.
_FIRST = 0.6
_RATE, _SECOND_RATE = 1e-3, 0.3
_BATCH = 32
# Bounds of a saved configuration; nothing larger is built from a file.
_MOST_CHANNELS, _DEEPEST, _MOST_CLASSES = 256, 110, 1000


@dataclass(frozen=True)
class FeatureSettings:
    """What ``tersor train-codec features --option`` sets.

    Attributes:
        channels: Of the latent.
        beta: Price of a bit; the default is of the middle of the curve, somewhat over a hundred bytes an image.
        transform: Of :class:`EntropicStudent`; ``"convolutions"`` takes some 8 channels, and many more steps.

    Raises:
        InvalidArgument: If one is out of range.
    """

    channels: int = 64
    beta: float = 12.0
    transform: str = "blocks"

    def __post_init__(self) -> None:
        if not 1 <= self.channels <= _MOST_CHANNELS or not 0 < self.beta < float("inf"):
            raise InvalidArgument(f"channels must be 1 to {_MOST_CHANNELS} and beta positive, got {self.channels} and {self.beta}")
        if self.transform not in get_args(Transform):
            raise InvalidArgument(f"transform must be one of {', '.join(get_args(Transform))}, got {self.transform!r}")


class FeatureJob:
    """Both stages as one training of ``steps`` steps. One optimizer, Adam, serves both, so that one state resumes either.

    Args:
        teacher: A trained network, frozen.
        images: uint8 ``[n, 3, 32, 32]``.
        labels: ``[n]``.
        config: ``channels``, ``beta``, ``transform``, ``depth`` and ``classes``.
        steps: In all.
        seed: Of weights and batches.
        data: Names the data.
    """

    def __init__(
        self, teacher: nn.Sequential, images: Tensor, labels: Tensor, config: dict[str, Any], steps: int, seed: int, data: str
    ) -> None:
        self.teacher = teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.x, self.labels = normalise(images), labels
        self.config, self.steps, self.data = config, steps, data
        self.first = max(round(_FIRST * steps), 1)
        self.fit = FitConfig(steps=steps, batch=_BATCH, seed=seed)
        self.module = EntropicStudent(teacher, config["channels"], transform=config["transform"], seed=seed)
        if config["transform"] == "blocks":
            start_blocks(self.module, teacher, self.x, config["beta"])
        self.optimizer = torch.optim.Adam(self.module.parameters(), _RATE)

    def rate(self, step: int) -> float:
        """Fraction of the learning rate: each stage ends at a tenth of what it begins with."""
        if step < self.first:
            return rate(step, self.first)
        return _SECOND_RATE * rate(step - self.first, self.steps - self.first)

    def loss(self, step: int) -> Tensor:
        """Loss of stage 1, or of stage 2, whose first step makes the tables of the prior."""
        first, student = step < self.first, self.module
        if step == self.first:
            student.prior.update()
        for part, learns in ((student.encoder, first), (student.prior, first), (student.decoder, True), (student.tails, not first)):
            part.requires_grad_(learns)
        x, labels, random = batches(self.x, self.labels, self.fit, step)
        if first:
            return stage1_loss(student, self.teacher, x, self.config["beta"], random)
        assert labels is not None
        with torch.no_grad():
            target = self.teacher(x)
        return stage2_loss(student, target, x, labels, self.fit)

    def finish(self) -> None:
        """Make the tables, if the training was too short to have a second stage."""
        if self.first == self.steps:
            self.module.prior.update()
        self.module.requires_grad_(True)


def start(data: Path | None, steps: int, seed: int, options: Mapping[str, str]) -> FeatureJob:
    """A training at its first step.

    Args:
        data: A folder with one ``.th`` file of a trained :func:`cifar_resnet` and one ``.npz`` file of ``x_train`` (uint8
            ``[n, 3, 32, 32]``) and ``y_train``. Without it the CIFAR-10 images and the ResNet-20 of ``TERSOR_DATA``.
        steps: In all.
        seed: Of weights and batches.
        options: Of :class:`FeatureSettings`, as text.

    Raises:
        InvalidArgument: If the folder lacks one of them, or an option is out of range.
        CorruptFile: If the teacher is damaged.
    """
    from tersor.data import folder

    chosen = with_options(FeatureSettings(), options)
    if data is None:
        teacher_path, images_path = folder("models") / TEACHER, folder("images") / IMAGES
    else:
        teacher_path, images_path = _only(data, ".th"), _only(data, ".npz")
    teacher = load_teacher(teacher_path)
    images, labels = read_images(images_path, "train")
    digest = hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes() + teacher_path.read_bytes()).hexdigest()
    layers, linear = teacher.layer1, teacher.linear
    assert isinstance(layers, nn.Sequential)
    assert isinstance(linear, nn.Linear)
    config = {**asdict(chosen), "depth": 6 * len(layers) + 2, "classes": linear.out_features}
    if int(labels.max()) >= linear.out_features or int(labels.min()) < 0:
        raise InvalidArgument(f"the labels of {images_path} go to {int(labels.max())}, the teacher knows {linear.out_features} classes")
    return FeatureJob(teacher, images, labels, config, steps, seed, f"{images_path.name} and {teacher_path.name} {digest[:16]}")


def read_images(path: str | Path, part: str) -> tuple[Tensor, Tensor]:
    """Images uint8 ``[n, 3, 32, 32]`` and labels ``[n]`` of ``part``, ``train`` or ``test``, of an ``.npz`` file.

    Raises:
        InvalidArgument: If there is no such file, or it holds no such arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
    except (OSError, ValueError, KeyError) as error:
        raise InvalidArgument(f"{path} holds no arrays x_{part} and y_{part} ({error}); give an .npz file that does") from None
    if images.dtype != np.uint8 or images.shape[1:] != (3, 32, 32) or labels.shape != images.shape[:1] or not len(labels):
        found = f"{images.dtype} {images.shape} and {labels.shape}"
        raise InvalidArgument(f"{path} must hold uint8 images [n, 3, 32, 32] and as many labels, got {found}")
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))


class FeatureCodec:
    """A trained student as a codec: pictures of 32 x 32 pixels, or arrays of them, to bytes; bytes to classes and their probabilities.

    Args:
        student: With tables.
        fingerprint: Of weights and configuration.
    """

    name = NAME

    def __init__(self, student: EntropicStudent, fingerprint: str) -> None:
        self.student = student.eval().requires_grad_(False)
        self.fingerprint = fingerprint

    def encode(self, data: bytes) -> tuple[dict[str, Any], list[bytes]]:
        """Header and one stream an image.

        Args:
            data: A picture file, or an ``.npy`` file of uint8 ``[n, 3, 32, 32]``.

        Raises:
            InvalidArgument: If it is neither, or of another size.
        """
        return {}, self.student.encode(normalise(_pictures(data, self.student.image)))

    def decode(self, header: Mapping[str, Any], streams: tuple[bytes, ...]) -> bytes:
        """JSON: for each image the classes in falling order of probability, as far as those that share 99 % of it.

        Raises:
            CorruptStream: If a stream is damaged, or there is none.
        """
        if not streams:
            raise CorruptStream("the compressed file holds no image")
        probabilities = torch.softmax(self.student.decode(streams).double(), 1)
        return (json.dumps([_said(row) for row in probabilities], indent=1) + "\n").encode()


def load(config: dict[str, Any], tensors: dict[str, Tensor], fingerprint: str) -> FeatureCodec:
    """The codec of a saved configuration and state.

    Raises:
        ValueError: If the configuration is out of bounds.
        RuntimeError: If the state does not fit it.
    """
    bounds = {"channels": _MOST_CHANNELS, "depth": _DEEPEST, "classes": _MOST_CLASSES}
    if not all(type(config[key]) is int and 0 < config[key] <= most for key, most in bounds.items()):
        raise ValueError(f"sizes out of bounds: {config}")
    student = EntropicStudent(cifar_resnet(config["depth"], config["classes"]), config["channels"], transform=config["transform"])
    student.load_state_dict(tensors)
    tables = student.prior.tables.as_tables()
    if len(tables) != config["channels"]:
        raise ValueError(f"{len(tables)} tables for {config['channels']} channels")
    return FeatureCodec(student, fingerprint)


def _said(row: Tensor) -> list[dict[str, Any]]:
    names = CIFAR10 if len(row) == len(CIFAR10) else tuple(map(str, range(len(row))))
    values, order = row.sort(descending=True)
    count = int((values.cumsum(0) < 0.99).sum()) + 1
    likely = zip(values[:count].tolist(), order[:count].tolist(), strict=True)
    return [{"class": names[index], "probability": round(value, 4)} for value, index in likely]


def _pictures(data: bytes, size: tuple[int, int]) -> Tensor:
    if data.startswith(b"\x93NUMPY"):
        return _array(data, size)
    from tersor.coding.pictures import read_picture

    picture = read_picture(data)
    if tuple(picture.shape[1:]) != size:
        found = f"{picture.shape[2]} x {picture.shape[1]}"
        raise InvalidArgument(f"the codec {NAME} takes pictures of {size[1]} x {size[0]} pixels, this one has {found}")
    return picture[None]


def _array(data: bytes, size: tuple[int, int]) -> Tensor:
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = reader(file)
    except Exception as error:  # the header is a literal of Python, whose parser raises whatever damaged text makes it do
        raise InvalidArgument(f"the .npy file is damaged ({type(error).__name__})") from None
    count = len(data) - file.tell()
    fits = len(shape) == 4 and shape[1:] == (3, *size) and count == 3 * size[0] * size[1] * shape[0] > 0
    if dtype != np.uint8 or fortran or not fits:
        found = f"{dtype} {shape} in {count} bytes"
        raise InvalidArgument(f"the codec {NAME} takes uint8 arrays [n, 3, {size[0]}, {size[1]}] in C order, got {found}")
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=file.tell()).reshape(shape).copy())


def _only(folder: Path, suffix: str) -> Path:
    found = sorted(folder.glob(f"*{suffix}")) if folder.is_dir() else []
    if len(found) != 1:
        raise InvalidArgument(f"training the codec {NAME} needs a folder with exactly one {suffix} file, {folder} holds {len(found)}")
    return found[0]
