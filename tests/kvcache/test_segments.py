"""What a segment stores: bounds of its error, its bytes, and that nothing is ever compressed again."""

from __future__ import annotations

import pytest
import torch

from tersor.errors import InvalidArgument
from tersor.kvcache import GearConfig, Segments
from tersor.layerwise.low_rank import leading_directions

from .material import states

FULL = {"store_dtype": torch.float32}
ONLY_CODES = {"rank_prefill": 0, "rank_decode": 0, "sparsity": 0.0}
SIDES = ("keys", "values")
BACKBONES = ("kivi", "kcvt", "plain")


def dense(segments: Segments, like: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(like)
    segments.write(out)
    return out


def compressed(x: torch.Tensor, side: str, rank: int = 4, **options) -> torch.Tensor:
    return dense(Segments.compress(x, side, GearConfig(**options), rank), x)


def error(x: torch.Tensor, side: str, rank: int = 4, **options) -> float:
    return float((compressed(x, side, rank, **options) - x).norm() / x.norm())


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_codes_are_within_half_a_step(backbone, side, bits):
    x = states(bits)
    made = Segments.compress(x, side, GearConfig(bits=bits, backbone=backbone, buffer=64, **ONLY_CODES), 0)
    groups = x.transpose(2, 3).flatten(1, 2) if side == "keys" and backbone != "plain" else x.transpose(1, 2).flatten(2, 3)
    length = groups.shape[-1] if backbone == "kcvt" else 64
    low, high = groups.unflatten(-1, (-1, length)).aminmax(dim=-1)
    step = ((high - low) / (2**bits - 1)).max()
    assert float((dense(made, x) - x).abs().max()) <= 0.5 * float(step) * 1.01 + 2**-10 * float(x.abs().max())


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("seed", range(3))
def test_each_correction_lowers_the_error_and_both_do_most(seed, side):
    x = states(seed)
    plain = error(x, side, 0, sparsity=0.0)
    factors, outliers = error(x, side, 4, sparsity=0.0), error(x, side, 0)
    both = error(x, side, 4)
    assert plain > 1.05 * factors > 1.05 * both * 1.02
    assert plain > 1.05 * outliers > 1.05 * both * 1.02


@pytest.mark.parametrize("seed", range(3))
def test_keys_with_channels_of_their_own_size_want_a_grid_by_channel(seed):
    x = states(seed)
    assert error(x, "keys", 0, sparsity=0.0) < 0.8 * error(x, "keys", 0, backbone="plain", sparsity=0.0)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("rank", [1, 4, 31])
def test_factors_lose_the_tail_of_the_spectrum_of_the_error(rank, side):
    x = states(rank)
    residual = x - compressed(x, side, 0, sparsity=0.0)
    left = x - compressed(x, side, rank, sparsity=0.0, **FULL)
    eigenvalues = torch.linalg.eigvalsh((residual.mT @ residual).double())
    expected = eigenvalues[..., :-rank].sum(-1)
    torch.testing.assert_close(left.double().square().sum((-2, -1)), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("tokens", [64, 20])
def test_full_rank_is_exact(tokens):
    x = states(0, tokens)
    made = compressed(x, "values", 32, backbone="kcvt", **FULL)
    torch.testing.assert_close(made, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_power_iterations_come_close_to_the_best_factors(seed):
    x = states(seed)
    best, three, many = error(x, "keys", 4), error(x, "keys", 4, solver="power"), error(x, "keys", 4, solver="power", iterations=30)
    assert best <= three * 1.001
    assert three < 1.05 * best
    assert many == pytest.approx(best, rel=2e-3)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("tokens", [64, 128])
def test_outliers_are_exact_and_do_not_stretch_the_grid(tokens, side):
    x = states(1, tokens).clamp(-3, 3)
    spiked = x.clone()
    spiked[0, 1, 10, 3] = 3e4
    spiked[0, 0, 17, 5] = -3e4
    made = compressed(spiked, side, 0)
    assert float(made[0, 1, 10, 3]) == pytest.approx(3e4, rel=1e-3)
    assert float(made[0, 0, 17, 5]) == pytest.approx(-3e4, rel=1e-3)
    rest = (spiked == x).float()
    assert float(((made - x) * rest).abs().max()) < 3.0


def test_a_fraction_of_outliers_is_kept_even_where_rows_are_short():
    for tokens in (20, 64, 128, 768):
        for side in SIDES:
            made = Segments.compress(states(0, tokens), side, GearConfig(backbone="kcvt"), 0)
            assert made.outliers.numel() / (tokens * 64) == pytest.approx(0.02, rel=0.26)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("side", SIDES)
def test_appending_changes_no_stored_value(side, backbone):
    config = GearConfig(backbone=backbone, buffer=64)
    first, second = (Segments.compress(states(seed, 64), side, config, 2) for seed in (0, 1))
    assert first.fits(second)
    both = first.joined(second)
    assert both.count == 2
    assert both.nbytes == first.nbytes + second.nbytes
    for (_, whole), (_, part) in zip(both._tensors(), first._tensors(), strict=True):
        assert torch.equal(whole[:, :1], part)
    expected = torch.cat([dense(part, states(0, 64)) for part in (first, second)], 2)
    assert torch.equal(dense(both, states(0, 128)), expected)


def test_segments_of_other_sizes_do_not_fit():
    config = GearConfig()
    one = Segments.compress(states(0, 64), "keys", config, 2)
    assert not one.fits(Segments.compress(states(0, 128), "keys", config, 2))
    assert not one.fits(Segments.compress(states(0, 64), "keys", config, 3))


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("side", SIDES)
def test_a_batch_of_two_is_two_batches_of_one(side, backbone):
    x = states(4, batch=2)
    options = {"backbone": backbone, "buffer": 64}
    apart = torch.cat([compressed(part[None], side, **options) for part in x])
    torch.testing.assert_close(compressed(x, side, **options), apart, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("sparsity", [0.0, 1 / 32])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_bytes_follow_the_formula(backbone, sparsity, rank):
    config = GearConfig(backbone=backbone, buffer=64, rank_prefill=rank, sparsity=sparsity)
    x = states(0, 768, heads=4, width=64)
    made = sum(Segments.compress(x, side, config, rank).nbytes for side in SIDES)
    assert 8 * made / (2 * x.numel()) == pytest.approx(config.bits_per_element(768, 4, 64), rel=0.02)


def test_values_beyond_half_precision_are_stored_in_full():
    x = states(0)
    x[0, 0, 0, 0] = 1e6
    made = Segments.compress(x, "keys", GearConfig(), 4)
    assert made.outliers.dtype == torch.float32
    assert float(dense(made, x)[0, 0, 0, 0]) == 1e6


def test_batched_leading_directions_are_those_of_each_matrix():
    x = states(2)[0]
    together, _ = leading_directions(x.mT, 3)
    for matrix, basis in zip(x, together, strict=True):
        alone, _ = leading_directions(matrix.mT, 3)
        torch.testing.assert_close(basis @ basis.mT, alone @ alone.mT, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bits": 9}, "bits must be an integer from 1 to 8"), ({"bits": 0}, "bits must be"), ({"backbone": "x"}, "backbone must be one of"),
        ({"solver": "svd"}, "solver must be one of"), ({"group": 0}, "group must be"), ({"rank_prefill": -1}, "rank_prefill must be"),
        ({"sparsity": 1.0}, "sparsity must be"), ({"sparsity": float("nan")}, "sparsity must be"), ({"buffer": 0}, "buffer must be"),
        ({"buffer": 96}, "buffer 96 is no multiple of group 64"), ({"store_dtype": torch.int8}, "store_dtype must be"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(InvalidArgument, match=words):
        GearConfig(**options)
