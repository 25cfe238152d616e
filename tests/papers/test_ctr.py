"""The click models of the feature-mimicking experiment: what compression may and may not change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tersor.errors import CorruptFile, InvalidArgument
from tersor.papers.ctr import KINDS, ClickData, Clicks, Ranks, build, compress, load_clicks, pack, score, train
from tersor.papers.ctr.compression import PackedEmbedding
from tersor.papers.ctr.models import CodedEmbedding, CrossNetwork, FieldAttention, pooled_pairs

SIZES = (2, 30, 7, 12)
EVERY = pytest.mark.parametrize("kind", KINDS)


def planted(seed: int = 0, rows: int = 3000) -> ClickData:
    """Clicks drawn from a model of pairwise products, with ids as unequal as real ones."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.stack([(torch.rand(rows, generator=random) ** 3 * size).long() for size in SIZES], 1)
    tables = [torch.randn(size, 3, generator=random) for size in SIZES]
    rows_of = torch.stack([table[ids[:, index]] for index, table in enumerate(tables)], 1)
    labels = (pooled_pairs(rows_of).sum(1) > torch.randn(rows, generator=random)).float()
    cuts = [slice(0, rows // 2), slice(rows // 2, 3 * rows // 4), slice(3 * rows // 4, rows)]
    return ClickData("planted", SIZES, *(Clicks(ids[cut], labels[cut]) for cut in cuts))


def model_of(kind: str, data: ClickData, epochs: int = 2):
    model = build(kind, data.sizes, seed=1, dim=8, hidden=(24, 20, 16))
    return train(model, data, epochs=epochs, learning_rate=1e-2, seed=0, batch=128)


@EVERY
def test_learns_what_was_planted(kind):
    data = planted()
    untrained = build(kind, data.sizes, seed=1, dim=8, hidden=(24, 20, 16))
    assert score(model_of(kind, data, epochs=4), data.test).auc > max(score(untrained, data.test).auc, 0.75)


@EVERY
@pytest.mark.parametrize("guide", ["features", "weights"])
def test_full_width_codes_and_the_fused_layer_change_nothing(kind, guide):
    data = planted()
    model = model_of(kind, data)
    small = compress(model, data.train, Ranks(8, None), guide=guide)
    with torch.no_grad():
        torch.testing.assert_close(small(data.test.ids), model(data.test.ids), atol=1e-4, rtol=1e-4)


@EVERY
def test_halves_without_activation_are_the_low_rank_layer(kind):
    from tersor.layerwise import LayerStats, feature_mimicking

    data = planted()
    model = model_of(kind, data)
    small = compress(model, data.train, Ranks(None, 5))
    x = torch.relu(model.tower.layers[0](_tower_input(model, data.train.ids)))
    layer = model.tower.layers[1]
    expected = feature_mimicking(layer.weight, LayerStats.from_inputs(x), rank=5, factor_dtype="float32")
    with torch.no_grad():
        torch.testing.assert_close(small.tower.layers[1](x), expected(x) + layer.bias, atol=1e-3, rtol=1e-3)
        # The first half is that of the features, its bias too, so that an activation between the halves has its place.
        inner = small.tower.layers[1][0](x) - small.tower.layers[1][0].bias
        torch.testing.assert_close(inner, x @ expected.body.right.dense().T, atol=1e-4, rtol=1e-4)


def _tower_input(model, ids):
    codes = model.embedding(ids)
    return (pooled_pairs(codes) if model.kind == "nfm" else codes.flatten(1)).detach()


@EVERY
def test_compressed_models_are_smaller_and_the_original_is_left_alone(kind):
    data = planted()
    model = model_of(kind, data)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = compress(model, data.train, Ranks(2, 4), activation=True)
    tuned = train(small, data, epochs=1, learning_rate=1e-3, seed=0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert sum(p.numel() for p in tuned.parameters()) < 0.6 * sum(p.numel() for p in model.parameters())
    assert score(tuned, data.validation).auc >= score(small, data.validation).auc


@EVERY
def test_packed_models_answer_alike_in_half_the_bytes(kind):
    data = planted()
    model = model_of(kind, data)
    for each in (model, compress(model, data.train, Ranks(2, 4))):
        packed, stored = pack(each)
        assert stored == 2 * sum(parameter.numel() for parameter in each.parameters())
        assert isinstance(packed.embedding, PackedEmbedding)
        with torch.no_grad():
            torch.testing.assert_close(packed(data.test.ids), each(data.test.ids), atol=2e-2, rtol=2e-2)


def test_packed_tables_look_up_the_rows_of_the_dense_ones():
    data = planted()
    small = compress(model_of("deepfm", data), data.train, Ranks(3, None))
    assert isinstance(small.embedding, CodedEmbedding)
    packed, _ = pack(small)
    ids = data.test.ids[:50]
    recovered = packed.embedding.recover(packed.embedding(ids))
    for index, field in enumerate(packed.embedding.fields):
        torch.testing.assert_close(recovered[:, index], field.weight.dense()[ids[:, index]] + packed.embedding.mean[index].float())
        torch.testing.assert_close(field(ids[:, index]), field.weight.dense()[ids[:, index]])


def test_planted_rank_is_enough_and_one_less_is_not():
    data = planted()
    model = model_of("deepfm", data, epochs=1)
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        tables = [torch.randn(size, 3, generator=random) @ torch.randn(3, 8, generator=random) + 1 for size in SIZES]
        model.embedding.table.weight.copy_(torch.cat(tables))
        exact, short = (compress(model, data.train, Ranks(rank, None))(data.test.ids) - model(data.test.ids) for rank in (3, 2))
    assert exact.abs().max() < 1e-2 < 0.1 < short.abs().max()


def test_same_seed_same_model_and_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    first, second = (build("autoint", SIZES, seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(state, torch.get_rng_state())


def test_pooled_pairs_are_the_products_of_all_pairs():
    x = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))
    expected = sum(x[:, i] * x[:, j] for i in range(4) for j in range(i))
    torch.testing.assert_close(pooled_pairs(x), expected)


def test_cross_network_is_the_published_recursion():
    random = torch.Generator().manual_seed(1)
    cross = CrossNetwork(6, layers=2)
    with torch.no_grad():
        for parameter in cross.parameters():
            parameter.normal_(generator=random)
        x = torch.randn(3, 6, generator=random)
        for row in x:
            state = row
            for weight, bias in zip(cross.weights, cross.biases, strict=True):
                state = row.outer(state) @ weight + bias + state
            torch.testing.assert_close(cross(row.reshape(1, 2, 3))[0], (cross.out.weight @ state)[0])


def test_field_attention_is_the_published_formula():
    random = torch.Generator().manual_seed(2)
    attention = FieldAttention(3, 4, layers=1, heads=2)
    with torch.no_grad():
        x = torch.randn(2, 3, 4, generator=random)
        query, key, value, residual = (x @ block.T for block in attention.projections[0].weight.chunk(4))
        heads = [
            (query[..., part] @ key[..., part].mT).softmax(-1) @ value[..., part] for part in (slice(0, 2), slice(2, 4))
        ]  # fmt: skip
        expected = torch.relu(torch.cat(heads, -1) + residual).flatten(1) @ attention.out.weight[0]
        torch.testing.assert_close(attention(x), expected)


def test_unknown_models_and_logs_are_refused(monkeypatch, tmp_path):
    with pytest.raises(InvalidArgument, match="unknown model 'xdeepfm'; known are deepfm, dcn, autoint, nfm"):
        build("xdeepfm", SIZES, seed=0)
    with pytest.raises(InvalidArgument, match="unknown click log 'kdd'; known are frappe, criteo, avazu"):
        load_clicks("kdd")
    monkeypatch.delenv("TERSOR_DATA", raising=False)
    with pytest.raises(InvalidArgument, match="TERSOR_DATA"):
        load_clicks("frappe")
    monkeypatch.setenv("TERSOR_DATA", str(tmp_path))
    with pytest.raises(InvalidArgument, match="there is no folder"):
        load_clicks("frappe")


def write_frappe(folder: Path, *rows: str) -> None:
    (folder / "ctr" / "frappe").mkdir(parents=True)
    for part in ("validation", "test"):
        (folder / "ctr" / "frappe" / f"frappe.{part}.libfm").write_text("\n".join(rows), encoding="utf-8")


@pytest.mark.parametrize(
    ("row", "message"), [("1 2:1", "row 2 does not hold 11 values"), ("0 " + "2:1 " * 9 + "2:1", "labels must be -1 or 1")]
)
def test_damaged_logs_are_named(row, message, monkeypatch, tmp_path):
    write_frappe(tmp_path, "1 " + "2:1 " * 9 + "2:1", row)
    monkeypatch.setenv("TERSOR_DATA", str(tmp_path))
    with pytest.raises(CorruptFile, match=message):
        load_clicks("frappe")


@pytest.mark.parametrize(("name", "fields", "rows"), [("frappe", 10, 86582), ("criteo", 39, 8000), ("avazu", 22, 8999)])
def test_real_logs(name, fields, rows, data_dir):
    data = load_clicks(name)
    parts = (data.train, data.validation, data.test)
    assert len(data.sizes) == fields
    assert sum(len(part) for part in parts) == rows
    assert all(0.1 < part.labels.mean() < 0.4 for part in parts)
    assert all(int(part.ids[:, index].max()) < size for part in parts for index, size in enumerate(data.sizes))
    minimum = 1 if name == "frappe" else 2
    assert all(bool((counts[1:] >= minimum).all()) for counts in data.counts())
