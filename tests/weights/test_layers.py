"""Layers that hold a compressed weight: linear, embedding (tied), GPT-2's Conv1D and convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tersor.errors import InvalidArgument
from tersor.weights import (
    CompressedEmbedding,
    CompressedLinear,
    DenseWeight,
    QuantizedWeight,
    ZeroWeight,
    compressed_layer,
    dense_shape,
    matrix_of,
    set_matrix,
)


def weight_of(shape: tuple[int, int], seed: int = 0) -> QuantizedWeight:
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 8, shape, generator=random, dtype=torch.uint8)
    return QuantizedWeight(codes, torch.rand(shape[0], 1, generator=random) + 0.1, None, bits=3, scheme="symmetric", group_size=-1)


def conv1d() -> nn.Module:
    transformers = pytest.importorskip("transformers.pytorch_utils")
    return transformers.Conv1D(5, 6)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_linear_computes_with_the_compressed_matrix(bias: bool):
    layer = nn.Linear(6, 5, bias=bias)
    replaced = compressed_layer(layer, weight_of((5, 6)))
    with torch.no_grad():
        layer.weight.copy_(replaced.weight.dense())
    x = torch.randn(2, 3, 6)
    torch.testing.assert_close(replaced(x), layer(x))


def test_conv1d_is_transposed():
    layer = conv1d()
    assert dense_shape(layer) == (5, 6)
    assert torch.equal(matrix_of(layer), layer.weight.T)
    nn.init.normal_(layer.bias)
    replaced = compressed_layer(layer, weight_of((5, 6)))
    with torch.no_grad():
        layer.weight.copy_(replaced.weight.dense().T)
    x = torch.randn(2, 3, 6)
    torch.testing.assert_close(replaced(x), layer(x))


@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2, "padding": 1}, {"groups": 2}, {"dilation": 2, "bias": False}, {"padding": "same"}],
    ids=lambda options: "-".join(options) or "plain",
)
def test_convolution_keeps_its_options(options: dict):
    layer = nn.Conv2d(4, 6, 3, **options)
    replaced = compressed_layer(layer, weight_of(dense_shape(layer)))
    with torch.no_grad():
        layer.weight.copy_(replaced.weight.dense().reshape(layer.weight.shape))
    x = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(replaced(x), layer(x))


def test_embedding_looks_rows_up():
    layer = nn.Embedding(11, 8, padding_idx=0)
    replaced = compressed_layer(layer, weight_of((11, 8)))
    index = torch.tensor([[0, 3], [10, 3]])
    assert torch.equal(replaced(index), replaced.weight.dense()[index])
    assert replaced.padding_idx == 0


def test_embedding_decompresses_only_the_rows_asked_for(monkeypatch):
    replaced = CompressedEmbedding(weight_of((11, 8)))
    expected = replaced.weight.dense()[[4]]
    monkeypatch.setattr(QuantizedWeight, "dense", None)
    assert torch.equal(replaced(torch.tensor([4])), expected)


def test_a_tied_head_is_one_tensor():
    table = CompressedEmbedding(weight_of((11, 8)))
    head = CompressedLinear(table.weight)
    model = nn.ModuleDict({"table": table, "head": head})
    assert len(list(model.buffers())) == len(list(table.buffers()))
    x = torch.randn(3, 8)
    torch.testing.assert_close(head(x), x @ table.weight.dense().T)
    model.to(torch.float64)
    assert model["head"].weight is model["table"].weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_embedding_follows_the_type_of_the_model(dtype: torch.dtype):
    model = nn.Sequential(CompressedEmbedding(weight_of((11, 8))), nn.LayerNorm(8), CompressedLinear(weight_of((4, 8)), torch.ones(4)))
    before = model[0].weight.dense()
    model.to(dtype)
    y = model(torch.tensor([1, 2]))
    assert y.dtype == dtype
    assert model[0].weight.dtype == dtype
    assert torch.equal(model[0].weight.dense(), before)


def test_scaled_embedding_keeps_its_factor():
    bart = pytest.importorskip("transformers.models.bart.modeling_bart")
    gemma = pytest.importorskip("transformers.models.gemma3.modeling_gemma3")
    for layer in (
        bart.BartScaledWordEmbedding(11, 8, 0, embed_scale=3.0), gemma.Gemma3TextScaledWordEmbedding(11, 8, 0, embed_scale=3.0),
    ):
        replaced = compressed_layer(layer, DenseWeight(layer.weight.detach()))
        index = torch.tensor([[1, 2, 3]])
        assert torch.equal(replaced(index), layer(index))


def test_a_layer_that_computes_more_than_the_product_is_refused():
    class Shifted(nn.Embedding):
        def forward(self, index: torch.Tensor) -> torch.Tensor:
            return super().forward(index + 2)

    class Clipped(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).clamp(-1, 1)

    class Doubled(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    for layer in (Shifted(8, 4), Clipped(4, 8), Doubled(4, 8, 1)):
        with pytest.raises(InvalidArgument, match=f"{type(layer).__name__} computes something of its own"):
            compressed_layer(layer, weight_of((8, 4)))


def test_subclass_without_own_forward_is_accepted():
    class Named(nn.Linear):
        pass

    assert isinstance(compressed_layer(Named(4, 8), weight_of((8, 4))), CompressedLinear)


def test_layers_are_built_on_the_meta_device():
    with torch.device("meta"):
        for layer in (nn.Linear(6, 5), nn.Embedding(5, 6), nn.Conv2d(6, 5, 1)):
            replaced = compressed_layer(layer, ZeroWeight((5, 6)))
            assert all(parameter.is_meta for parameter in replaced.parameters())


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Linear(6, 4), r"a layer of shape \(4, 6\) cannot hold a weight of shape \(5, 6\)"),
        (nn.Conv2d(6, 4, 1), r"needs a weight of shape \(4, 6\), got \(5, 6\)"),
        (nn.Conv2d(6, 5, 1, padding_mode="reflect"), "padding_mode 'reflect' is not supported"),
        (nn.LayerNorm(6), "LayerNorm holds no matrix"),
    ],
    ids=["linear", "convolution", "padding", "norm"],
)
def test_what_does_not_fit_is_refused(layer: nn.Module, message: str):
    with pytest.raises(InvalidArgument, match=message):
        compressed_layer(layer, weight_of((5, 6)))


def test_a_layer_without_a_matrix_has_none():
    assert matrix_of(nn.LayerNorm(3)) is None


def test_matrix_of_flattens_a_kernel():
    layer = nn.Conv2d(4, 6, 3, groups=2)
    assert matrix_of(layer).shape == dense_shape(layer) == (6, 18)


@pytest.mark.parametrize("kind", ["linear", "embedding", "conv1d", "conv2d"])
def test_set_matrix_is_the_inverse_of_matrix_of(kind: str):
    build = {"linear": lambda: nn.Linear(6, 5), "embedding": lambda: nn.Embedding(5, 6), "conv2d": lambda: nn.Conv2d(6, 5, 1)}
    layer = build.get(kind, conv1d)()
    shape = layer.weight.shape
    matrix = torch.randn(5, 6, dtype=torch.float64)
    set_matrix(layer, matrix)
    assert layer.weight.shape == shape
    assert torch.equal(matrix_of(layer), matrix.float())
    with pytest.raises(InvalidArgument, match=r"a layer of shape \(5, 6\) cannot take a matrix of shape \(6, 5\)"):
        set_matrix(layer, matrix.T)
