"""Bounds on the error of a trained model that hold with probability ``1 - delta``, and shapes of bounds whose constants are 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_integer, check_number
from tersor.limits.checking import Array, check_array

_TINY = math.ulp(0.0)


def binary_kl(p: float, q: float) -> float:
    """Divergence in nats of a coin with probability ``p`` from one with ``q``, both in [0, 1]; infinite where ``q`` rules ``p`` out.

    Raises:
        InvalidArgument: On a number that is no probability.
    """
    for name, value in (("p", p), ("q", q)):
        check_number(name, value, 0.0, math.nextafter(1.0, 2.0))
    total = 0.0
    for part, reference in ((p, q), (1 - p, 1 - q)):
        if part > 0:
            total += part * math.log(part / reference) if reference > 0 else math.inf
    return max(total, 0.0)


def invert_kl(observed: float, excess: float) -> float:
    """The largest ``q`` with ``kl(observed | q) <= excess``: what an observed rate allows the true one to be.

    Args:
        observed: In [0, 1].
        excess: In nats, not negative.

    Returns:
        In [observed, 1]; by bisection to the last bit, and never too small by more than that.

    Raises:
        InvalidArgument: On a number out of range.
    """
    check_number("observed", observed, 0.0, math.nextafter(1.0, 2.0))
    check_number("excess", excess, 0.0)
    low, high = observed, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if binary_kl(observed, middle) <= excess else (low, middle)
    return high


def occam_bound(*, bits: float = 2_632.0, examples: int = 1437, errors: int = 60, delta: float = 0.05) -> float:
    """The true error of a classifier that is described in ``bits`` and makes ``errors`` on ``examples``, with probability ``1 - delta``.

    ``kl(errors/n | L) <= (bits log 2 + 2 log(bits + 1) + log(2 sqrt(n) / delta)) / n``, inverted. The prior is ``2^-bits`` over
    descriptions, made prefix-free by the second term; the code must be fixed before the data are seen. With a real compressed file,
    ``bits`` is eight times its bytes, scales and metadata included.

    Args:
        bits: Length of the decodable description.
        examples: ``n``, training examples, drawn independently.
        errors: Wrong ones among them.
        delta: Probability with which the bound may fail.

    Returns:
        At most 1; vacuous if above that of guessing.

    Raises:
        InvalidArgument: On a number out of range.

    Reference:
        Langford, Caruana: "(Not) Bounding the True Error", 2001.
        Arora, Ge, Neyshabur, Zhang: "Stronger generalization bounds for deep nets via a compression approach", 2018.
    """
    check_number("bits", bits, 0.0)
    _check_sample(examples, errors, delta)
    complexity = bits * math.log(2) + 2 * math.log(bits + 1) + math.log(2 * math.sqrt(examples) / delta)
    return invert_kl(errors / examples, complexity / examples)


def occam_loss_bound(*, bits: float, examples: int, loss: float, lowest: float, highest: float, delta: float = 0.05) -> float:
    """:func:`occam_bound` for the mean of any loss in ``[lowest, highest]``, such as nats a token of a model that never says less.

    Args:
        bits: Length of the decodable description.
        examples: Independent examples; the windows of one text are not quite.
        loss: Mean over them.
        lowest: Smallest possible loss.
        highest: Largest possible loss.
        delta: Probability with which the bound may fail.

    Returns:
        Between ``loss`` and ``highest``.

    Raises:
        InvalidArgument: On a number out of range.
    """
    check_number("bits", bits, 0.0)
    _check_sample(examples, 0, delta)
    if not (math.isfinite(lowest) and math.isfinite(highest) and lowest < highest):
        raise InvalidArgument(f"the loss must have a finite range, got {lowest!r} to {highest!r}; clip it or mix in a uniform prediction")
    if not lowest <= loss <= highest:
        raise InvalidArgument(f"loss must be between {lowest:g} and {highest:g}, got {loss!r}")
    complexity = bits * math.log(2) + 2 * math.log(bits + 1) + math.log(2 * math.sqrt(examples) / delta)
    return lowest + (highest - lowest) * invert_kl((loss - lowest) / (highest - lowest), complexity / examples)


def holdout_bound(*, examples: int = 360, errors: int = 10, delta: float = 0.05) -> float:
    """The exact upper end of a binomial confidence interval: the true error given errors on examples that were not trained on.

    Args:
        examples: Held-out examples.
        errors: Wrong ones among them.
        delta: Probability with which it may fail.

    Raises:
        InvalidArgument: On a number out of range.

    Reference:
        Clopper, Pearson: "The use of confidence or fiducial limits", 1934.
    """
    _check_sample(examples, errors, delta)
    if errors == examples:
        return 1.0
    from scipy.stats import beta

    return float(beta.ppf(1 - delta, errors + 1, examples - errors))


def parameter_bound(*, parameters: int, examples: int, errors: int, bits: float = 32.0, delta: float = 0.05) -> float:
    """:func:`occam_bound` of a model stored as it is: ``bits`` for each of its parameters. A stand-in for counting them, as VC bounds do.

    Raises:
        InvalidArgument: On a number out of range.
    """
    check_integer("parameters", parameters, 0)
    check_number("bits", bits, 0.0)
    return occam_bound(bits=bits * parameters, examples=examples, errors=errors, delta=delta)


def pac_bayes_bound(*, divergence: float, examples: int, loss: float, delta: float = 0.05) -> float:
    """The true error of a random classifier drawn from a posterior at ``divergence`` nats from a prior, from its mean training error.

    Raises:
        InvalidArgument: On a number out of range.

    Reference:
        Maurer: "A Note on the PAC-Bayesian Theorem", 2004.
    """
    check_number("divergence", divergence, 0.0)
    _check_sample(examples, 0, delta)
    return invert_kl(loss, (divergence + math.log(2 * math.sqrt(examples) / delta)) / examples)


def gaussian_divergence(weights: Sequence[Any], start: Sequence[Any], sigma: float) -> float:
    """Divergence in nats of Gaussians of deviation ``sigma`` around ``weights`` and around ``start``: ``|w - w_0|^2 / (2 sigma^2)``.

    Args:
        weights: Arrays, those of the trained model.
        start: Arrays of the same shapes, known before the data were.
        sigma: Deviation of both.

    Raises:
        InvalidArgument: On shapes that differ, NaN or Inf, or a sigma that is not positive.
    """
    check_number("sigma", sigma, _TINY)
    pairs = [(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)) for a, b in zip(weights, start, strict=True)]
    if any(a.shape != b.shape for a, b in pairs):
        raise InvalidArgument("weights and start must hold arrays of the same shapes")
    total = math.fsum(float(((a - b) ** 2).sum()) for a, b in pairs)
    if not math.isfinite(total):
        raise InvalidArgument("weights or start hold NaN or Inf")
    return total / (2 * sigma**2)


def spectral_complexity(weights: Sequence[Any], margin: float, examples: int) -> float:
    """Product of spectral norms times row norms, over the margin: the shape of a bound, all constants 1. Compare it; do not believe it.

    ``prod |W_i| (sum (|W_i|_{2,1} / |W_i|)^(2/3))^(3/2) / (margin sqrt(n))``, with ``|W|_{2,1}`` the sum of the norms of
    the rows of ``W`` ``[out, in]``.

    Args:
        weights: Matrices ``[out, in]`` of the layers.
        margin: Of the training examples, in units of the output.
        examples: ``n``.

    Raises:
        InvalidArgument: On a matrix that is zero, of another shape, or holds NaN or Inf; or a margin that is not positive.

    Reference:
        Bartlett, Foster, Telgarsky: "Spectrally-normalized margin bounds for neural networks", 2017.
    """
    check_number("margin", margin, _TINY)
    check_integer("examples", examples, 1)
    product, total = 1.0, 0.0
    for weight in weights:
        matrix = check_array("a weight", weight, 2)
        norm = float(np.linalg.norm(matrix, 2))
        if norm == 0:
            raise InvalidArgument("a weight is zero everywhere; leave such a layer out")
        product *= norm
        total += float(np.linalg.norm(matrix, axis=1).sum() / norm) ** (2 / 3)
    return product * total**1.5 / (margin * math.sqrt(examples))


def path_norm(weights: Sequence[Any]) -> float:
    """Root of the sum over all paths of the squared product of their weights: a measure, no bound. It ignores rescaling between layers.

    Args:
        weights: Matrices ``[out, in]`` of the layers, first layer first.

    Raises:
        InvalidArgument: On shapes that do not follow each other, or NaN or Inf.

    Reference:
        Neyshabur, Tomioka, Srebro: "Norm-Based Capacity Control in Neural Networks", 2015.
    """
    matrices: list[Array] = [check_array("a weight", weight, 2) for weight in weights]
    if not matrices or any(after.shape[1] != before.shape[0] for before, after in pairwise(matrices)):
        raise InvalidArgument("weights must be matrices [out, in] that follow each other")
    paths = np.ones(matrices[0].shape[1])
    for matrix in matrices:
        paths = matrix**2 @ paths
    return math.sqrt(float(paths.sum()))


def _check_sample(examples: int, errors: int, delta: float) -> None:
    check_integer("examples", examples, 1)
    check_integer("errors", errors, 0, examples)
    check_number("delta", delta, _TINY, 1.0)
