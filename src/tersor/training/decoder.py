"""What of a Llama-like decoder of transformers can be cut out, and how many parameters are left then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import InvalidArgument

# Each has RMS norms alone, one residual stream and a gated feed-forward, which the cuts rely on.
KNOWN = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
_PROJECTIONS = (*(f"self_attn.{part}_proj" for part in "qkvo"), *(f"mlp.{part}_proj" for part in ("gate", "up", "down")))


@dataclass(frozen=True)
class Shape:
    """How much a decoder has of what can be cut.

    Attributes:
        groups: By layer, the key-value heads, each with its query heads.
        units: By layer, the inner units of the feed-forward.
        width: Of the residual stream.
    """

    groups: tuple[int, ...]
    units: tuple[int, ...]
    width: int

    @property
    def uniform(self) -> bool:
        """Whether all layers are alike, which is what a configuration of transformers can say."""
        return len(set(self.groups)) == 1 == len(set(self.units))


@dataclass(frozen=True)
class Masks:
    """What each part of a decoder is multiplied by; zero means that it is cut out.

    Attributes:
        groups: ``[layers, key-value heads]``, on what a head hands to the output projection.
        units: ``[layers, units]``, on the product inside the feed-forward.
        width: ``[width]``, on all that is written to the residual stream.
    """

    groups: Tensor
    units: Tensor
    width: Tensor

    @property
    def shape(self) -> Shape:
        """What is left."""
        counts = [tuple(int(count) for count in (mask != 0).sum(1)) for mask in (self.groups, self.units)]
        return Shape(counts[0], counts[1], int((self.width != 0).sum()))


class Decoder:
    """The parts of a causal language model of transformers whose sizes can change.

    Args:
        model: One of the types :data:`KNOWN`.

    Attributes:
        model: The model.
        layers: Its blocks.
        shape: Its sizes.
        queries: Query heads that share a key-value head.
        head_dim: Width of a head.
        tied: Whether the output head is the embedding table.
        parameters: Of the model, a tied table once.

    Raises:
        InvalidArgument: If it is of another type, has parameters that such a decoder has not, or holds NaN or Inf.
    """

    def __init__(self, model: nn.Module) -> None:
        config: Any = getattr(model, "config", None)
        kind = getattr(config, "model_type", None)
        if kind not in KNOWN or not type(model).__name__.endswith("ForCausalLM"):
            name = f"{type(model).__name__} of type {kind}" if kind else type(model).__name__
            raise InvalidArgument(f"{name} cannot be sliced; give a causal language model of the types {', '.join(KNOWN)}")
        self.model, self.config = model, config
        self.layers: list[Any] = list(self.backbone.layers)
        self.queries = config.num_attention_heads // config.num_key_value_heads
        self.head_dim = int(self.layers[0].self_attn.head_dim)
        self.tied = bool(self.head.weight is self.backbone.embed_tokens.weight)
        self.shape = Shape(
            tuple(layer.self_attn.k_proj.weight.shape[0] // self.head_dim for layer in self.layers),
            tuple(layer.mlp.up_proj.weight.shape[0] for layer in self.layers), int(self.backbone.norm.weight.shape[0]),
        )  # fmt: skip
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self._check()

    @property
    def backbone(self) -> Any:
        """The part without the output head."""
        return self.model.model

    @property
    def head(self) -> Any:
        """The output head."""
        return self.model.lm_head

    def projections(self) -> dict[str, nn.Linear]:
        """The linear layers of the blocks by dotted name."""
        return {
            f"model.layers.{index}.{name}": layer.get_submodule(name) for index, layer in enumerate(self.layers) for name in _PROJECTIONS
        }

    def count(self, groups: Tensor, units: Tensor, width: Tensor) -> Tensor:
        """Parameters of a decoder of these sizes; of expected sizes, as those of heads, units and width are independent, the expectation.

        Args:
            groups: ``[layers]``.
            units: ``[layers]``.
            width: A scalar.
        """
        attention, mlp, backbone = self.layers[0].self_attn, self.layers[0].mlp, self.backbone
        by_group, by_unit = (2 * self.queries + 2) * self.head_dim, 3
        tables = backbone.embed_tokens.weight.shape[0] * (1 if self.tied else 2)
        by_width = tables + 1 + len(self.layers) * (2 + sum(layer.bias is not None for layer in (attention.o_proj, mlp.down_proj)))
        inside = (self.queries + 2) * self.head_dim * (attention.q_proj.bias is not None)
        norms = sum(part.weight.numel() for name, part in attention.named_children() if name in ("q_norm", "k_norm"))
        size = width * (by_group * groups.sum() + by_unit * units.sum() + by_width)
        return size + inside * groups.sum() + 2 * (mlp.up_proj.bias is not None) * units.sum() + norms * len(self.layers)

    def count_of(self, shape: Shape) -> int:
        """Parameters of a decoder of ``shape``."""
        groups, units = (torch.tensor(sizes, dtype=torch.float64) for sizes in (shape.groups, shape.units))
        return int(self.count(groups, units, torch.tensor(float(shape.width), dtype=torch.float64)))

    def _check(self) -> None:
        counted = self.count_of(self.shape)
        if counted != self.parameters:
            raise InvalidArgument(
                f"{type(self.model).__name__} has {self.parameters:,} parameters where such a decoder has {counted:,}; "
                "take adapters and other additions off before slicing it"
            )
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise InvalidArgument(f"{name} holds NaN or Inf; give a sound model")


def top(scores: Tensor, count: int) -> Tensor:
    """A mask of ones at the ``count`` largest of ``scores`` ``[n]``; of equal ones the first."""
    mask = torch.zeros_like(scores)
    mask[scores.argsort(descending=True, stable=True)[:count]] = 1.0
    return mask


def masks_of(shape: Shape, groups: Tensor, units: Tensor, width: Tensor) -> Masks:
    """The masks of ones that keep what has the highest scores.

    Args:
        shape: What is to be left.
        groups: Scores ``[layers, key-value heads]``.
        units: Scores ``[layers, units]``.
        width: Scores ``[width]``.
    """

    def rows(scores: Tensor, counts: Sequence[int]) -> Tensor:
        return torch.stack([top(row, count) for row, count in zip(scores, counts, strict=True)])

    return Masks(rows(groups, shape.groups), rows(units, shape.units), top(width, shape.width))


def magnitude_scores(decoder: Decoder) -> dict[str, Tensor]:
    """Squared length of all weights that go with a part: what is cut by magnitude has the smallest.

    Returns:
        ``groups`` ``[layers, key-value heads]``, ``units`` ``[layers, units]`` and ``width`` ``[width]``.
    """
    groups, units = [], []
    width = decoder.backbone.embed_tokens.weight.detach().double().square().sum(0)
    for layer in decoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        heads = attention.k_proj.weight.shape[0] // decoder.head_dim
        rows = [part.weight.detach().double().square() for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
        out = attention.o_proj.weight.detach().double().square()
        groups.append(sum(square.reshape(heads, -1).sum(1) for square in (*rows, out.T)))
        inner = [part.weight.detach().double().square() for part in (mlp.gate_proj, mlp.up_proj)]
        down = mlp.down_proj.weight.detach().double().square()
        units.append(sum(square.sum(1) for square in (*inner, down.T)))
        width = width + sum(square.sum(0) for square in (*rows, *inner, out.T, down.T))
    return {"groups": torch.stack(groups).float(), "units": torch.stack(units).float(), "width": width.float()}
