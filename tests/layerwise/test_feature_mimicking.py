"""Feature mimicking: principal components of what tables and layers put out, against independent ways to find them."""

from __future__ import annotations

import pytest
import torch

from tersor.errors import InvalidArgument
from tersor.layerwise import LayerStats, embedding_error, feature_mimicking, layer_error, lord, mimic_embedding, svd, whitened_svd
from tersor.weights import BiasedWeight, LowRankWeight
from tersor.weights.modules import CompressedEmbedding, CompressedLinear

EXACT = {"factor_dtype": "float32", "damping": 1e-9}


def layer_with_mean(seed: int, tokens: int = 800, n: int = 20, out: int = 28) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight, the bias of its layer, and inputs behind a ReLU, whose mean is far from zero."""
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(n, n, generator=random) * torch.linspace(1, 0.05, n)
    inputs = torch.relu(torch.randn(tokens, n, generator=random) @ mixing.T + 0.5)
    return torch.randn(out, n, generator=random), torch.randn(out, generator=random), inputs


def skewed_table(seed: int, rows: int = 60, dim: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """A table, and counts of its ids that fall like those of real fields; the last ids never occur."""
    random = torch.Generator().manual_seed(seed)
    table = torch.randn(rows, dim, generator=random) * torch.rand(dim, generator=random) + torch.randn(dim, generator=random)
    counts = (500 / torch.arange(1, rows + 1)).long()
    counts[-5:] = 0
    return table, counts


@pytest.mark.parametrize("rank", [1, 4, 9])
@pytest.mark.parametrize("seed", range(3))
def test_linear_layer_is_the_principal_components_of_its_outputs(seed, rank):
    weight, bias, inputs = layer_with_mean(seed)
    made = feature_mimicking(weight, LayerStats.from_inputs(inputs), rank=rank, **EXACT)
    outputs = (inputs @ weight.T + bias).double()
    mean = outputs.mean(0)
    # Independently: singular vectors of the centred outputs themselves.
    directions = torch.linalg.svd(outputs - mean, full_matrices=False).Vh[:rank]
    expected = (outputs - mean) @ directions.T @ directions + mean
    torch.testing.assert_close(CompressedLinear(made, bias)(inputs).double(), expected, rtol=1e-3, atol=4e-3)


def test_linear_layer_is_beaten_by_no_other_affine_map_of_the_rank():
    from scipy.optimize import minimize

    weight, bias, inputs = layer_with_mean(1, tokens=60, n=5, out=6)
    made = CompressedLinear(feature_mimicking(weight, LayerStats.from_inputs(inputs), rank=2, **EXACT), bias)
    outputs = (inputs @ weight.T + bias).double()
    best = float((made(inputs).double() - outputs).square().sum())

    def lost(values: torch.Tensor) -> torch.Tensor:
        left, right, offset = values[:12].reshape(6, 2), values[12:22].reshape(2, 5), values[22:]
        return (inputs.double() @ right.T @ left.T + offset - outputs).square().sum()

    def with_gradient(x):
        values = torch.tensor(x, requires_grad=True)
        value = lost(values)
        (gradient,) = torch.autograd.grad(value, values)
        return value.item(), gradient.numpy()

    for seed in range(5):
        start = torch.randn(28, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).numpy()
        found = minimize(with_gradient, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000}).fun
        assert best <= found * (1 + 1e-4) + 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_features_lose_less_than_weights_do_at_any_rank(seed):
    weight, _, inputs = layer_with_mean(seed)
    stats = LayerStats.from_inputs(inputs)
    table, counts = skewed_table(seed)
    for rank in (1, 3, 6):
        ours, plain = feature_mimicking(weight, stats, rank=rank), svd(weight, rank=rank)
        assert layer_error(weight, ours, stats) < layer_error(weight, plain, stats)
        kept, cut = mimic_embedding(table, counts, rank=rank), mimic_embedding(table, None, rank=rank, center=False)
        assert embedding_error(table, kept, counts) < embedding_error(table, cut, counts)


def test_without_centring_it_is_whitened_svd_and_with_it_lord(layer):
    plain = feature_mimicking(layer.weight, layer.stats, rank=9, center=False)
    assert isinstance(plain, LowRankWeight)
    assert torch.equal(plain.dense(), whitened_svd(layer.weight, layer.stats, rank=9).dense())
    centred, rival = feature_mimicking(layer.weight, layer.stats, rank=9), lord(layer.weight, layer.stats, rank=9, center=True)
    assert torch.equal(centred.dense(), rival.dense())
    assert torch.equal(centred.bias, rival.bias)


def test_energy_finds_the_rank_of_the_outputs():
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(500, 4, generator=random) @ torch.randn(4, 24, generator=random) + 3.0
    weight = torch.randn(32, 24, generator=random)
    stats = LayerStats.from_inputs(inputs)
    made = feature_mimicking(weight, stats, energy=0.9999, **EXACT)
    assert made.report["rank"] == 4
    assert layer_error(weight, made, stats) < 1e-6
    assert feature_mimicking(weight, stats, energy=0.3).report["rank"] < 4
    table = torch.randn(50, 3, generator=random) @ torch.randn(3, 16, generator=random) + 1.0
    assert mimic_embedding(table, energy=0.999999).weight.rank == 3


@pytest.mark.parametrize("seed", range(3))
def test_table_is_the_principal_components_of_its_looked_up_rows(seed):
    table, counts = skewed_table(seed)
    made = mimic_embedding(table, counts, rank=4, factor_dtype="float32")
    rows = table.repeat_interleave(counts, 0).double()
    values = torch.linalg.svdvals(rows - rows.mean(0))
    assert made.report["error"] == pytest.approx(float(values[4:].square().sum() / rows.square().sum()), rel=1e-4)
    assert made.report["kept_energy"] == pytest.approx(float(values[:4].square().sum() / values.square().sum()), rel=1e-6)
    assert embedding_error(table, made, counts) == pytest.approx(made.report["error"])
    directions = made.weight.right.dense()
    torch.testing.assert_close(directions @ directions.T, torch.eye(4), atol=1e-6, rtol=0)


def test_full_rank_is_the_table():
    table, counts = skewed_table(3)
    torch.testing.assert_close(mimic_embedding(table, counts, rank=12, factor_dtype="float32").dense(), table, atol=1e-5, rtol=0)


def test_more_common_ids_are_kept_better():
    random = torch.Generator().manual_seed(4)
    table = torch.randn(200, 16, generator=random)
    common = torch.ones(200)
    common[:10] = 1000
    lost = [(mimic_embedding(table, counts, rank=8).dense() - table).square().sum(1) for counts in (common, None)]
    assert lost[0][:10].mean() < 0.2 * lost[1][:10].mean()
    assert lost[0][10:].mean() > lost[1][10:].mean()


def test_ids_that_never_occur_do_not_count_but_keep_a_row():
    table, counts = skewed_table(5)
    changed = table.clone()
    changed[-5:] = 100.0
    made, other = (mimic_embedding(values, counts, rank=4, factor_dtype="float32") for values in (table, changed))
    torch.testing.assert_close(made.weight.right.dense(), other.weight.right.dense())
    assert torch.isfinite(other.dense()).all()
    directions, mean = made.weight.right.dense(), made.mean
    torch.testing.assert_close(made.dense()[-1], (table[-1] - mean) @ directions.T @ directions + mean, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_fields_of_fewer_ids_than_the_rank(rows):
    table = torch.randn(rows, 16, generator=torch.Generator().manual_seed(rows))
    made = mimic_embedding(table, torch.arange(1, rows + 1), rank=8, factor_dtype="float32")
    assert made.weight.left.shape == (rows, 8)
    torch.testing.assert_close(made.dense(), table, atol=1e-5, rtol=0)


def test_folded_table_gives_the_rows_of_the_dense_one_and_zero_for_padding():
    table, counts = skewed_table(6)
    table[7] = 0
    made = mimic_embedding(table, counts, rank=4, padding_idx=7, factor_dtype="float32")
    module = CompressedEmbedding(made.folded(), padding_idx=7)
    index = torch.tensor([[0, 7], [59, 3]])
    torch.testing.assert_close(module(index), made.dense()[index])
    assert not module(torch.tensor([7])).any()
    # The padding is left out of the statistics, however often it occurs.
    counts[7] = 10_000
    assert torch.equal(mimic_embedding(table, counts, rank=4, padding_idx=7, factor_dtype="float32").mean, made.mean)


def test_stored_bytes_are_those_of_codes_and_directions():
    table, counts = skewed_table(7)
    made = mimic_embedding(table, counts, rank=4)
    assert made.weight.nbytes == 2 * (60 * 4 + 4 * 12)
    assert made.folded().nbytes == 2 * (60 * 5 + 5 * 12)


def test_table_never_looked_up_is_treated_evenly():
    table, counts = skewed_table(8)
    assert torch.equal(mimic_embedding(table, torch.zeros_like(counts), rank=4).dense(), mimic_embedding(table, rank=4).dense())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 13}, "rank 13 exceeds the 12 dimensions of the table; use at most 12"), ({"rank": 0}, "rank must be an integer"),
        ({"rank": 2, "energy": 0.5}, "energy chooses the rank"), ({"energy": 1.0}, "energy must be a number"),
        ({"center": "auto"}, "center must be true or false"), ({"padding_idx": 60}, "padding_idx must be an integer from 0 to 59"),
        ({"padding_idx": 3}, "row 3 of the table is not zero"), ({"factor_dtype": "int8"}, "factor_dtype must be"),
        ({"counts": torch.ones(3)}, r"one number a row of the table, shape \(60,\)"),
        ({"counts": -torch.ones(60)}, "finite and not negative"), ({"counts": torch.full((60,), float("nan"))}, "finite and not negative"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)  # fmt: skip
def test_wrong_options_for_tables_are_refused(options, message):
    with pytest.raises(InvalidArgument, match=message) as refusal:
        mimic_embedding(skewed_table(0)[0], **options)
    assert "\n" not in str(refusal.value)


def test_broken_table_is_refused():
    with pytest.raises(InvalidArgument, match=r"table of shape .* holds 12 NaN or Inf"):
        mimic_embedding(skewed_table(0)[0].index_fill(0, torch.tensor([1]), float("inf")))
    with pytest.raises(InvalidArgument, match="the table rounded to float16"):
        mimic_embedding(1e6 * skewed_table(0)[0], rank=3)


@pytest.mark.parametrize("options", [{"rank": 28}, {"energy": 0.999999}], ids=["rank", "energy"])
def test_ranks_that_save_nothing_are_refused(options, layer):
    with pytest.raises(InvalidArgument, match="saves nothing"):
        feature_mimicking(layer.weight, layer.stats, **options)
    with pytest.raises(InvalidArgument, match="energy chooses the rank"):
        feature_mimicking(layer.weight, layer.stats, keep=0.5, energy=0.5)


@pytest.mark.parametrize("name", ["mlp.up_proj", "mlp.down_proj"])
def test_on_a_real_layer_features_beat_weights_on_other_text(real_layers, name):
    layer = real_layers[name]
    ours = feature_mimicking(layer.weight, layer.stats, keep=0.5)
    assert isinstance(ours, BiasedWeight)
    assert layer_error(layer.weight, ours, layer.held_out) < layer_error(layer.weight, svd(layer.weight, keep=0.5), layer.held_out)
