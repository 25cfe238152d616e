"""BitStack: each block takes a known share of the energy, and magnitudes with signs beat plain singular vectors at equal bytes."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from tersor.errors import InvalidArgument
from tersor.layerwise import LayerStats, bitstack, layer_error
from tersor.layerwise.bitstack import input_multiplier, sign_block
from tersor.layerwise.low_rank import truncate
from tersor.weights import CompressedWeight, ResidualStack


def plain_svd(weight: torch.Tensor, stats: LayerStats, nbytes: int) -> CompressedWeight:
    """Scaled singular vectors in no fewer than ``nbytes`` bytes, without storing the scale."""
    rank = min(math.ceil(nbytes / (2 * sum(weight.shape))), *weight.shape)
    return truncate(weight, 1 / input_multiplier(stats).double(), rank, "float16")


@pytest.mark.parametrize("seed", range(3))
def test_gaussian_magnitudes_leave_the_energy_of_a_half_normal(seed: int):
    weight = torch.randn(384, 512, generator=torch.Generator().manual_seed(seed))
    energies = bitstack(weight, None, blocks=3, rank=1, scaled=False).report["residual_energy"]
    # What rank one cannot see is the variance of |x|; a little more goes to its leading singular vector.
    assert energies[0] == pytest.approx(1 - 2 / math.pi, abs=0.006)
    assert energies[1] == pytest.approx(0.13, abs=0.01)
    assert energies[2] == pytest.approx(0.06, abs=0.01)


@pytest.mark.parametrize("rank", [1, 3, 24])
def test_a_block_never_makes_the_residual_longer(rank: int):
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 64, generator=random) * torch.exp(2 * torch.randn(40, 64, generator=random))
    energies = [1.0, *bitstack(weight, None, blocks=16, rank=rank, scaled=False).report["residual_energy"]]
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(energies))


@pytest.mark.parametrize("scaled", [True, False], ids=["scaled", "plain"])
def test_reported_energy_is_that_of_the_stored_stack(layer: Any, scaled: bool):
    weight = bitstack(layer.weight, layer.stats, blocks=4, scaled=scaled)
    scale = torch.ones(64) if weight.input_scale is None else weight.input_scale.float()
    for count, energy in enumerate(weight.report["residual_energy"], 1):
        missing = (layer.weight - weight.prefix(count).dense()) / scale
        assert float(missing.square().sum() / (layer.weight / scale).square().sum()) == pytest.approx(energy, rel=1e-4)


def test_a_prefix_is_the_shorter_decomposition(layer: Any):
    long, short = (bitstack(layer.weight, layer.stats, blocks=blocks) for blocks in (5, 2))
    assert torch.equal(long.prefix(2).dense(), short.dense())


def test_magnitudes_keep_what_an_exact_decomposition_keeps():
    random = torch.Generator().manual_seed(0)
    residual = torch.randn(160, 224, generator=random)
    for rank in (1, 4):
        block = sign_block(residual, rank, torch.randn(224, rank + 8, generator=random))
        exact = torch.linalg.svdvals(residual.abs())[rank:].square().sum()
        assert float((residual - block.values(slice(None))).square().sum()) <= 1.005 * float(exact)
        assert torch.equal(block.values(slice(None)).sign() * residual.sign(), (block.left.float() @ block.right.float()).sign())


def test_zero_counts_as_positive():
    assert sign_block(torch.zeros(4, 8), 1, torch.ones(8, 2)).signs.unique().tolist() == [255]


def test_multiplier_is_the_inverse_of_the_size_of_the_inputs():
    inputs = torch.randn(4096, 8, generator=torch.Generator().manual_seed(0)) * 2.0 ** torch.arange(-4, 4)
    inputs[:, 0] = 0
    multiplier = input_multiplier(LayerStats.from_inputs(inputs)).double()
    assert float(multiplier.log().mean().exp()) == pytest.approx(1, rel=1e-2)
    torch.testing.assert_close(multiplier[1:-1] / multiplier[2:], torch.full((6,), 2.0, dtype=torch.float64), rtol=0.1, atol=0)
    assert torch.isfinite(multiplier).all()
    assert float(multiplier[0] / multiplier[-1]) < 1e5


def test_auto_rank_spends_an_eighth_of_a_bit():
    ranks = {(576, 576): 2, (192, 576): 1, (1536, 576): 3, (4096, 4096): 16}
    for shape in ((576, 576), (192, 576), (1536, 576)):
        weight = bitstack(torch.randn(shape, generator=torch.Generator().manual_seed(0)), None, blocks=1, scaled=False)
        assert weight.rank == ranks[shape]
        assert 1 < weight.bits_per_weight < 1.15


# One block of a 64 x 64 query projection, which is close to low rank, is the only case where singular vectors are ahead.
@pytest.mark.parametrize(
    ("name", "count", "factor"),
    [
        *((name, count, factor) for name in ("mlp.up_proj", "mlp.down_proj") for count, factor in ((1, 1.5), (2, 3), (4, 5))),
        ("self_attn.q_proj", 2, 1.5), ("self_attn.q_proj", 4, 5),
    ],
)  # fmt: skip
def test_signs_beat_singular_vectors_at_equal_bytes_on_trained_layers(real_layers: dict[str, Any], name: str, count: int, factor: float):
    real = real_layers[name]
    stack = bitstack(real.weight, real.stats, blocks=count, rank=1)
    ours = layer_error(real.weight, stack, real.held_out)
    theirs = layer_error(real.weight, plain_svd(real.weight, real.stats, stack.nbytes), real.held_out)
    assert theirs > factor * ours


@pytest.mark.parametrize("seed", range(3))
def test_scaling_by_the_inputs_pays_where_their_sizes_differ(seed: int):
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(2048, 128, generator=random) * torch.exp(1.5 * torch.randn(128, generator=random))
    weight, stats = torch.randn(96, 128, generator=random), LayerStats.from_inputs(inputs[:1536])
    held_out = LayerStats.from_inputs(inputs[1536:])
    for count in (1, 4):
        scaled, plain = (
            layer_error(weight, bitstack(weight, stats, blocks=count, rank=2, scaled=choice), held_out) for choice in (True, False)
        )
        assert scaled < 0.9 * plain


def test_output_error_falls_with_every_block(layer: Any):
    stack = bitstack(layer.weight, layer.stats, blocks=6)
    errors = [layer_error(layer.weight, stack.prefix(count), layer.held_out) for count in range(1, 7)]
    assert errors == sorted(errors, reverse=True)
    assert isinstance(stack, ResidualStack)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": 0}, "blocks must be an integer from 1 to 32, got 0"),
        ({"blocks": 33}, "blocks must be an integer from 1 to 32"),
        ({"rank": 40}, "rank 40 saves nothing on a weight of shape"),
        ({"rank": "most"}, "rank must be an integer"),
    ],
    ids=str,
)
def test_bad_options_are_one_sentence(layer: Any, options: dict[str, Any], message: str):
    with pytest.raises(InvalidArgument, match=message):
        bitstack(layer.weight, layer.stats, **options)


def test_statistics_are_only_needed_for_scaling(layer: Any):
    with pytest.raises(InvalidArgument, match="bitstack with scaled=True needs the statistics"):
        bitstack(layer.weight, None)
    assert bitstack(layer.weight, None, scaled=False).input_scale is None
