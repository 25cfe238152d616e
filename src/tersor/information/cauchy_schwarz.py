"""Cauchy-Schwarz divergence and information, estimated from samples by kernels, differentiable, without variational bounds."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_choice, check_number

Width = float | Literal["median", "nearest"]
ConditionalEstimator = Literal["psd", "paper"]


def kernel_width(x: Tensor, width: Width) -> float:
    """The width of a Gaussian kernel on samples.

    Args:
        x: ``[n, d]``.
        width: The width itself; ``"median"`` for the median distance of two samples, which in many dimensions averages over nearly all of
            them; ``"nearest"`` for the mean distance to the nearest other sample.

    Returns:
        The width, positive; 1 where all samples coincide.

    Raises:
        InvalidArgument: If it is not positive or the rule unknown.
    """
    if not isinstance(width, str):
        if check_number("a kernel width", width, 0.0) <= 0:
            raise InvalidArgument(f"a kernel width must be positive, got {width!r}")
        return float(width)
    check_choice("a kernel width", width, Literal["median", "nearest"])
    distances = _squared_distances(x.detach(), x.detach()).sqrt()
    n = len(x)
    if n < 2:
        return 1.0
    apart = distances[~torch.eye(n, dtype=torch.bool)].view(n, n - 1)
    found = float(apart.median() if width == "median" else apart.min(1).values.mean())
    return found if found > 0 else 1.0


def effective_neighbours(x: Tensor, width: Width = 1.0) -> float:
    """Samples that the kernel averages over, ``mean_i sum_j k(x_i, x_j)``: near 1 every sample is alone, near ``n`` all are one.

    Args:
        x: ``[n, d]``.
        width: See :func:`kernel_width`.
    """
    return float(_gram("x", x, width).sum() / len(x))


def cs_divergence(x: Tensor, y: Tensor, width: Width = 1.0) -> Tensor:
    """Cauchy-Schwarz divergence of the distributions that two sets of samples come from, ``-2 log`` of the cosine of their mean embeddings.

    Args:
        x: ``[n, d]``.
        y: ``[m, d]``.
        width: Of the kernel; a rule is applied to ``x``.

    Returns:
        A scalar in nats, at least 0; 0 for equal sets.

    Raises:
        InvalidArgument: If the samples are not matrices of one width, or hold NaN or Inf.

    Reference:
        Jenssen, Principe, Erdogmus, Eltoft: "The Cauchy-Schwarz divergence and Parzen windowing", 2006.
    """
    scale = kernel_width(_check_samples("x", x), width)
    _check_samples("y", y, columns=x.shape[1])
    return _log(_kernel(x, x, scale).mean()) + _log(_kernel(y, y, scale).mean()) - 2 * _log(_kernel(x, y, scale).mean())


def cs_conditional(
    x: Tensor, y: Tensor, y_hat: Tensor, *, width_x: Width = 1.0, width_y: Width = 1.0, estimator: ConditionalEstimator = "psd",
) -> Tensor:  # fmt: skip
    """Divergence of ``p(y | x)`` from ``q(y_hat | x)``: how wrong predictions are, as a loss that far outliers do not dominate.

    Args:
        x: Inputs ``[n, d]``.
        y: Targets ``[n, k]``; a vector is refused, because kernels of one would compare whole batches.
        y_hat: Predictions ``[n, k]``.
        width_x: Of the kernel on inputs; the average number of samples that it covers decides how local the comparison is.
        width_y: Of the kernel on targets; errors far beyond it have no gradient.
        estimator: ``"psd"`` weighs pairs by ``K_ij / (d_i d_j)``, ``d`` the row sums: a positive-semidefinite matrix, so that the
            divergence is at least 0, symmetric, and 0 for equal predictions. ``"paper"`` weighs them by ``K_ij / d_i^2``, as published: it
            can be negative, and then perfect predictions do not minimise it. Both estimate the same integral.

    Returns:
        A scalar in nats.

    Raises:
        InvalidArgument: If the samples are not matrices of ``n`` rows, or hold NaN or Inf.

    Reference:
        Yu, Yu, Lokse, Jenssen, Principe: "Cauchy-Schwarz Divergence Information Bottleneck for Regression", 2024.

    Example:
        >>> import torch
        >>> x, y = torch.eye(4), torch.arange(4.0).unsqueeze(1)
        >>> float(cs_conditional(x, y, y)), float(cs_conditional(x, y, y + 1)) > 0
        (0.0, True)
    """
    check_choice("estimator", estimator, ConditionalEstimator)
    _check_samples("y", y, rows=len(_check_samples("x", x)))
    _check_samples("y_hat", y_hat, rows=len(x), columns=y.shape[1])
    scale = kernel_width(y, width_y)
    kernels = (_kernel(y, y, scale), _kernel(y_hat, y_hat, scale), _kernel(y, y_hat, scale))
    return conditional_divergence(_gram("x", x, width_x), *kernels, estimator)


def conditional_divergence(
    inputs: Tensor, targets: Tensor, predictions: Tensor, between: Tensor, estimator: ConditionalEstimator
) -> Tensor:
    """:func:`cs_conditional` from its four kernel matrices ``[n, n]``.

    Args:
        inputs: Of the inputs.
        targets: Of the targets.
        predictions: Of the predictions.
        between: Between targets (rows) and predictions.
        estimator: See :func:`cs_conditional`.
    """
    degrees = inputs.sum(1)
    weights = inputs / degrees.square().unsqueeze(1) if estimator == "paper" else inputs / torch.outer(degrees, degrees)
    own, other, mixed = ((weights * kernel).sum() for kernel in (targets, predictions, between))
    return _log(own) + _log(other) - 2 * _log(mixed)


def cs_mutual_information(x: Tensor, t: Tensor, *, width_x: Width = 1.0, width_t: Width = 1.0) -> Tensor:
    """Cauchy-Schwarz divergence of the joint law of ``x`` and ``t`` from the product of their laws.

    With few samples it is positive for independent variables too; compare with a permutation of the rows of ``t``.

    Args:
        x: ``[n, d]``.
        t: ``[n, k]``.
        width_x: Of the kernel on ``x``, see :func:`kernel_width`.
        width_t: Of the kernel on ``t``.

    Returns:
        A scalar in nats, at least 0; 0 if either is constant.

    Raises:
        InvalidArgument: If the samples are not matrices of ``n`` rows, or hold NaN or Inf.

    Reference:
        Yu, Yu, Lokse, Jenssen, Principe: "Cauchy-Schwarz Divergence Information Bottleneck for Regression", 2024.
    """
    return _information(_gram("x", x, width_x), _gram("t", t, width_t, len(x)))


def normalised_cs_information(x: Tensor, t: Tensor, *, width_x: Width = 1.0, width_t: Width = 1.0) -> Tensor:
    """``I(x; t) / sqrt(I(x; x) I(t; t))``: how much of ``x`` is in ``t``; 1 for ``t = x``, and hardly dependent on the scale of ``t``.

    Args:
        x: ``[n, d]``.
        t: ``[n, k]``.
        width_x: Of the kernel on ``x``, see :func:`kernel_width`.
        width_t: Of the kernel on ``t``.

    Returns:
        A scalar, at least 0; 0 if either is constant.

    Raises:
        InvalidArgument: If the samples are not matrices of ``n`` rows, or hold NaN or Inf.
    """
    first, second = _gram("x", x, width_x), _gram("t", t, width_t, len(x))
    scale = (_information(first, first) * _information(second, second)).clamp(min=torch.finfo(first.dtype).tiny).sqrt()
    return _information(first, second) / scale


def cs_bottleneck_loss(
    x: Tensor, t: Tensor, y: Tensor, y_hat: Tensor, *,
    beta: float, width_x: Width = 1.0, width_t: Width = 1.0, width_y: Width = 1.0, estimator: ConditionalEstimator = "psd",
) -> Tensor:  # fmt: skip
    """What :class:`~tersor.information.CSBottleneck` minimises: :func:`cs_conditional` plus ``beta`` :func:`normalised_cs_information`.

    Args:
        x: Inputs ``[n, d]``.
        t: Representations ``[n, k]``.
        y: Targets ``[n, m]``.
        y_hat: Predictions ``[n, m]``.
        beta: Weight of the compression, at least 0.
        width_x: Of the kernel on inputs, see :func:`kernel_width`.
        width_t: Of the kernel on representations.
        width_y: Of the kernel on targets.
        estimator: See :func:`cs_conditional`.

    Returns:
        A scalar.

    Raises:
        InvalidArgument: If the samples are not matrices of ``n`` rows or an option is out of range.
    """
    fit = cs_conditional(x, y, y_hat, width_x=width_x, width_y=width_y, estimator=estimator)
    if check_number("beta", beta, 0.0) == 0:
        return fit
    return fit + beta * normalised_cs_information(x, t, width_x=width_x, width_t=width_t)


def _information(first: Tensor, second: Tensor) -> Tensor:
    joint, product = (first * second).mean(), first.mean() * second.mean()
    crossed = (first.mean(1) * second.mean(1)).mean()
    return (_log(joint) + _log(product) - 2 * _log(crossed)).clamp(min=0)


def _gram(name: str, x: Tensor, width: Width, rows: int | None = None) -> Tensor:
    return _kernel(_check_samples(name, x, rows=rows), x, kernel_width(x, width))


def _kernel(x: Tensor, y: Tensor, width: float) -> Tensor:
    return torch.exp(-_squared_distances(x, y) / (2 * width**2))


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    if x.shape[1] == 1:
        return (x - y.T).square()
    # Expanded, which has a sound gradient at distance 0, and centred, which keeps the cancellation small.
    centre = x.detach().mean(0)
    x, y = x - centre, y - centre
    squared = x.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * x @ y.T
    return squared.clamp(min=0)


def _log(value: Tensor) -> Tensor:
    return value.clamp(min=torch.finfo(value.dtype).tiny).log()


def _check_samples(name: str, x: Tensor, rows: int | None = None, columns: int | None = None) -> Tensor:
    if not isinstance(x, Tensor) or x.ndim != 2 or x.numel() == 0 or not x.is_floating_point():
        shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise InvalidArgument(f"{name} must be a floating-point tensor [samples, features], got {shape}; use unsqueeze(1) on a vector")
    if (rows is not None and len(x) != rows) or (columns is not None and x.shape[1] != columns):
        wanted = f"[{'samples' if rows is None else rows}, {'features' if columns is None else columns}]"
        raise InvalidArgument(f"{name} must be {wanted} to go with the other samples, got shape {tuple(x.shape)}")
    if not bool(torch.isfinite(x.detach()).all()):
        raise InvalidArgument(f"{name} holds NaN or Inf; a training run that made it has diverged")
    return x
