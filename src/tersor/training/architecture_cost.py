"""What an encoder of a given shape costs in parameters, bytes and operations, before it is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tersor.errors import InvalidArgument

# The name, type, shape and offsets of one tensor in the header of a safetensors file take less than this.
_HEADER_PER_TENSOR = 136
_HEADER = 128


class CostModel(Protocol):
    """What a search must know of a family of models. Another family (decoders, convolutions) is another class with these three.

    An architecture maps the names of the space to numbers. The arithmetic must also work on NumPy arrays of them, so that whole
    spaces can be counted at once.
    """

    def parameters(self, architecture: Mapping[str, Any]) -> Any:
        """Trained numbers."""

    def nbytes(self, architecture: Mapping[str, Any]) -> Any:
        """Bytes on disk, at most."""

    def flops(self, architecture: Mapping[str, Any]) -> Any:
        """Operations for one input; of two models of equal size the search prefers the one that computes more."""


@dataclass(frozen=True)
class RobertaCost:
    """Exact for what :func:`tersor.training.build_student` builds; to search, use this one.

    Attributes:
        length: Tokens of an input.
        classes: Outputs of the classifier.
        pair: Whether the classifier compares two inputs.
    """

    length: int = 512
    classes: int = 2
    pair: bool = False

    def __post_init__(self) -> None:
        if self.length < 1 or self.classes < 2:
            raise InvalidArgument(f"a classifier needs inputs of 1 token and 2 classes at least, got {self.length} and {self.classes}")

    def parameters(self, architecture: Mapping[str, Any]) -> Any:
        """Every trained number: tables, blocks and classifier."""
        v, h, i, blocks = _shape(architecture)
        # RoBERTa numbers positions from 2 on.
        embedding = (v + self.length + 2) * h + 3 * h
        block = 4 * h * h + 2 * h * i + 9 * h + i
        compared = 2 * h if self.pair else h
        return embedding + blocks * block + compared * h + h + (h + 1) * self.classes

    def weight_bytes(self, architecture: Mapping[str, Any]) -> Any:
        """Bytes of the float32 tensors alone."""
        return 4 * self.parameters(architecture)

    def nbytes(self, architecture: Mapping[str, Any]) -> Any:
        """Upper bound of ``model.safetensors``: the tensors, and 136 bytes for each of them in the header."""
        tensors = 9 + 16 * architecture["num_hidden_layers"]
        return self.weight_bytes(architecture) + _HEADER + _HEADER_PER_TENSOR * tensors

    def flops(self, architecture: Mapping[str, Any]) -> Any:
        """Two for each multiplication of a matrix product, for one input of ``length`` tokens or one pair of them."""
        _, h, i, blocks = _shape(architecture)
        block = self.length * (8 * h * h + 4 * h * i + 4 * self.length * h)
        if self.pair:
            return 2 * blocks * block + 4 * h * h + 2 * h * self.classes
        return blocks * block + 2 * h * h + 2 * h * self.classes


@dataclass(frozen=True)
class PublishedCost:
    """The cost model that the paper searched with, to compare with its shapes.

    It differs from what a model of ``transformers`` has and does: a pooler of ``h * h + h`` parameters that the classifier does not
    have is counted, the embedding is counted as a product with the whole vocabulary and the classifier once for each token.

    Attributes:
        positions: Rows of the position table.

    Reference:
        Shi et al., Compressing pre-trained models of code into 3 MB (2022); the operations are those of Clark et al., ELECTRA (2020).
    """

    positions: int = 514

    def parameters(self, architecture: Mapping[str, Any]) -> Any:
        """Parameters with the pooler."""
        v, h, i, blocks = _shape(architecture)
        embedding = (v + self.positions) * h + 3 * h
        attention = 4 * (h * h + h)
        feed_forward = 2 * h * i + i + h
        classifier = 2 * (h * h + h) + 2 * h + 2
        return embedding + blocks * (attention + feed_forward + 4 * h) + classifier

    def nbytes(self, architecture: Mapping[str, Any]) -> Any:
        """Four bytes a parameter."""
        return 4 * self.parameters(architecture)

    def flops(self, architecture: Mapping[str, Any]) -> Any:
        """Operations with softmax (5), dropout (4), normalisation (5) and GELU (8) counted an element."""
        v, h, i, blocks = _shape(architecture)
        s, a = self.positions, architecture["num_attention_heads"]
        projections = 8 * h * h + 4 * h
        attention = 4 * h * s + (5 + 4 + 1) * s * a
        after_attention = (4 + 1) * h + 5  # the published list counts this one normalisation once a token, not once a feature
        feed_forward = 4 * h * i + (8 + 1) * i + (1 + 4 + 1 + 5) * h
        embedding = 2 * h * v + 2 * h * (s + 2) + (2 + 5 + 4) * h
        classifier = 2 * h * h + (1 + 4 + 8 + 2) * h
        return s * (blocks * (projections + attention + after_attention + feed_forward) + embedding + classifier)


def _shape(architecture: Mapping[str, Any]) -> tuple[Any, Any, Any, Any]:
    """Vocabulary, width, feed-forward width and number of blocks."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    v, h, i, blocks = (architecture[name] for name in names)
    return v, h, i, blocks
