"""Residual networks for 32 x 32 images, as sequences of named stages that can be cut anywhere."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from tersor.errors import CorruptFile, InvalidArgument

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# What the published weights were trained with.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Shortcut(nn.Module):
    """Every second pixel, and zeros for the channels that are new (option A): no parameters."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.pad = (after - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Identity() if stride == 1 else _Shortcut(before, after)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def cifar_resnet(depth: int = 20, classes: int = 10) -> nn.Sequential:
    """A residual network of 16, 32 and 64 channels with freely drawn weights; :func:`load_teacher` reads trained ones.

    Args:
        depth: ``6 n + 2`` layers: 20, 32, 44, 56, 110.
        classes: Outputs.

    Returns:
        Stages ``conv1, bn1, relu, layer1, layer2, layer3, pool, linear`` from images ``[n, 3, 32, 32]`` to logits ``[n, classes]``.

    Raises:
        InvalidArgument: On another depth.

    Reference:
        He, Zhang, Ren, Sun: "Deep residual learning for image recognition", 2016.
    """
    if depth < 8 or (depth - 2) % 6:
        raise InvalidArgument(f"a residual network for 32 x 32 images has 6 n + 2 layers, got {depth}; take 20 or 56")
    count = (depth - 2) // 6

    def stage(before: int, after: int) -> nn.Sequential:
        stride = 1 if before == after else 2
        return nn.Sequential(_Block(before, after, stride), *(_Block(after, after, 1) for _ in range(count - 1)))

    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 16, 3, 1, 1, bias=False), bn1=nn.BatchNorm2d(16), relu=nn.ReLU(), layer1=stage(16, 16),
            layer2=stage(16, 32), layer3=stage(32, 64), pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            linear=nn.Linear(64, classes),
        )
    )  # fmt: skip


def load_teacher(path: str | Path) -> nn.Sequential:
    """A trained :func:`cifar_resnet`, its depth found from the file, frozen and in evaluation mode.

    Args:
        path: A state dict, alone or under ``state_dict``, with or without the prefix ``module.``; only tensors are read, no code.

    Raises:
        InvalidArgument: If there is no such file.
        CorruptFile: If it holds no such network.
    """
    if not Path(path).is_file():
        raise InvalidArgument(f"there is no file {path} with the weights of a teacher; name one, or the folder of data that holds it")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        state = {key.removeprefix("module."): value for key, value in loaded.get("state_dict", loaded).items()}
        blocks = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("layer1."))
        teacher = cifar_resnet(6 * blocks + 2, state["linear.bias"].shape[0])
        teacher.load_state_dict(state)
    except Exception as error:  # the unpickler of tensors raises whatever damaged bytes make it do
        raise CorruptFile(f"{path} holds no residual network for 32 x 32 images ({type(error).__name__}); take another copy") from None
    return teacher.eval().requires_grad_(False)


def normalise(images: NDArray[np.uint8] | Tensor) -> Tensor:
    """Images ``[n, 3, height, width]`` of bytes as the float32 input that the published weights expect."""
    pixels = torch.as_tensor(images).float() / 255
    return (pixels - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_DEVIATION).view(3, 1, 1)


def split_model(model: nn.Sequential, at: str = "layer1") -> tuple[nn.Sequential, nn.Sequential]:
    """Cut a network after the stage called ``at``: what the device would run, and what the server runs. Both share the model's weights.

    Raises:
        InvalidArgument: If there is no such stage, or nothing after it.
    """
    names = [name for name, _ in model.named_children()]
    if at not in names[:-1]:
        raise InvalidArgument(f"a network can be split after {', '.join(names[:-1])}, not after {at!r}")
    cut = names.index(at) + 1
    parts = list(model.named_children())
    return nn.Sequential(OrderedDict(parts[:cut])), nn.Sequential(OrderedDict(parts[cut:]))
