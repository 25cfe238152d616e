"""The bottleneck in front of a split network: a light encoder for the device, a decoder for the server."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tersor.coding.entropy.factorised import lower_bound
from tersor.errors import InvalidArgument

# Keeps the slope of the square in the parametrisation away from zero.
_OFFSET = 2.0**-18
_SMALLEST_BETA = 1e-6
# Side of the blocks whose principal components a latent may begin as.
BLOCK = 8


class DivisiveNorm(nn.Module):
    """``x / (beta + Gamma |x|)`` over the channels, or times it (``inverse``): the simplified generalised divisive normalisation.

    Both parameters are squares with a lower bound, so that the denominator stays positive while training.

    Args:
        channels: Size of axis 1.
        inverse: Multiply instead of divide, as decoders do.

    Reference:
        Ballé: "Efficient nonlinear transforms for lossy image compression", 2018; without squares as Matsubara et al., 2022.
    """

    def __init__(self, channels: int, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.beta = nn.Parameter(torch.sqrt(torch.ones(channels) + _OFFSET**2))
        self.gamma = nn.Parameter(torch.sqrt(0.1 * torch.eye(channels) + _OFFSET**2))

    def forward(self, x: Tensor) -> Tensor:
        beta = lower_bound(self.beta, (_SMALLEST_BETA + _OFFSET**2) ** 0.5).square() - _OFFSET**2
        gamma = lower_bound(self.gamma, _OFFSET).square() - _OFFSET**2
        norm = functional.conv2d(x.abs(), gamma[:, :, None, None], beta)
        return x * norm if self.inverse else x / norm


class FeatureEncoder(nn.Sequential):
    """What the device runs: images ``[n, 3, h, w]`` to latents ``[n, channels, h / 2, w / 2]``.

    The published layers have no biases. Without them encoder and decoder are odd functions, an image and its negative get opposite
    features, and those of a teacher are never negative: hence biases, and a rectifier at the end of the decoder.

    Args:
        channels: Of the latent, ``d``.
        width: The layers before have ``4 width`` and ``2 width`` channels; ``d`` without it.
    """

    def __init__(self, channels: int, width: int | None = None) -> None:
        width = channels if width is None else width
        super().__init__(
            nn.Conv2d(3, 4 * width, 5, 2, 2), DivisiveNorm(4 * width),
            nn.Conv2d(4 * width, 2 * width, 3, 1, 1), DivisiveNorm(2 * width),
            nn.Conv2d(2 * width, channels, 3, 1, 1),
        )  # fmt: skip


class FeatureDecoder(nn.Sequential):
    """Latents ``[n, channels, h / 2, w / 2]`` to features ``[n, target, h, w]`` in place of the teacher's, none negative.

    Args:
        channels: Of the latent.
        target: Channels of the features, ``t``; the layers before have ``2 t`` and ``t``.
    """

    def __init__(self, channels: int, target: int) -> None:
        super().__init__(
            nn.Conv2d(channels, 2 * target, 3, 1, 1), DivisiveNorm(2 * target, inverse=True),
            nn.ConvTranspose2d(2 * target, target, 4, 2, 1), DivisiveNorm(target, inverse=True),
            nn.Conv2d(target, target, 3, 1, 1), nn.ReLU(),
        )  # fmt: skip


class BlockDecoder(nn.Sequential):
    """Latents of blocks ``[n, channels, h / 8, w / 8]`` to a picture, and on through a copy of the stages that the bottleneck replaces.

    Args:
        channels: Of the latent.
        head: The teacher's first stages, from pictures to features; it learns with the rest.
    """

    def __init__(self, channels: int, head: nn.Sequential) -> None:
        super().__init__(nn.ConvTranspose2d(channels, 3, BLOCK, BLOCK), head)


def draw_weights(module: nn.Module, seed: int) -> None:
    """Fill the convolutions and linear layers of ``module`` from ``seed``, by their fan-in with gain 1, and biases with zero."""
    random = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            fan = part.weight[0].numel() if not isinstance(part, nn.ConvTranspose2d) else part.in_channels * part.weight[0, 0].numel() // 4
            with torch.no_grad():
                part.weight.copy_(torch.randn(part.weight.shape, generator=random) * fan**-0.5)
                if part.bias is not None:
                    part.bias.zero_()


def multiplications(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiplications of the convolutions and linear layers of ``module`` for one input of ``shape`` ``[channels, height, width]``.

    Raises:
        InvalidArgument: If the module does not take such an input.
    """
    counted: list[int] = []

    def count(part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = part.weight
        assert isinstance(weight, Tensor)
        if isinstance(part, nn.ConvTranspose2d):
            counted.append(weight[0].numel() * inputs[0][0].numel())
        else:
            counted.append(weight[0].numel() * output[0].numel())

    layers = [part for part in module.modules() if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))]
    hooks = [part.register_forward_hook(count) for part in layers]
    try:
        with torch.no_grad():
            module(torch.zeros(1, *shape))
    except RuntimeError as error:
        raise InvalidArgument(f"the module takes no input of shape {shape}: {error}") from None
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counted)
