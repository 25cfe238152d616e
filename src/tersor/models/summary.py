"""What a model consists of: each layer's form, bytes and bits a weight, and the total."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from tersor.models.model import Model
from tersor.models.storage import safetensors_size, stored_tensors
from tersor.weights.base import CompressedWeight


@dataclass(frozen=True)
class LayerRow:
    """One layer.

    Attributes:
        name: Dotted name.
        kind: Kind of the compressed weight, or ``"dense"``.
        shape: ``(out_features, in_features)``.
        nbytes: Bytes in the saved file, without the bias.
        bits_per_weight: ``8 * nbytes`` divided by the entries of the matrix.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    nbytes: int
    bits_per_weight: float


@dataclass(frozen=True)
class ModelSummary:
    """All layers of a model and what is left beside them.

    Attributes:
        name: The model.
        architecture: Its class.
        n_parameters: Weights, a tied table once.
        tied: Whether the head is the token embedding.
        layers: Linear layers and the embedding table.
        rest_nbytes: Bytes of norms, biases and position tables.
        nbytes: Bytes of all tensors in the saved file.
        file_nbytes: Bytes of the saved file, header included.
    """

    name: str
    architecture: str
    n_parameters: int
    tied: bool
    layers: tuple[LayerRow, ...]
    rest_nbytes: int
    nbytes: int
    file_nbytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        width = max((len(row.name) for row in self.layers), default=0)
        lines = [
            f"{row.name:<{width}}  {row.kind:<10} {rows:>7} x {columns:<6} {row.nbytes:>12,} bytes {row.bits_per_weight:6.2f} bits"
            for row in self.layers
            for rows, columns in [row.shape]
        ]
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(row.kind for row in self.layers).items())
        average = 8 * self.nbytes / self.n_parameters
        return "\n".join(
            [
                *lines,
                f"{self.name}: {self.architecture}, {self.n_parameters:,} parameters, {kinds}",
                f"{self.nbytes:,} bytes of tensors ({self.file_nbytes:,} as a file), {average:.2f} bits a parameter, "
                f"{self.rest_nbytes:,} bytes beside the layers",
            ]
        )


def summarize(model: Model) -> ModelSummary:
    """Describe ``model`` layer by layer, with the bytes that :meth:`Model.save` would write."""
    stored = stored_tensors(model)
    weights = model.weights()
    rows = []
    for name in (*model.embeddings(), *model.linears()):
        weight: CompressedWeight | None = weights.get(name)
        shape = model.shape(name)
        # By what is stored, not by weight.nbytes: what several layers share, such as a dictionary, counts at the first of them alone.
        prefix = f"{name}.weight" if weight is None else f"{name}.weight."
        nbytes = sum(promise.nbytes for key, promise in stored.items() if key.startswith(prefix))
        rows.append(LayerRow(name, "dense" if weight is None else weight.kind, shape, nbytes, 8 * nbytes / (shape[0] * shape[1])))
    total = sum(promise.nbytes for promise in stored.values())
    rest = total - sum(row.nbytes for row in rows)
    return ModelSummary(model.name, model.architecture, model.n_parameters, model.tied, tuple(rows), rest, total, safetensors_size(model))
