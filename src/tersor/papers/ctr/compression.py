"""Compressing a whole click model: tables into codes, the layers behind them fused or factorised, and everything packed in float16."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tersor import layerwise
from tersor.papers.ctr.data import Clicks
from tersor.papers.ctr.models import CodedEmbedding, CTRModel, FieldEmbedding
from tersor.weights import BiasedWeight, CompressedWeight, DenseWeight, LowRankWeight
from tersor.weights.modules import CompressedEmbedding, CompressedLinear

Guide = Literal["features", "weights"]


@dataclass(frozen=True)
class Ranks:
    """Sizes of a compressed click model.

    Attributes:
        embedding: Columns of the tables; ``None`` leaves them as they are.
        tower: Rank of the layers of the tower behind the first; ``None`` leaves them as they are.
    """

    embedding: int | None
    tower: int | None


def compress(model: CTRModel, clicks: Clicks, ranks: Ranks, *, guide: Guide = "features", activation: bool = False) -> CTRModel:
    """A smaller copy of a trained ``model``, to be fine-tuned.

    Tables become codes. The linear layer that reads them takes their map in; whatever is not linear reads recovered embeddings. The
    layers of the tower behind the first become two each; the first, which shrinks with the codes, is left alone.

    Args:
        model: The trained model.
        clicks: What it was trained on: counts of ids and the inputs of the layers are taken from here.
        ranks: Sizes.
        guide: ``"features"`` for the principal components of what tables and layers put out, ``"weights"`` for the singular values of
            what they are.
        activation: Whether to put a ReLU between the two halves of a layer. It changes the function, so fine-tune after it.

    Raises:
        InvalidArgument: If a rank exceeds what the tables and layers allow.
    """
    small = copy.deepcopy(model)
    if ranks.embedding is not None:
        small.embedding = _coded(model.embedding, clicks, ranks.embedding, guide)
        if small.tower_reads_codes:
            small.tower.layers[0] = _fused(small.tower.layers[0], small.embedding)
    if ranks.tower is not None:
        stats = _tower_stats(model, clicks) if guide == "features" else {}
        for index, layer in _inner_layers(model).items():
            weight, bias = layer.weight.detach(), layer.bias.detach()
            made: LowRankWeight | BiasedWeight
            if guide == "features":
                made = layerwise.feature_mimicking(weight, stats[index], rank=ranks.tower, factor_dtype="float32")
            else:
                made = layerwise.svd(weight, rank=ranks.tower, factor_dtype="float32")
            small.tower.layers[index] = _halves(made, bias, activation)
    return small.eval()


def _coded(embedding: FieldEmbedding, clicks: Clicks, rank: int, guide: Guide) -> CodedEmbedding:
    tables = embedding.table.weight.detach().split(embedding.sizes)
    made = []
    for index, table in enumerate(tables):
        counts = torch.bincount(clicks.ids[:, index], minlength=len(table)) if guide == "features" else None
        made.append(layerwise.mimic_embedding(table, counts, rank=rank, center=guide == "features", factor_dtype="float32"))
    coded = CodedEmbedding(
        embedding.sizes, torch.stack([each.weight.right.dense() for each in made]), torch.stack([each.mean for each in made])
    )
    coded.table.weight.data = torch.cat([each.weight.left.dense() for each in made])
    return coded


def _fused(layer: nn.Module, embedding: CodedEmbedding) -> nn.Linear:
    """The layer that makes of codes what ``layer`` makes of the embeddings that they stand for."""
    assert isinstance(layer, nn.Linear)
    fields, _, dim = embedding.maps.shape
    weight = layer.weight.detach()
    blocks = torch.einsum("hfd,fkd->hfk", weight.unflatten(1, (fields, dim)), embedding.maps.detach())
    return _linear(blocks.flatten(1), layer.bias.detach() + weight @ embedding.mean.detach().flatten())


def _inner_layers(model: CTRModel) -> dict[int, nn.Linear]:
    """The layers of the tower of an original model behind the first, by their places."""
    return {index: layer for index, layer in enumerate(model.tower.layers) if index > 0 and isinstance(layer, nn.Linear)}


def _tower_stats(model: CTRModel, clicks: Clicks) -> dict[int, layerwise.LayerStats]:
    """Statistics of the inputs of the layers of the tower behind the first."""
    layers = _inner_layers(model)
    seen = {index: layerwise.StatsAccumulator(layer.in_features) for index, layer in layers.items()}
    hooks = [layers[index].register_forward_pre_hook(lambda _, args, into=into: into.update(args[0])) for index, into in seen.items()]
    try:
        with torch.no_grad():
            for ids in clicks.ids.split(4096):
                model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    return {index: accumulator.finish() for index, accumulator in seen.items()}


def _halves(weight: LowRankWeight | BiasedWeight, bias: Tensor, activation: bool) -> nn.Sequential:
    """Two linear layers for ``weight x + bias``, the bias shared out so that the first half is that of the features as well."""
    body = weight.body if isinstance(weight, BiasedWeight) else weight
    assert isinstance(body, LowRankWeight)
    left, right = body.left.dense(), body.right.dense()
    # The columns of the left factor are orthogonal, so this is the least-squares solution of left @ inner = bias.
    inner = left.T @ bias / left.square().sum(0)
    outer = bias - left @ inner
    if isinstance(weight, BiasedWeight):
        outer = outer + weight.bias
    between = [nn.ReLU()] if activation else []
    return nn.Sequential(_linear(right, inner), *between, _linear(left, outer))


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])
    layer.weight = nn.Parameter(weight.clone())
    layer.bias = nn.Parameter(bias.clone())
    return layer


class PackedEmbedding(nn.Module):
    """Tables as compressed weights, one a field, of which only the rows that are asked for are ever made dense.

    Args:
        embedding: What to pack: whole tables in float16, codes as the left factors of low-rank weights.
    """

    def __init__(self, embedding: FieldEmbedding) -> None:
        super().__init__()
        tables = embedding.table.weight.detach().half().split(embedding.sizes)
        weights: list[CompressedWeight] = [DenseWeight(table) for table in tables]
        mean = None
        if isinstance(embedding, CodedEmbedding):
            weights = [LowRankWeight(codes, to_dim) for codes, to_dim in zip(tables, embedding.maps.detach().half(), strict=True)]
            mean = embedding.mean.detach().half()
        self.fields = nn.ModuleList(CompressedEmbedding(weight) for weight in weights)
        self.mean: Tensor | None
        self.register_buffer("mean", mean)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows of the tables or codes ``[batch, fields, columns]``."""
        stored = [weight.left if isinstance(weight, LowRankWeight) else weight for weight in self._weights()]
        return torch.stack([weight.rows(ids[:, index]) for index, weight in enumerate(stored)], 1)

    def recover(self, codes: Tensor) -> Tensor:
        """The embeddings ``[batch, fields, dim]`` that they stand for."""
        if self.mean is None:
            return codes
        maps = torch.stack([weight.right.dense() for weight in self._weights() if isinstance(weight, LowRankWeight)])
        return torch.einsum("bfk,fkd->bfd", codes, maps) + self.mean.float()

    def _weights(self) -> list[CompressedWeight]:
        return [field.weight for field in self.fields if isinstance(field, CompressedEmbedding)]


def pack(model: CTRModel) -> tuple[nn.Module, int]:
    """``model`` as it is stored, everything in float16 and compressed weights used as they are, and the bytes that takes."""
    packed = copy.deepcopy(model)
    packed.embedding, packed.linear = PackedEmbedding(model.embedding), PackedEmbedding(model.linear)  # type: ignore[assignment]
    for path, layer in list(packed.named_modules()):
        if isinstance(layer, nn.Linear):
            parent, _, name = path.rpartition(".")
            bias = None if layer.bias is None else layer.bias.detach().half()
            setattr(packed.get_submodule(parent), name, CompressedLinear(DenseWeight(layer.weight.detach().half()), bias))
    for holder in packed.modules():
        for name, parameter in list(holder.named_parameters(recurse=False)):
            if parameter.is_floating_point() and parameter.dtype == torch.float32:
                setattr(holder, name, nn.Parameter(parameter.detach().half().float(), requires_grad=False))
    return packed.eval(), _stored_bytes(packed)


def _stored_bytes(packed: nn.Module) -> int:
    total = 0
    for tensor in packed.state_dict().values():
        # Parameters outside compressed weights hold float16 values, and are kept in float32 only to be computed with.
        total += tensor.numel() * (2 if tensor.is_floating_point() else tensor.element_size())
    return total
