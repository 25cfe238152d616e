"""PSNR and MS-SSIM against closed forms and an independent calculation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

from tersor.coding.quality import SMALLEST_SIDE, ms_ssim, psnr
from tersor.errors import InvalidArgument


def pictures(seed: int, noise: float, side: tuple[int, int] = (176, 192)) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, 3, 11, 12, generator=random)
    picture = torch.nn.functional.interpolate(coarse, size=side, mode="bicubic").clamp(0, 1)
    return picture, (picture + noise * torch.randn(picture.shape, generator=random)).clamp(0, 1)


def by_scipy(x: np.ndarray, y: np.ndarray) -> float:
    """One channel, from the definition, with filters of scipy that cover whole windows only."""
    places = np.arange(11) - 5
    window = np.exp(-(places**2) / 4.5)
    window /= window.sum()

    def blur(values: np.ndarray) -> np.ndarray:
        return correlate1d(correlate1d(values, window, axis=0), window, axis=1)[5:-5, 5:-5]

    result = 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        mx, my = blur(x), blur(y)
        vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
        value = (2 * cov + 9e-4) / (vx + vy + 9e-4)
        if scale == 4:
            value = value * (2 * mx * my + 1e-4) / (mx * mx + my * my + 1e-4)
        result *= max(value.mean(), 0) ** weight
        if scale == 4:
            break
        x, y = ((v[::2, ::2] + v[1::2, ::2] + v[::2, 1::2] + v[1::2, 1::2]) / 4 for v in (x, y))
    return result


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.4])
def test_ms_ssim_is_that_of_its_definition(noise: float):
    x, y = pictures(0, noise)
    expected = np.mean([by_scipy(x[i, c].double().numpy(), y[i, c].double().numpy()) for i in range(2) for c in range(3)])
    assert ms_ssim(x, y) == pytest.approx(expected, abs=1e-9)


def test_ms_ssim_of_equal_pictures_is_one_and_falls_with_noise():
    x, _ = pictures(1, 0)
    values = [ms_ssim(*pictures(1, noise)) for noise in (0.01, 0.05, 0.2, 0.5)]
    assert ms_ssim(x, x) == pytest.approx(1, abs=1e-12)
    assert values == sorted(values, reverse=True)
    y = pictures(1, 0.2)[1]
    assert ms_ssim(x, y) == pytest.approx(ms_ssim(y, x), abs=1e-12)


def test_ms_ssim_of_constant_pictures_is_their_luminance():
    x, y = torch.full((1, 3, 161, 161), 0.5), torch.full((1, 3, 161, 161), 0.25)
    expected = ((2 * 0.5 * 0.25 + 1e-4) / (0.25 + 0.0625 + 1e-4)) ** 0.1333
    assert ms_ssim(x, y) == pytest.approx(expected, rel=1e-9)


def test_psnr_is_that_of_a_known_error():
    x = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.5
    assert psnr(x, x + 0.1) == pytest.approx(20, abs=1e-4)
    assert psnr(x, x) == math.inf


def test_what_cannot_be_compared_is_told():
    with pytest.raises(InvalidArgument, match="same shape"):
        psnr(torch.zeros(3, 2, 2), torch.zeros(3, 2, 3))
    with pytest.raises(InvalidArgument, match="at least 161"):
        ms_ssim(torch.zeros(1, 3, SMALLEST_SIDE - 1, 200), torch.zeros(1, 3, SMALLEST_SIDE - 1, 200))
    with pytest.raises(InvalidArgument, match="NaN"):
        psnr(torch.full((3, 2, 2), math.nan), torch.zeros(3, 2, 2))
