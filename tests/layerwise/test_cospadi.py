"""CoSpaDi against low rank of the same bytes, its budgets, and shared dictionaries."""

from __future__ import annotations

import pytest
import torch

from tersor.errors import InvalidArgument
from tersor.layerwise import LayerStats, cospadi, cospadi_group, layer_error, svd, whitened_svd
from tersor.weights import distinct_nbytes


def as_large(weight, stats, nbytes):
    """Whitened SVD of the smallest rank that takes at least ``nbytes``."""
    return whitened_svd(weight, stats, rank=-(-nbytes // (2 * sum(weight.shape))))


@pytest.mark.parametrize("keep", [0.4, 0.6, 0.8])
@pytest.mark.parametrize("name", ["self_attn.q_proj", "mlp.up_proj", "mlp.down_proj"])
def test_below_whitened_svd_at_equal_bytes_on_a_real_layer(real_layers, name, keep):
    layer = real_layers[name]
    made = cospadi(layer.weight, layer.stats, keep=keep)
    rival = as_large(layer.weight, layer.stats, made.nbytes)
    assert made.nbytes <= rival.nbytes
    for stats in (layer.stats, layer.held_out):
        assert layer_error(layer.weight, made, stats) < layer_error(layer.weight, rival, stats)


@pytest.mark.parametrize("seed", range(3))
def test_below_whitened_svd_at_equal_bytes_on_synthetic_layers(make_layer, seed):
    layer = make_layer(seed, 96, 64)
    made = cospadi(layer.weight, layer.stats, keep=0.6)
    rival = as_large(layer.weight, layer.stats, made.nbytes)
    assert layer_error(layer.weight, made, layer.stats) < 0.9 * layer_error(layer.weight, rival, layer.stats)


def test_inputs_help_and_without_them_it_is_below_svd(real_layers):
    layer = real_layers["mlp.up_proj"]
    aware, free = cospadi(layer.weight, layer.stats, keep=0.6), cospadi(layer.weight, LayerStats.identity(64), keep=0.6)
    assert layer_error(layer.weight, aware, layer.held_out) < layer_error(layer.weight, free, layer.held_out)
    identity = LayerStats.identity(64)
    assert layer_error(layer.weight, free, identity) < layer_error(layer.weight, svd(layer.weight, None, keep=0.6), identity)


ROUNDED = [{}, {"code_bits": 16}, {"code_bits": 8}, {"dictionary_bits": 8}, {"dictionary_bits": 4, "code_bits": 4}]


@pytest.mark.parametrize("options", ROUNDED, ids=str)
@pytest.mark.parametrize("keep", [0.3, 0.7])
def test_exact_accounting_keeps_every_byte_within_the_budget(layer, keep, options):
    made = cospadi(layer.weight, layer.stats, keep=keep, iterations=2, **options)
    limit = 2 * layer.weight.numel() * keep
    # An atom is a tenth of the smallest budget.
    assert 0.85 * limit < made.nbytes <= limit
    assert made.report["keep_exact"] == pytest.approx(made.nbytes / (2 * layer.weight.numel()))


def test_the_papers_accounting_is_exact_for_14_bits_at_two_atoms_a_nonzero(make_layer):
    layer = make_layer(0, 96, 64)
    made = cospadi(layer.weight, layer.stats, keep=0.6, accounting="effective", iterations=2)
    assert made.report["keep_effective"] == pytest.approx(0.6, rel=0.03)
    assert made.report["keep_exact"] == pytest.approx(made.report["keep_effective"], rel=0.02)
    longer = cospadi(layer.weight, layer.stats, keep=0.6, accounting="effective", code_bits=16, iterations=2)
    assert longer.report["keep_exact"] > longer.report["keep_effective"]


def test_every_row_mixes_its_share_of_the_atoms(layer):
    made = cospadi(layer.weight, layer.stats, keep=0.6, atoms_per_nonzero=3.0)
    report = made.report
    assert report["nonzeros"] == report["atoms"] // 3
    assert (made.codes.dense() != 0).sum(1).tolist() == [report["nonzeros"]] * 48


def test_rounding_both_parts_at_equal_bytes_pays(layer):
    """More atoms in fewer bits beat fewer atoms in more."""
    plain = cospadi(layer.weight, layer.stats, keep=0.5)
    rounded = cospadi(layer.weight, layer.stats, keep=0.5, dictionary_bits=8, code_bits=8)
    assert layer_error(layer.weight, rounded, layer.held_out) < 0.5 * layer_error(layer.weight, plain, layer.held_out)


def test_report_names_the_error_of_the_learned_factors(layer):
    made = cospadi(layer.weight, layer.stats, keep=0.6, damping=1e-9)
    assert layer_error(layer.weight, made, layer.stats) == pytest.approx(made.report["error"], rel=0.02)


@pytest.mark.parametrize("kind", ["tall", "few-tokens", "dead-inputs"])
def test_singular_inputs_are_damped(kind):
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 32, generator=random)
    x = torch.randn(16 if kind == "few-tokens" else 400, 32, generator=random)
    if kind == "dead-inputs":
        x[:, :8] = 0
    made = cospadi(weight, LayerStats.from_inputs(x), keep=0.6)
    assert torch.isfinite(made.dense()).all()
    assert made.report["error"] < 0.5


def test_a_group_shares_its_dictionary_and_beats_its_members_alone(real_layers):
    layer = real_layers["mlp.up_proj"]
    twins = [layer.weight, layer.weight + 0.01 * torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0))]
    made = cospadi_group(twins, [layer.stats, layer.stats], keep=0.5)
    assert made[0].dictionary is made[1].dictionary
    assert distinct_nbytes(made) <= 2 * sum(weight.numel() for weight in twins) * 0.5
    alone = cospadi(layer.weight, layer.stats, keep=0.5)
    assert layer_error(layer.weight, made[0], layer.held_out) < layer_error(layer.weight, alone, layer.held_out)


def test_bad_groups_and_options_are_refused(layer):
    with pytest.raises(InvalidArgument, match="one input width"):
        cospadi_group([layer.weight, layer.weight[:, :32]], [layer.stats, layer.stats])
    with pytest.raises(InvalidArgument, match=r"statistics of each; got .* and 1 statistics"):
        cospadi_group([layer.weight, layer.weight], [layer.stats])
    with pytest.raises(InvalidArgument, match="takes no option 'atoms'"):
        cospadi_group([layer.weight], [layer.stats], atoms=3)
    for options, message in (
        ({"keep": 0.001}, "single atom"), ({"code_bits": 12}, "14 or 16"), ({"dictionary_bits": 9}, "from 1 to 8"),
        ({"coder": "lasso"}, "coder must be"), ({"atoms_per_nonzero": 0.5}, "at least 1"), ({"iterations": 0}, "at least 1"),
        ({"accounting": "loose"}, "accounting must be"),
    ):  # fmt: skip
        with pytest.raises(InvalidArgument, match=message):
            cospadi(layer.weight, layer.stats, **options)
