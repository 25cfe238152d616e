"""Every method of compression during training, with the model that the common suite tries it on. A new member is one entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tersor.training import (
    LAPP,
    SAP,
    APrioriConv,
    ClassAwareLottery,
    GradualPruning,
    LotteryTicket,
    Maestro,
    Method,
    ParameterSharing,
    QuEST,
    TrainedRankPruning,
)


class SmallNet(nn.Module):
    """Two convolutions with norms and a classifier, for 1 x 8 x 8 images in four classes."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1, stride=2, bias=False)
        self.norm2 = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 4)
        nn.init.zeros_(self.head.bias)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                parameter.data = torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5

    def forward(self, pixels: Tensor) -> Tensor:
        features = torch.relu(self.norm1(self.conv1(pixels)))
        features = torch.relu(self.norm2(self.conv2(features)))
        return self.head(features.mean((2, 3)))


class Perceptron(nn.Module):
    """Three linear layers for the same images."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.first = nn.Linear(64, 48)
        self.second = nn.Linear(48, 32)
        self.head = nn.Linear(32, 4)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                parameter.data = torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5
            else:
                nn.init.zeros_(parameter)

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = torch.relu(self.first(pixels.flatten(1)))
        return self.head(torch.relu(self.second(hidden)))


@dataclass(frozen=True)
class Case:
    """A method under test.

    Attributes:
        id: In the report.
        methods: Makes it, for a training of twenty steps in which it should have finished by step twelve.
        model: Makes the model that it works on, the same one each time.
        exact: Whether ``finalize`` leaves the outputs of evaluation as they were.
    """

    id: str
    methods: Callable[[], list[Method]]
    model: Callable[[], nn.Module] = SmallNet
    exact: bool = True


CASES = [
    Case("gradual", lambda: [GradualPruning(0.5, begin=2, end=10, frequency=2)]),
    Case("gradual-regrow", lambda: [GradualPruning(0.5, begin=2, end=10, frequency=2, regrow=True)]),
    Case("gradual-global", lambda: [GradualPruning(0.6, begin=0.1, end=0.5, frequency=3, scope="global", ignore=["conv1"])]),
    Case("sap", lambda: [SAP(rounds=3, p=1.0, q=2.0)]),
    Case("lottery", lambda: [LotteryTicket(rounds=3, ranking="first", scope="layer", rewind=False)]),
    Case("one-way", lambda: [APrioriConv(rank=4)]),
    Case("one-way-cp", lambda: [APrioriConv("cp", rank=6)]),
    Case("one-way-per-kernel", lambda: [APrioriConv("per_kernel", rank=1, start="weights")]),
    Case("one-way-pruned", lambda: [APrioriConv(rank=4, start="weights"), GradualPruning(0.5, begin=2, end=10, frequency=2)]),
    Case("sharing", lambda: [ParameterSharing(3.0)]),
    Case("sharing-layer-dense", lambda: [ParameterSharing(4.5, "hash", scope="layer", finish="dense", ignore=["conv1"])]),
    Case("sharing-tile", lambda: [ParameterSharing(2.0, "tile", tile=(2, 3), scale_gradient=False)]),
    Case("maestro", lambda: [Maestro(group_lasso=1e-3, threshold=0.1)]),
    Case("maestro-every-layer", lambda: [Maestro("every_layer", group_lasso=0.01, hierarchical=False, threshold=0.3, ignore=["conv1"])]),
    Case("lapp", lambda: [LAPP(0.55, end=8, frequency=2)]),
    Case("lapp-no-bypass", lambda: [LAPP(0.3, "taylor", bypass=False, end=0.4, frequency=2, targets=["conv1", "conv2"])]),
    Case("trained-rank", lambda: [TrainedRankPruning(0.7, period=4)]),
    Case("trained-rank-spatial", lambda: [TrainedRankPruning(0.6, period=3, scheme="spatial", ignore=["conv1"])], exact=False),
    Case("trained-rank-decouple", lambda: [TrainedRankPruning(0.6, period=2, scheme="decouple", targets=["conv2"])]),
    Case("class-aware", lambda: [ClassAwareLottery(rounds=2)]),
    Case("quest", lambda: [QuEST(4, 4)], lambda: Perceptron()),
    Case("quest-weights", lambda: [QuEST(2, None)], lambda: Perceptron()),
    Case("class-aware-best-epoch", lambda: [ClassAwareLottery(rounds=2, epochs=2, monitor="accuracy")], exact=False),
]


def batch(size: int = 32) -> tuple[Tensor, Tensor]:
    """The one batch that everything is trained on: a class each lights up a quarter of the image."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(size) % 4
    pixels = torch.randn(size, 1, 8, 8, generator=generator)
    for index, label in enumerate(labels.tolist()):
        row, column = divmod(label, 2)
        pixels[index, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1
    return pixels, labels
