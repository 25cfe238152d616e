"""The group quantiser against its definition, and its searches against trying everything."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise import Grid, LayerStats, layer_error, rtn

SCHEMES = ["symmetric", "asymmetric", "float_min"]
BITS = [1, 2, 3, 4, 5, 8]


def weights(seed: int, out: int = 24, n: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.05 * torch.randn(out, n, generator=generator) + 0.01


def rounded(grid: Grid, weight: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    """The values on the fitted grid, and the scale of each."""
    scale, zero = grid.fit(weight, *args)
    return grid.dequantize(grid.quantize(weight, scale, zero), scale, zero), scale.repeat_interleave(grid.group_size, 1)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", BITS)
def test_rounding_to_the_grid_is_idempotent(bits: int, scheme: Any) -> None:
    grid = Grid.of(64, bits, scheme, 16)
    weight = weights(bits)
    scale, zero = grid.fit(weight)
    codes = grid.quantize(weight, scale, zero)
    values = grid.dequantize(codes, scale, zero)
    assert torch.equal(grid.quantize(values, scale, zero), codes)
    assert int(codes.max()) < 2**bits


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_error_is_at_most_half_a_step_within_the_range(bits: int, scheme: Any) -> None:
    weight = weights(bits)
    values, scale = rounded(Grid.of(64, bits, scheme, 16), weight)
    # Rounding the scale to float16 moves the ends of the range by up to 2 ** -11 of it, that of the zero point by half a step more.
    slack = 2**-10 * 2**bits * scale + (0.5 * scale if scheme == "asymmetric" else 0)
    assert ((values - weight).abs() <= 0.5 * scale + slack).all()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [8, 32, -1])
def test_stored_weight_is_bit_for_bit_what_was_rounded_to(bits: int, scheme: Any, group_size: int) -> None:
    weight = weights(7)
    grid = Grid.of(64, bits, scheme, group_size)
    scale, zero = grid.fit(weight, "mse")
    codes = grid.quantize(weight, scale, zero)
    assert torch.equal(grid.pack(codes, scale, zero).dense(), grid.dequantize(codes, scale, zero))


@pytest.mark.parametrize("magnitude", [1e-6, 1.0, 1e9], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_scales_outside_of_half_precision_are_kept_in_single(magnitude: float, scheme: Any) -> None:
    weight = weights(1) * magnitude
    compressed = rtn(weight, bits=8, group_size=16, scheme=scheme)
    assert compressed.scale.dtype is (torch.float16 if magnitude == 1.0 else torch.float32)
    assert ((compressed.dense() - weight).norm() / weight.norm()) < 0.01


@pytest.mark.parametrize("scheme", SCHEMES)
def test_noise_in_a_zero_group_does_not_push_all_scales_into_single(scheme: Any) -> None:
    weight = weights(2)
    weight[0, :16] = 1e-12 * torch.arange(16)
    compressed = rtn(weight, bits=4, group_size=16, scheme=scheme)
    assert compressed.scale.dtype is torch.float16
    assert compressed.dense()[0, :16].abs().max() < 1e-9


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_zero_stays_zero(bits: int, scheme: Any) -> None:
    weight = weights(3)
    weight[:, ::3] = 0
    assert not rtn(weight, bits=bits, group_size=16, scheme=scheme).dense()[:, ::3].any()


def test_weights_that_lie_on_a_four_bit_float_minimum_grid_are_reproduced_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (32, 4, 32), generator=generator).float()
    codes[..., 0], codes[..., 1] = 0, 15
    scale = (0.01 * torch.rand(32, 4, 1, generator=generator) + 0.001).half().float()
    minimum = (-0.1 * torch.rand(32, 4, 1, generator=generator)).half().float()
    weight = (codes * scale + minimum).reshape(32, 128)
    assert torch.equal(rtn(weight, bits=4, group_size=32, scheme="float_min").dense(), weight)
    assert not torch.equal(rtn(weight, bits=4, group_size=32, scheme="asymmetric").dense(), weight)


def test_asymmetric_range_of_a_hand_made_group() -> None:
    scale, zero = Grid.of(4, 2, "asymmetric", 4).fit(torch.tensor([[-1.0, 0.0, 0.25, 2.0]]))
    assert (scale.item(), zero.item()) == (1.0, 1.0)
    scale, zero = Grid.of(4, 2, "asymmetric", 4).fit(torch.tensor([[1.0, 2.0, 2.5, 3.0]]))
    assert (scale.item(), zero.item()) == (1.0, 0.0)


def test_one_symmetric_bit_takes_the_mean_magnitude() -> None:
    weight = weights(4)
    compressed = rtn(weight, bits=1, group_size=-1, scheme="symmetric")
    assert torch.equal(compressed.dense().sign(), torch.where(weight >= 0, 1.0, -1.0))
    assert torch.allclose(compressed.scale[:, 0].float(), weight.abs().mean(1), rtol=1e-3)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_clip_search_lowers_its_own_objective(bits: int, scheme: Any, seed: int) -> None:
    weight, grid = weights(seed), Grid.of(64, bits, scheme, 16)
    importance = torch.rand(64, generator=torch.Generator().manual_seed(seed)).square()

    def losses(clip: Any) -> tuple[float, float]:
        error = rounded(grid, weight, clip, importance)[0] - weight
        return float(error.abs().pow(2.4).sum()), float((error.square() * importance).sum())

    assert losses("mse")[0] < losses("minmax")[0]
    assert losses("hessian")[1] < losses("minmax")[1]
    assert losses("hessian")[1] <= losses("mse")[1]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("clip", ["mse", "hessian"])
def test_clip_search_is_near_the_best_of_eighty_even_shrinks(clip: Any, bits: int, scheme: Any) -> None:
    weight, grid = weights(11, 200), Grid.of(64, bits, scheme, 32)
    importance = torch.rand(64, generator=torch.Generator().manual_seed(1))

    def loss(scale: Tensor, zero: Tensor) -> Tensor:
        error = (grid.dequantize(grid.quantize(weight, scale, zero), scale, zero) - weight).abs()
        return grid.groups(error.pow(2.4) if clip == "mse" else error.square() * importance).sum(-1)

    full_range = grid._range(grid.groups(weight))
    best = torch.stack([loss(*grid._parameters(*grid._shrink(*full_range, 1 - step / 100))) for step in range(80)]).amin(0)
    assert float(loss(*grid.fit(weight, clip, importance)).sum()) <= 1.01 * float(best.sum())


def test_hessian_clip_with_equal_importance_is_the_least_squares_clip() -> None:
    weight, grid = weights(5), Grid.of(64, 3, "asymmetric", 16)
    coupled = grid.search(weight, lambda error, _: error.square().sum(-1))
    separate = grid.fit(weight, "hessian", torch.ones(64))
    errors = [float((grid.dequantize(grid.quantize(weight, *pair), *pair) - weight).square().sum()) for pair in (coupled, separate)]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


def test_weighing_by_the_inputs_protects_outlier_inputs(layer: Any) -> None:
    inputs = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0))
    inputs[:, 3] *= 40
    weight = layer.weight.clone()
    weight[:, 3] *= 4
    stats = LayerStats.from_inputs(inputs)
    minmax, mse, hessian = (
        layer_error(weight, rtn(weight, stats, bits=3, group_size=-1, clip=clip), stats) for clip in ("minmax", "mse", "hessian")
    )
    assert hessian < minmax < mse


@pytest.mark.parametrize(
    ("in_features", "group_size", "offer"),
    [(576, 128, "48, 64, 72, 96, 144, 192 or -1"), (172, 64, "43, 86 or -1"), (17, 4, "only -1")],
    ids=["576", "172", "prime"],
)
def test_group_size_that_does_not_divide_is_refused_with_sizes_that_do(in_features: int, group_size: int, offer: str) -> None:
    with pytest.raises(InvalidArgument, match=f"group_size {group_size} does not divide the {in_features} input features; .*{offer}"):
        Grid.of(in_features, 4, "symmetric", group_size)


def test_hessian_clip_without_statistics_is_refused(layer: Any) -> None:
    with pytest.raises(InvalidArgument, match="clip='hessian' needs the statistics"):
        rtn(layer.weight, None, group_size=16, clip="hessian")
