"""A small residual network whose shortcuts are of all three kinds."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Block(nn.Module):
    """Two convolutions beside a shortcut: every second pixel and new channels of zeros (option A), or a projection."""

    def __init__(self, before: int, after: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.stride, self.pad = stride, after - before
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if projection else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        if self.shortcut is not None:
            return torch.relu(y + self.shortcut(x))
        return torch.relu(y + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.pad)))


class ResidualNet(nn.Module):
    """A stem, a block that keeps the shape, one that halves it with option A, one with a projection, and a classifier."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.block1 = _Block(8, 8, 1, False)
        self.block2 = _Block(8, 16, 2, False)
        self.block3 = _Block(16, 24, 2, True)
        self.head = nn.Linear(24, 4)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                parameter.data = torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.block3(self.block2(self.block1(torch.relu(self.norm(self.stem(pixels))))))
        return self.head(features.mean((2, 3)))
