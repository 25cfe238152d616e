"""Occam bounds of models that were really compressed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_integer, check_number
from tersor.limits.checking import Array, check_array
from tersor.limits.generalization.bounds import occam_loss_bound


@dataclass(frozen=True)
class Certificate:
    """What the size and the losses of a compressed language model prove of its loss on text of the same source.

    Attributes:
        nbytes: Bytes of the file.
        windows: Independent pieces of text that it was measured on.
        loss: Mean loss on them, nats a token, of the model mixed with a uniform guess.
        bound: What the mean loss is at most, nats a token; if ``trained_on``, by Occam, else by the sample alone.
        guessing: Loss of guessing uniformly: a bound that is not below it is vacuous.
        delta: Probability with which the bound may fail.
        trained_on: Whether the model was fitted, calibrated or chosen on these windows.
    """

    nbytes: int
    windows: int
    loss: float
    bound: float
    guessing: float
    delta: float
    trained_on: bool

    @property
    def vacuous(self) -> bool:
        """Whether it proves nothing that guessing does not."""
        return self.bound >= self.guessing

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "vacuous": self.vacuous}

    def __str__(self) -> str:
        why = "size and loss on the text it was fitted to" if self.trained_on else "loss on text it was not fitted to"
        said = "nothing beyond guessing" if self.vacuous else f"at most {self.bound:.3f} nats a token"
        return f"{why}: {said} (measured {self.loss:.3f}, guessing {self.guessing:.3f}, {self.windows} windows, {1 - self.delta:.0%} sure)"


def certify(
    losses: Any, *, nbytes: int, vocabulary: int, trained_on: bool = True, mixture: float = 0.01, delta: float = 0.05
) -> Certificate:  # fmt: skip
    """The Occam bound of a compressed language model from its bytes and its losses.

    The loss is made bounded by mixing every prediction with ``mixture`` of the uniform one: then it is between
    ``-log(1 - mixture + mixture/vocabulary)`` and ``log(vocabulary / mixture)``, and at most that of the model plus
    ``-log(1 - mixture)``. Windows are taken as independent, which those of one document are not; spread them.

    Args:
        losses: ``[windows]``, mean negative log-likelihood of each, in nats a token.
        nbytes: Bytes of the decodable file.
        vocabulary: Tokens that can be predicted.
        trained_on: Whether the model depends on these windows; if not, its size does not matter.
        mixture: Weight of the uniform guess.
        delta: Probability with which the bound may fail.

    Raises:
        InvalidArgument: On a number out of range, or losses that are negative, NaN or infinite.
    """
    values = check_array("losses", losses, 1)
    check_integer("nbytes", nbytes, 0)
    check_integer("vocabulary", vocabulary, 2)
    check_number("mixture", mixture, math.ulp(0.0), 1.0)
    if values.min() < 0:
        raise InvalidArgument(f"losses must not be negative, got {values.min():g}")
    highest = math.log(vocabulary / mixture)
    lowest = -math.log(1 - mixture + mixture / vocabulary)
    # The mean over a window of -log((1-m) p + m/v) is at most that of its own mean likelihood, by concavity of the mixture in log p.
    mixed = -np.log((1 - mixture) * np.exp(-values) + mixture / vocabulary)
    loss = float(np.clip(mixed.mean(), lowest, highest))
    bound = occam_loss_bound(
        bits=8.0 * nbytes if trained_on else 0.0, examples=len(values), loss=loss, lowest=lowest, highest=highest, delta=delta
    )  # fmt: skip
    return Certificate(nbytes, len(values), loss, bound, math.log(vocabulary), delta, trained_on)


def fit_linear(inputs: Any, labels: Any, ridge: float = 1.0) -> Array:
    """The least-squares classifier ``[features, classes]`` of labels 0, 1, ... : small, and fitted in closed form.

    Args:
        inputs: ``[n, features]``.
        labels: ``[n]`` integers.
        ridge: Penalty on the squared weights.
    """
    rows = check_array("inputs", inputs, 2)
    targets = np.eye(int(np.max(labels)) + 1)[np.asarray(labels, dtype=np.int64)]
    check_number("ridge", ridge, math.ulp(0.0))
    weight: Array = np.linalg.solve(rows.T @ rows + ridge * np.eye(rows.shape[1]), rows.T @ (targets - targets.mean()))
    return weight


def quantise(weight: Any, bits: int) -> Array:
    """``weight`` rounded to ``2^bits`` levels between its smallest and its largest entry, as :func:`linear_bits` counts them."""
    matrix = check_array("weight", weight, 2)
    check_integer("bits", bits, 1, 16)
    low, high = float(np.float32(matrix.min())), float(np.float32(matrix.max()))
    step = (high - low) / (2**bits - 1) or 1.0
    rounded: Array = low + step * np.rint((matrix - low) / step)
    return rounded


def linear_bits(parameters: int, bits: int) -> int:
    """Bits of a file of ``parameters`` levels of ``bits`` bits, two float32 ends and the number of bits in a byte."""
    check_integer("parameters", parameters, 1)
    check_integer("bits", bits, 1, 16)
    return parameters * bits + 2 * 32 + 8
