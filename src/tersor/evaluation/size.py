"""Where the bytes of a model are."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tersor.models import Model
from tersor.models.model import name_of, output_head
from tersor.models.summary import summarize


@dataclass(frozen=True)
class Size:
    """Bytes of the tensors that :meth:`Model.save` writes, by class.

    Attributes:
        linears: Matrices of the linear layers inside the network.
        embeddings: The token table and the output head; a tied pair once.
        other: Norms, biases, position tables.
        n_parameters: Weights of the model, a compressed matrix with its dense size.
        linear_parameters: Weights of the linear layers.
    """

    linears: int
    embeddings: int
    other: int
    n_parameters: int
    linear_parameters: int

    @property
    def total(self) -> int:
        """All tensors."""
        return self.linears + self.embeddings + self.other

    @property
    def bits_per_weight(self) -> float:
        """Bits of the whole model divided by its weights."""
        return 8 * self.total / self.n_parameters

    @property
    def linear_bits_per_weight(self) -> float:
        """Bits of the linear layers divided by their weights; 0 for a model without any."""
        return 8 * self.linears / self.linear_parameters if self.linear_parameters else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        derived = {name: getattr(self, name) for name in ("total", "bits_per_weight", "linear_bits_per_weight")}
        return {**asdict(self), **derived}

    def __str__(self) -> str:
        return f"linear layers {self.linears:,}, embeddings and head {self.embeddings:,}, norms and other {self.other:,}"


def size_of(model: Model) -> Size:
    """Count the stored bytes of ``model``, packed as they are on disk, every distinct tensor once."""
    summary = summarize(model)
    outside = {*model.embeddings(), name_of(model.module, output_head(model.module))}
    table = sum(row.nbytes for row in summary.layers if row.name in outside)
    inside = [row for row in summary.layers if row.name not in outside]
    linears, weights = sum(row.nbytes for row in inside), sum(row.shape[0] * row.shape[1] for row in inside)
    return Size(linears, table, summary.nbytes - linears - table, summary.n_parameters, weights)
