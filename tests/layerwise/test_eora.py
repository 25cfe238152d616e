"""EoRA: optimal for the layer's output by the theorem, never worse than its baselines, and at home on any base."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise import LayerStats, compensate, eora, find_method, layer_error, rtn, wanda
from tersor.layerwise.low_rank import truncate
from tersor.weights import CompressedWeight, DenseWeight, LowRankWeight, QuantizedWeight, SumWeight

SHAPE = (40, 48)
BASES: dict[str, dict[str, Any]] = {
    "rtn": {"bits": 3, "group_size": 16},
    "gptq": {"bits": 3, "group_size": 16},
    "wanda": {"keep_n": 2, "of_m": 4},
    "sparsegpt": {"sparsity": 0.5, "bits": 4, "group_size": 16},
}


def correlated(seed: int, n_tokens: int = 1024, spread: float = 1.5) -> Tensor:
    """Inputs whose covariance has directions of very different size, as those of trained layers have."""
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(SHAPE[1], SHAPE[1], generator=random) * torch.exp(spread * torch.randn(SHAPE[1], 1, generator=random))
    return torch.randn(n_tokens, SHAPE[1], generator=random) @ mixing


def layer(seed: int) -> tuple[Tensor, LayerStats]:
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(100 + seed))
    return weight, LayerStats.from_inputs(correlated(seed))


def correction_of(total: SumWeight) -> LowRankWeight:
    last = list(total)[-1]
    assert isinstance(last, LowRankWeight)
    return last


def lost(weight: Tensor, compressed: CompressedWeight, stats: LayerStats) -> float:
    """``tr(D H D^T)``."""
    difference = weight.double() - compressed.dense().double()
    return float(((difference @ stats.hessian) * difference).sum())


@pytest.mark.parametrize("rank", [1, 5, 24, 39])
@pytest.mark.parametrize("base", ["rtn", "wanda"])
def test_error_is_the_sum_of_the_discarded_squared_singular_values(base: str, rank: int):
    weight, stats = layer(0)
    compressed = find_method(base).function(weight, stats, **BASES[base])
    found = compensate(weight, compressed, stats, rank=rank, damping=0, factor_dtype="float32")
    root = torch.linalg.cholesky(stats.hessian)
    singular = torch.linalg.svdvals((weight.double() - compressed.dense().double()) @ root)
    assert lost(weight, found, stats) == pytest.approx(float(singular[rank:].square().sum()), rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_any_root_of_the_second_moment_gives_the_same_correction(seed: int):
    weight, stats = layer(seed)
    residual = weight.double() - rtn(weight, bits=3, group_size=16).dense().double()
    values, vectors = torch.linalg.eigh(stats.hessian)
    roots = {
        "cholesky": torch.linalg.cholesky(stats.hessian),
        "eigen": vectors * values.clamp(min=0).sqrt(),
        "symmetric": vectors * values.clamp(min=0).sqrt() @ vectors.T,
    }
    found = {name: truncate(residual, root, 6, "float32").dense() for name, root in roots.items()}
    for name in ("eigen", "symmetric"):
        torch.testing.assert_close(found[name], found["cholesky"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("base", BASES)
def test_no_other_space_loses_less_on_the_inputs_it_was_fitted_to(base: str, seed: int):
    weight, stats = layer(seed)
    exact: dict[str, Any] = {"rank": 8, "damping": 0, "factor_dtype": "float32", **BASES[base]}
    errors = {
        space: layer_error(weight, eora(weight, stats, base=base, space=space, **exact), stats)
        for space in ("eigenspace", "scaled", "plain")
    }
    alone = layer_error(weight, find_method(base).function(weight, stats, **BASES[base]), stats)
    assert errors["eigenspace"] <= min(errors["scaled"], errors["plain"]) * (1 + 1e-6)
    assert errors["eigenspace"] < alone


@pytest.mark.parametrize("seed", range(3))
def test_fresh_inputs_prefer_the_eigenspace_after_rounding_and_pruning(seed: int):
    weight, inputs = layer(seed)[0], correlated(seed, 8192)
    stats, held_out = LayerStats.from_inputs(inputs[:4096]), LayerStats.from_inputs(inputs[4096:])
    for base in ("rtn", "wanda"):
        errors = {
            space: layer_error(weight, eora(weight, stats, base=base, rank=8, space=space, **BASES[base]), held_out)
            for space in ("eigenspace", "scaled", "plain")
        }
        assert errors["eigenspace"] < min(errors["scaled"], errors["plain"])


def test_error_never_rises_with_the_rank_and_full_rank_gives_the_weight_back():
    weight, stats = layer(1)
    base = rtn(weight, bits=2, group_size=16)
    corrected = [compensate(weight, base, stats, rank=rank, factor_dtype="float32") for rank in (1, 2, 4, 8, 16, 32, 40)]
    errors = [layer_error(weight, total, stats) for total in corrected]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-10


def test_both_call_forms_are_one_method():
    weight, stats = layer(2)
    by_recipe = eora(weight, stats, base="rtn", bits=3, group_size=16, rank=4)
    by_hand = eora(weight, rtn(weight, bits=3, group_size=16), stats, rank=4)
    assert torch.equal(by_recipe.dense(), by_hand.dense())
    assert torch.equal(by_hand.dense(), compensate(weight, rtn(weight, bits=3, group_size=16), stats, rank=4).dense())
    assert by_recipe.report["base"]["method"] == "rtn"
    assert by_hand.report.keys() < by_recipe.report.keys()


def test_the_base_is_held_as_it_is():
    weight, stats = layer(0)
    base = rtn(weight, bits=3, group_size=16)
    total = compensate(weight, base, stats, rank=4)
    assert next(iter(total)) is base
    assert correction_of(total).rank == 4
    assert total.nbytes == base.nbytes + 2 * 4 * sum(SHAPE)


def test_kept_energy_is_what_the_correction_restores():
    weight, stats = layer(0)
    base = wanda(weight, stats, sparsity=0.5)
    total = compensate(weight, base, stats, rank=6, damping=0, factor_dtype="float32")
    assert total.report["kept_energy"] == pytest.approx(1 - lost(weight, total, stats) / lost(weight, base, stats), rel=1e-5)


@pytest.mark.parametrize("space", ["eigenspace", "plain"])
def test_quantised_factors_cost_their_bits_and_keep_most_of_the_gain(space: Any):
    weight, stats = layer(0)
    base = rtn(weight, bits=3, group_size=16)
    floats = compensate(weight, base, stats, rank=8, space=space, factor_dtype="float32")
    rounded = {bits: compensate(weight, base, stats, rank=8, space=space, factor_bits=bits, group_size=16) for bits in (2, 4, 8)}
    kept = {bits: total.report["kept_energy"] for bits, total in rounded.items()}
    assert kept[2] < kept[4] < kept[8]
    assert kept[4] > 0.9 * floats.report["kept_energy"]
    assert kept[8] == pytest.approx(floats.report["kept_energy"], rel=1e-2)
    for bits, total in rounded.items():
        assert isinstance(correction_of(total).left, QuantizedWeight)
        assert correction_of(total).left.bits == correction_of(total).right.bits == bits
    assert rounded[4].nbytes < floats.nbytes


def test_rounded_left_factor_repairs_the_rounding_of_the_right_one():
    weight, stats = layer(1)
    base = rtn(weight, bits=3, group_size=16)
    together = compensate(weight, base, stats, rank=8, factor_bits=4, group_size=16, damping=0)
    floats = correction_of(compensate(weight, base, stats, rank=8, damping=0, factor_dtype="float32"))
    apart = LowRankWeight(rtn(floats.left.dense(), bits=4, group_size=-1), rtn(floats.right.dense(), bits=4, group_size=16))
    assert lost(weight, together, stats) < lost(weight, SumWeight([base, apart]), stats)


@pytest.mark.parametrize("factor_bits", [None, 4], ids=["floats", "rounded"])
@pytest.mark.parametrize("space", ["eigenspace", "scaled", "plain"])
def test_dead_and_repeated_inputs_do_no_harm(space: Any, factor_bits: int | None):
    weight, inputs = layer(0)[0], correlated(0)
    inputs[:, 5] = 0
    inputs[:, 7] = inputs[:, 8]
    stats = LayerStats.from_inputs(inputs)
    total = compensate(weight, wanda(weight, stats, sparsity=0.5), stats, rank=8, space=space, damping=0, factor_bits=factor_bits)
    assert torch.isfinite(total.dense()).all()
    assert layer_error(weight, total, stats) < layer_error(weight, wanda(weight, stats, sparsity=0.5), stats)


def test_a_perfect_base_needs_no_correction():
    weight, stats = layer(0)
    for bits in (None, 4):
        total = compensate(weight, DenseWeight(weight), stats, rank=3, factor_bits=bits)
        assert torch.equal(total.dense(), weight)
        assert total.report["kept_energy"] == 1.0


def test_default_rank_costs_half_a_bit():
    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    stats = LayerStats.identity(512)
    base = rtn(weight, bits=3, group_size=64)
    for bits in (None, 4):
        extra = compensate(weight, base, stats, factor_bits=bits, group_size=64).bits_per_weight - base.bits_per_weight
        assert extra == pytest.approx(0.5, abs=0.1)


def test_options_of_the_base_are_checked_by_the_base():
    weight, stats = layer(0)
    with pytest.raises(InvalidArgument, match="takes no option 'bits'"):
        eora(weight, stats, base="wanda", bits=3)
    with pytest.raises(InvalidArgument, match="unknown method 'gtpq'"):
        eora(weight, stats, base="gtpq")
    assert eora(weight, stats, base="wanda", sparsity=0.5, group_size=16).report["base"]["sparsity"] == 0.5
    assert eora(weight, stats, bits=3, group_size=16, base_options={"act_order": True}).report["base"]["method"] == "gptq"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 41}, "rank 41 is above the smaller dimension .* at most 40"),
        ({"rank": 0}, "rank must be an integer"),
        ({"factor_bits": 9}, "factor_bits must be an integer from 1 to 8"),
        ({"damping": -1.0}, "damping must be a number"),
        ({"space": "eigen"}, "space must be one of 'eigenspace', 'scaled', 'plain'"),
        ({"factor_dtype": "int8"}, "factor_dtype must be one of"),
        ({"bits": 3}, "compressed already; bits would do nothing"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_options_are_one_sentence(options: dict[str, Any], message: str):
    weight, stats = layer(0)
    with pytest.raises(InvalidArgument, match=message):
        eora(weight, rtn(weight, bits=3, group_size=16), stats, **options)


def test_missing_statistics_and_foreign_bases_are_named():
    weight, stats = layer(0)
    base = rtn(weight, bits=3, group_size=16)
    with pytest.raises(InvalidArgument, match="eora in the eigenspace space needs the statistics"):
        eora(weight, base, None)
    with pytest.raises(InvalidArgument, match=r"shape \(40, 48\), the original \(20, 48\)"):
        eora(weight[:20], base, stats)
    assert compensate(weight, base, None, space="plain", rank=2).report["kept_energy"] > 0
