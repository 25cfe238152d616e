"""How much of a picture a codec kept: PSNR and MS-SSIM."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tersor.errors import InvalidArgument

# Of the five scales, from the finest.
_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_WINDOW, _SIGMA = 11, 1.5
_LUMINANCE, _CONTRAST = 0.01**2, 0.03**2
SMALLEST_SIDE = (_WINDOW - 1) * 2 ** (len(_WEIGHTS) - 1) + 1


def psnr(image: Tensor, other: Tensor) -> float:
    """Peak signal-to-noise ratio in dB over all values of two tensors in [0, 1]; infinite if they are equal."""
    _check(image, other)
    error = (image.double() - other.double()).square().mean()
    return float(-10 * torch.log10(error))


def ms_ssim(image: Tensor, other: Tensor) -> float:
    """Multi-scale structural similarity, the mean over pictures and colours: 1 for equal pictures.

    Args:
        image: ``[n, channels, height, width]`` in [0, 1], sides of at least 161.
        other: Likewise; the order of the two does not matter.

    Raises:
        InvalidArgument: If the shapes differ or the pictures are too small for five scales.

    Reference:
        Wang, Simoncelli, Bovik: "Multiscale structural similarity for image quality assessment", 2003.
    """
    _check(image, other)
    if image.ndim != 4 or min(image.shape[-2:]) < SMALLEST_SIDE:
        raise InvalidArgument(f"MS-SSIM takes [n, channels, height, width] of at least {SMALLEST_SIDE} a side, got {tuple(image.shape)}")
    x, y = image.double(), other.double()
    total = torch.ones(image.shape[:2], dtype=torch.float64)
    for scale, weight in enumerate(_WEIGHTS):
        similarity, contrast = _structure(x, y)
        last = scale == len(_WEIGHTS) - 1
        # Below zero a power is not defined; anticorrelated details count as nothing in common.
        total = total * (similarity if last else contrast).clamp(min=0) ** weight
        # An odd row or column is kept with zeros beside it that are not counted.
        odd = [side % 2 for side in x.shape[-2:]]
        x, y = (functional.avg_pool2d(values, 2, padding=odd, count_include_pad=False) for values in (x, y))
    return float(total.mean())


def _structure(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM and its part that compares contrast and structure, each ``[n, channels]``."""
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y, both = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2, _blur(x * y) - mean_x * mean_y
    contrast = (2 * both + _CONTRAST) / (var_x + var_y + _CONTRAST)
    luminance = (2 * mean_x * mean_y + _LUMINANCE) / (mean_x**2 + mean_y**2 + _LUMINANCE)
    return (luminance * contrast).mean((-2, -1)), contrast.mean((-2, -1))


def _blur(x: Tensor) -> Tensor:
    places = torch.arange(_WINDOW, dtype=x.dtype) - _WINDOW // 2
    window = torch.exp(-(places**2) / (2 * _SIGMA**2))
    window = (window / window.sum()).expand(x.shape[1], 1, 1, _WINDOW)
    rows = functional.conv2d(x, window, groups=x.shape[1])
    return functional.conv2d(rows, window.mT, groups=x.shape[1])


def _check(image: Tensor, other: Tensor) -> None:
    if image.shape != other.shape or not image.numel():
        raise InvalidArgument(f"pictures are compared that have the same shape, got {tuple(image.shape)} and {tuple(other.shape)}")
    if not (image.isfinite().all() and other.isfinite().all()):
        raise InvalidArgument("a picture holds NaN or Inf")
