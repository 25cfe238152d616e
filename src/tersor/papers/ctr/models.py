"""DeepFM, DCN, AutoInt and NFM: embeddings of all fields, what lets them interact, and a tower of linear layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tersor.errors import InvalidArgument

# Smaller than DeepCTR's 16 and 400 for Criteo with its 45 million rows in proportion to the rows at hand.
DIM = 16
HIDDEN = (128, 128, 128)


class FieldEmbedding(nn.Module):
    """The tables of all fields in one, with a shift for each field: far faster than as many small look-ups.

    Args:
        sizes: Ids of each field.
        dim: Columns of the tables.
    """

    def __init__(self, sizes: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.sizes = sizes
        self.table = nn.Embedding(sum(sizes), dim)
        self.offsets: Tensor
        self.register_buffer("offsets", torch.tensor([0, *sizes[:-1]]).cumsum(0), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows of the tables ``[batch, fields, dim]`` for ids ``[batch, fields]`` counted within each field."""
        codes: Tensor = self.table(ids + self.offsets)
        return codes

    def recover(self, codes: Tensor) -> Tensor:
        """The embeddings that rows of the tables stand for: here the rows themselves."""
        return codes


class CodedEmbedding(FieldEmbedding):
    """Tables of few columns, and for each field an affine map that recovers embeddings of ``dim``.

    Args:
        sizes: Ids of each field.
        maps: ``[fields, columns, dim]``.
        mean: ``[fields, dim]``.
    """

    def __init__(self, sizes: tuple[int, ...], maps: Tensor, mean: Tensor) -> None:
        super().__init__(sizes, maps.shape[1])
        self.maps = nn.Parameter(maps)
        self.mean = nn.Parameter(mean)

    def recover(self, codes: Tensor) -> Tensor:
        return torch.einsum("bfk,fkd->bfd", codes, self.maps) + self.mean


class FactorisationMachine(nn.Module):
    """The sum of the products of all pairs of embeddings, as a logit (DeepFM)."""

    def forward(self, embeddings: Tensor) -> Tensor:
        return pooled_pairs(embeddings).sum(1)


class CrossNetwork(nn.Module):
    """``x + x_0 (x w) + b``, some times over, then a linear logit (DCN).

    Args:
        width: Fields times dimensions.
        layers: How often.
    """

    def __init__(self, width: int, layers: int = 2) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.empty(layers, width))
        self.biases = nn.Parameter(torch.zeros(layers, width))
        self.out = nn.Linear(width, 1, bias=False)

    def forward(self, embeddings: Tensor) -> Tensor:
        first = x = embeddings.flatten(1)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = x + first * (x @ weight).unsqueeze(1) + bias
        logit: Tensor = self.out(x)
        return logit.squeeze(1)


class FieldAttention(nn.Module):
    """Layers of self-attention between the fields with a residual connection, then a linear logit (AutoInt).

    Args:
        fields: Fields.
        dim: Dimensions of an embedding, shared out among the heads.
        layers: How many.
        heads: Heads of each.
    """

    def __init__(self, fields: int, dim: int, layers: int = 1, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.projections = nn.ModuleList(nn.Linear(dim, 4 * dim, bias=False) for _ in range(layers))
        self.out = nn.Linear(fields * dim, 1, bias=False)

    def forward(self, embeddings: Tensor) -> Tensor:
        x = embeddings
        for projection in self.projections:
            *heads, residual = projection(x).chunk(4, -1)
            query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in heads)
            # The published layer does not divide by the root of the width, which embeddings of small norm need least.
            mixed = nn.functional.scaled_dot_product_attention(query, key, value, scale=1.0)
            x = torch.relu(mixed.transpose(1, 2).flatten(2) + residual)
        logit: Tensor = self.out(x.flatten(1))
        return logit.squeeze(1)


class Tower(nn.Module):
    """Linear layers, each followed by a ReLU, and a linear logit.

    Args:
        width: Of the input.
        hidden: Of the layers.
    """

    def __init__(self, width: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        widths = (width, *hidden)
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in zip(widths, hidden, strict=False))
        self.out = nn.Linear(hidden[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        logit: Tensor = self.out(x)
        return logit.squeeze(1)


KINDS = ("deepfm", "dcn", "autoint", "nfm")


class CTRModel(nn.Module):
    """The logit of a click: a weight for each id, what the interaction makes of the embeddings, and a tower.

    Three kinds add the logits of interaction and tower, which reads the rows of the tables; in NFM the tower reads the pooled products
    of all pairs instead.

    Args:
        kind: One of :data:`KINDS`.
        sizes: Ids of each field.
        dim: Dimensions of an embedding.
        hidden: Widths of the tower.
    """

    def __init__(self, kind: str, sizes: tuple[int, ...], dim: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.kind = kind
        fields = len(sizes)
        self.linear = FieldEmbedding(sizes, 1)
        self.bias = nn.Parameter(torch.zeros(1))
        self.embedding = FieldEmbedding(sizes, dim)
        self.interaction: nn.Module = {
            "deepfm": lambda: FactorisationMachine(), "dcn": lambda: CrossNetwork(fields * dim),
            "autoint": lambda: FieldAttention(fields, dim), "nfm": lambda: nn.Identity(),
        }[kind]()  # fmt: skip
        self.tower = Tower(dim if kind == "nfm" else fields * dim, hidden)

    @property
    def tower_reads_codes(self) -> bool:
        """Whether the first layer of the tower reads the rows of the tables, so that a linear map of them can be fused into it."""
        return self.kind != "nfm"

    def forward(self, ids: Tensor) -> Tensor:
        """Logits ``[batch]`` for ids ``[batch, fields]``."""
        codes = self.embedding(ids)
        embeddings = self.embedding.recover(codes)
        logit: Tensor = self.linear(ids).sum((1, 2)) + self.bias
        if self.kind == "nfm":
            return logit + self.tower(pooled_pairs(embeddings))
        return logit + self.interaction(embeddings) + self.tower(codes.flatten(1))


def pooled_pairs(embeddings: Tensor) -> Tensor:
    """The sum over all pairs of fields of the products of their embeddings, ``[batch, dim]``."""
    return 0.5 * (embeddings.sum(1).square() - embeddings.square().sum(1))


def build(kind: str, sizes: tuple[int, ...], *, seed: int, dim: int = DIM, hidden: tuple[int, ...] = HIDDEN) -> CTRModel:
    """An untrained model; the same seed gives the same weights.

    Args:
        kind: One of :data:`KINDS`.
        sizes: Ids of each field.
        seed: Of the weights.
        dim: Dimensions of an embedding.
        hidden: Widths of the tower.

    Raises:
        InvalidArgument: If the kind is unknown.
    """
    if kind not in KINDS:
        raise InvalidArgument(f"unknown model {kind!r}; known are {', '.join(KINDS)}")
    generator = torch.Generator().manual_seed(seed)
    # Layers fill themselves from the global generator; what they draw there is thrown away, its state kept.
    with torch.random.fork_rng(devices=[]):
        model = CTRModel(kind, sizes, dim, hidden)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "table" in name:
                parameter.normal_(0.0, 0.0 if "linear" in name else 0.05, generator=generator)
            elif parameter.ndim == 2:
                nn.init.xavier_normal_(parameter, generator=generator)
            else:
                parameter.zero_()
    return model
