"""Low rank guided by features, for look-up tables and linear layers alike: keep the directions in which a layer's outputs vary."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_choice, check_integer, check_number, check_stats, check_weight
from tersor.layerwise.hessian import damped_cholesky
from tersor.layerwise.low_rank import FactorType, centred_root, choose_rank, truncate, with_mean
from tersor.layerwise.registry import register
from tersor.layerwise.stats import LayerStats, layer_error
from tersor.weights import BiasedWeight, LowRankWeight, check_matrix


@register(
    "feature_mimicking", needs="inputs", makes="biased",
    paper="Yu et al.: Unified Low-rank Compression Framework for Click-through Rate Prediction, 2024",
)  # fmt: skip
def feature_mimicking(
    weight: Tensor, stats: LayerStats | None, *,
    keep: float | None = None, rank: int | None = None, energy: float | None = None, center: bool = True,
    damping: float = 1e-6, factor_dtype: FactorType = "float16",
) -> LowRankWeight | BiasedWeight:  # fmt: skip
    """Replace a layer by two thin ones through the principal components of its outputs around their mean.

    At a given rank it is :func:`lord` with ``center=True``, and without centring :func:`whitened_svd`. What differs is where it is at
    home and how the rank is found: the networks of click prediction, whose features are far from zero in the mean and of a rank that
    differs from layer to layer, which ``energy`` reads off their variance. For language models use :func:`lord`, which drops the mean
    where that harms the first token. :func:`mimic_embedding` is the same for look-up tables. The bias of the layer itself stays where
    it is: ``U U^T (W x + b) + (I - U U^T) mean(W x + b)`` is ``U U^T W x + b`` and the bias that this weight brings.

    Args:
        weight: ``[out_features, in_features]``.
        stats: Statistics of the inputs.
        keep: Fraction of the parameters kept, 0.5 unless given; the rank is ``floor(keep * out * in / (out + in))``, at least 1.
        rank: The rank itself, instead of ``keep``.
        energy: Instead of either, the smallest rank that keeps this fraction of the variance of the outputs.
        center: Whether variance is taken around the mean, which a bias puts back; without it there is no bias.
        damping: Added to the diagonal of the covariance of the inputs, relative to its mean; raised tenfold until it can be factorised.
        factor_dtype: Type that both factors are stored in.

    Returns:
        A :class:`~tersor.weights.LowRankWeight`, inside a :class:`~tersor.weights.BiasedWeight` if it is centred. The ``report`` holds
        ``rank``, ``kept_energy`` of the outputs, ``error`` (relative squared error of the output on the calibration inputs, the bias
        included) and the ``damping`` used.

    Raises:
        InvalidArgument: On an option out of range, a rank that saves nothing, or missing or foreign statistics.

    Reference:
        Yu et al.: "Unified Low-rank Compression Framework for Click-through Rate Prediction", 2024.
        Yu, Wu: "Compressing Transformers: Features Are Low-Rank, but Weights Are Not!", 2023.
    """
    stats = check_stats("feature_mimicking", stats)
    values = check_weight(weight, stats)
    _check_options(keep, rank, energy, center, damping, factor_dtype)
    root, used = centred_root(stats, damping) if center else damped_cholesky(stats.hessian.double(), damping)
    if energy is not None:
        rank = _rank_of(_output_variances(values.double(), stats, center), energy)
    factors = truncate(values, root, choose_rank((values.shape[0], values.shape[1]), keep, rank), factor_dtype)
    made = with_mean(factors, values, stats) if center else factors
    made.report = {**factors.report, "error": layer_error(values, made, stats), "damping": used}
    return made


@dataclass(frozen=True)
class MimickedEmbedding:
    """A look-up table as codes of few dimensions and the affine map that recovers the rows: ``row = weight row + mean``.

    Attributes:
        weight: ``[rows, dim]``: ``left`` holds the codes, ``right`` the orthonormal directions ``[rank, dim]``.
        mean: What is added to every recovered row, float32 ``[dim]``; zeros without centring.
        padding_idx: The row that is zero and stays zero, which the mean is not added to.
        report: ``rank``, ``kept_energy`` (of the variance of the looked-up rows) and ``error``, their relative squared error.
    """

    weight: LowRankWeight
    mean: Tensor
    padding_idx: int | None = None
    report: dict[str, Any] = field(default_factory=dict)

    def dense(self) -> Tensor:
        """The table ``[rows, dim]`` that this stands for, in float32."""
        table = self.weight.dense() + self.mean
        if self.padding_idx is not None:
            table[self.padding_idx] = 0
        return table

    def folded(self) -> LowRankWeight:
        """The whole map as one weight for a :class:`~tersor.weights.modules.CompressedEmbedding`.

        The mean becomes one more direction with a code of one in every row but that of the padding, so it costs one more number a row;
        fuse the mean into the next layer where a table of few dimensions cannot afford that.
        """
        codes, directions = self.weight.left.dense(), self.weight.right.dense()
        ones = torch.ones(codes.shape[0], 1)
        if self.padding_idx is not None:
            ones[self.padding_idx] = 0
        joined = torch.cat([codes, ones], 1), torch.cat([directions, self.mean.unsqueeze(0)])
        kept = next(self.weight.buffers()).dtype
        return LowRankWeight(*(factor.to(kept) for factor in joined))


def mimic_embedding(
    table: Tensor, counts: Tensor | None = None, *,
    rank: int | None = None, energy: float | None = None, center: bool = True, padding_idx: int | None = None,
    factor_dtype: FactorType = "float16",
) -> MimickedEmbedding:  # fmt: skip
    """Store a look-up table in fewer dimensions, chosen so that the rows are right where they are looked up most.

    The features of a table are its rows, each as often as its id occurs in the data: their principal components come from the counts
    alone, without a pass of the data through the model. Ids that never occur keep the projection of their row. Prefer it to a plain
    singular value decomposition, which is ``mimic_embedding(table, center=False)`` and weighs an id seen once like the commonest.

    Args:
        table: ``[rows, dim]``, ids by dimensions.
        counts: How often each row is looked up, ``[rows]``; all equally often without it.
        rank: Dimensions of the codes, at most ``dim``. It may exceed the number of rows, as directions are orthonormal all the same.
        energy: Instead, the smallest rank that keeps this fraction of the variance; 0.99 if neither is given.
        center: Whether to take the rows relative to their mean.
        padding_idx: A row of zeros that stands for nothing; it is left out of the statistics and stays zero.
        factor_dtype: Type that codes and directions are stored in.

    Raises:
        InvalidArgument: If the table or the counts are not finite or contradict each other, or an option is out of range.

    Example:
        >>> import torch
        >>> table = torch.outer(torch.arange(5.0), torch.tensor([1.0, 2.0])) + 3
        >>> small = mimic_embedding(table, torch.tensor([9, 5, 1, 1, 0]), rank=1, factor_dtype="float32")
        >>> small.weight.rank, torch.allclose(small.dense(), table)
        (1, True)

    Reference:
        Yu et al.: "Unified Low-rank Compression Framework for Click-through Rate Prediction", 2024.
    """
    check_matrix(table, "table")
    values = table.detach().double()
    frequency = _frequencies(values, counts, padding_idx)
    _check_options(None, rank, energy, center, 0.0, factor_dtype)
    dim = values.shape[1]
    mean = frequency @ values if center else torch.zeros(dim, dtype=torch.float64)
    centred = values - mean
    moment = (centred * frequency.unsqueeze(1)).T @ centred
    spectrum, vectors = torch.linalg.eigh(moment)
    if rank is None:
        rank = _rank_of(spectrum.flip(0).clamp(min=0), 0.99 if energy is None else energy)
    elif rank > dim:
        raise InvalidArgument(f"rank {rank} exceeds the {dim} dimensions of the table; use at most {dim}")
    directions = vectors[:, -rank:].flip(1)
    codes = centred @ directions
    if padding_idx is not None:
        codes[padding_idx] = 0
    kind = getattr(torch, factor_dtype)
    factors = codes.to(kind), directions.T.contiguous().to(kind)
    check_matrix(factors[0], f"the table rounded to {factor_dtype}")
    made = MimickedEmbedding(LowRankWeight(*factors), mean.float(), padding_idx)
    made.report.update(rank=rank, kept_energy=_share(spectrum[-rank:], spectrum), error=embedding_error(table, made, counts))
    return made


def embedding_error(table: Tensor, compressed: MimickedEmbedding | Tensor, counts: Tensor | None = None) -> float:
    """Relative squared error of the looked-up rows, each counted as often as its id occurs.

    Args:
        table: ``[rows, dim]``.
        compressed: What replaces it.
        counts: ``[rows]``; all rows equally often without it.
    """
    replaced = compressed if isinstance(compressed, Tensor) else compressed.dense()
    weights = torch.ones(table.shape[0], dtype=torch.float64) if counts is None else counts.double()
    lost = float(weights @ (table.double() - replaced.double()).square().sum(1))
    total = float(weights @ table.double().square().sum(1))
    return lost / total if total > 0 else 0.0


def _frequencies(values: Tensor, counts: Tensor | None, padding_idx: int | None) -> Tensor:
    """Share of the look-ups that each row gets, float64 ``[rows]``; all of them equal if nothing is ever looked up."""
    rows = values.shape[0]
    weights = torch.ones(rows, dtype=torch.float64)
    if counts is not None:
        if tuple(counts.shape) != (rows,) or counts.is_complex():
            raise InvalidArgument(f"counts must hold one number a row of the table, shape ({rows},), got shape {tuple(counts.shape)}")
        weights = counts.detach().double()
        if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
            raise InvalidArgument("counts must be finite and not negative; they say how often each row is looked up")
        weights = weights if bool(weights.any()) else torch.ones_like(weights)
    if padding_idx is not None:
        check_integer("padding_idx", padding_idx, 0, rows - 1)
        if bool(values[padding_idx].any()):
            raise InvalidArgument(f"row {padding_idx} of the table is not zero, so it is no padding; leave padding_idx out")
        weights = weights.clone()
        weights[padding_idx] = 0
    total = weights.sum()
    return weights / total if total > 0 else weights


def _output_variances(weight: Tensor, stats: LayerStats, center: bool) -> Tensor:
    """Variances of the outputs along their principal components, falling; without the damping that the factors need."""
    mean = stats.mean.double() * (1.0 if center else 0.0)
    moment = weight @ (stats.hessian.double() - torch.outer(mean, mean)) @ weight.T
    return torch.linalg.eigvalsh(moment).flip(0).clamp(min=0)


def _rank_of(spectrum: Tensor, energy: float) -> int:
    """The smallest rank that keeps ``energy`` of a falling ``spectrum``; 1 if there is nothing to keep."""
    total = float(spectrum.sum())
    if total <= 0:
        return 1
    kept = spectrum.cumsum(0) / total
    return min(int((kept < energy).sum()) + 1, spectrum.shape[0])


def _share(part: Tensor, whole: Tensor) -> float:
    total = float(whole.clamp(min=0).sum())
    return float(part.clamp(min=0).sum()) / total if total > 0 else 1.0


def _check_options(
    keep: float | None, rank: int | None, energy: float | None, center: bool, damping: float, factor_dtype: FactorType
) -> None:
    check_choice("factor_dtype", factor_dtype, FactorType)
    check_number("damping", damping, 0.0)
    if not isinstance(center, bool):
        raise InvalidArgument(f"center must be true or false, got {center!r}")
    if rank is not None:
        check_integer("rank", rank, 1)
    if energy is not None:
        check_number("energy", energy, 0.0, 1.0)
        if keep is not None or rank is not None:
            raise InvalidArgument("energy chooses the rank; leave keep and rank out")
