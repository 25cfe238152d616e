"""What the singular values of a model's matrices say: condition numbers, volumes and ranks, and the entropy of a linear layer's output."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tersor.errors import InvalidArgument

Normalize = Literal["none", "aspect", "trimmed"]

# Squares of singular values are found to rounding of the largest, so roots from the Gram matrix are trusted down to this share of it.
_TRUSTED = 1e-6
# exp(E ln kappa) of a square matrix of n Gaussian entries is this times n (Edelman, 1988).
_SQUARE = math.exp(1.537)
_TRIM = 0.95


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one parameter in a few numbers.

    Attributes:
        name: Its name in the model.
        shape: ``(rows, columns)``; a convolution counts as ``(out_channels, everything else)``.
        parameters: Rows times columns.
        condition: The largest singular value over the smallest; infinite for a singular matrix.
        expected: The condition that a matrix of Gaussian entries of this shape has; for square ones its geometric mean.
        trimmed: The largest over that at 95 % of the rank, which a few tiny ones cannot move.
        log_volume: Sum of the logarithms of the singular values after the matrix is scaled to Frobenius norm 1; at most
            ``-r/2 ln r`` for ``r`` of them, reached where all are equal. Zeros are left out, so compare ranks as well.
        rank: Singular values above rounding.
        stable_rank: ``||W||_F^2 / ||W||_2^2``.
        effective_rank: The exponential of the entropy of the singular values as shares of their sum.
    """

    name: str
    shape: tuple[int, int]
    parameters: int
    condition: float
    expected: float
    trimmed: float
    log_volume: float
    rank: int
    stable_rank: float
    effective_rank: float

    def measure(self, normalize: Normalize = "none") -> float:
        """The condition that matrices are ranked by: itself, over what its shape alone explains, or the trimmed one."""
        return {"none": self.condition, "aspect": self.condition / self.expected, "trimmed": self.trimmed}[normalize]


def singular_values(weight: Tensor) -> Tensor:
    """Singular values, falling, float64 ``[min(rows, columns)]``, of any type of matrix.

    From the smaller Gram matrix, several times faster than a decomposition, unless the smallest is too small for that.

    Args:
        weight: ``[out_features, ...]``; further axes are flattened, as for a convolution.

    Raises:
        InvalidArgument: If it has fewer than two axes, is empty, or holds NaN or Inf.
    """
    if weight.ndim < 2 or weight.numel() == 0:
        raise InvalidArgument(f"singular values need a matrix that is not empty, got shape {tuple(weight.shape)}")
    matrix = weight.detach().flatten(1).double()
    if not torch.isfinite(matrix).all():
        raise InvalidArgument(f"a matrix of shape {tuple(weight.shape)} holds NaN or Inf; repair the model first")
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    values = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).sqrt()
    return values if values[-1] > _TRUSTED * values[0] else torch.linalg.svdvals(matrix)


def condition_number(weight: Tensor) -> float:
    """The largest singular value over the smallest: at least 1, the same for every multiple and rotation, infinite if singular.

    Args:
        weight: ``[out_features, ...]``.

    Raises:
        InvalidArgument: As :func:`singular_values`.
    """
    values = singular_values(weight)
    return _condition(values, _rank(values, weight.detach().flatten(1).shape))


def output_entropy(weight: Tensor) -> float:
    """Differential entropy in nats of ``W x`` for white Gaussian ``x``.

    ``r/2 ln(2 pi e)`` and the sum of the logarithms of the ``r`` singular values that are not zero. Where ``r`` is less than
    ``out_features`` the outputs fill a subspace only, and this is their entropy within it. An elementwise function that nowhere
    stretches, such as a ReLU or tanh, can only lower it.

    Args:
        weight: ``[out_features, in_features]``.

    Raises:
        InvalidArgument: As :func:`singular_values`, or if all entries are zero.

    Reference:
        Ludwig: "The Condition Number as a Scale-Invariant Proxy for Information Encoding in Neural Units", 2025.
    """
    values = singular_values(weight)
    rank = _rank(values, weight.detach().flatten(1).shape)
    if rank == 0:
        raise InvalidArgument("a matrix of zeros has one output only, whose entropy is not finite")
    return rank / 2 * math.log(2 * math.pi * math.e) + float(values[:rank].log().sum())


def random_condition(rows: int, columns: int) -> float:
    """What the condition number of ``[rows, columns]`` independent Gaussian entries is about.

    ``(1 + sqrt(b)) / (1 - sqrt(b))`` for the aspect ratio ``b`` of a matrix that is far from square, about ``4.65 n`` for a square one.
    """
    small, large = sorted((rows, columns))
    root = math.sqrt(small / large)
    square = max(_SQUARE * small, 1.0)
    return square if small == large else min((1 + root) / (1 - root), square)


def spectral_report(model: nn.Module, *, max_dim: int = 16384) -> list[Spectrum]:
    """The spectrum of every matrix among the parameters of ``model``, in their order, shared ones once.

    Args:
        model: Any module; parameters of any floating type. Vectors are passed over.
        max_dim: Parameters with more rows or columns than this are passed over, which is meant for vocabularies.

    Raises:
        InvalidArgument: If a parameter holds NaN or Inf, or there is no matrix.
    """
    spectra = []
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or not parameter.is_floating_point() or max(parameter.flatten(1).shape) > max_dim:
            continue
        try:
            spectra.append(_spectrum(name, parameter))
        except InvalidArgument as error:
            raise InvalidArgument(f"{name}: {error}") from None
    if not spectra:
        raise InvalidArgument(f"the model has no matrix among its parameters with at most {max_dim} rows and columns; raise max_dim")
    return spectra


def _spectrum(name: str, parameter: Tensor) -> Spectrum:
    values = singular_values(parameter)
    rows, columns = parameter.flatten(1).shape
    rank = _rank(values, (rows, columns))
    norm = values.norm()
    shares = values[:rank] / values.sum() if rank else values[:0]
    return Spectrum(
        name, (rows, columns), rows * columns, _condition(values, rank), random_condition(rows, columns),
        _ratio(values[0], values[max(math.ceil(_TRIM * len(values)) - 1, 0)]),
        float((values[:rank] / norm).log().sum()), rank, _ratio(norm.square(), values[0].square()) if rank else 0.0,
        float(torch.exp(-(shares * shares.log()).sum())) if rank else 0.0,
    )  # fmt: skip


def _rank(values: Tensor, shape: tuple[int, ...] | torch.Size) -> int:
    """Values above what rounding in float64 leaves of a zero."""
    return int((values > values[0] * max(shape) * torch.finfo(torch.float64).eps).sum()) if values[0] > 0 else 0


def _condition(values: Tensor, rank: int) -> float:
    return _ratio(values[0], values[-1]) if rank == len(values) else math.inf


def _ratio(above: Tensor, below: Tensor) -> float:
    return float(above / below) if below > 0 else math.inf
