"""Additive codebooks: groups of inputs as sums of learned vectors, fitted to what the layer puts out."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.layerwise import _codebooks
from tersor.layerwise.checking import check_integer, check_number, check_stats, check_weight
from tersor.layerwise.grid import Grid
from tersor.layerwise.registry import register
from tersor.layerwise.stats import LayerStats
from tersor.weights.codebook import MOST_CODEBOOKS, CodebookWeight

# Conjugate gradient steps for the codebooks of a round; the loss has settled to a thousandth by then.
_STEPS = 30


@register(
    "additive_codebooks", needs="inputs", makes="codebook",
    paper="Egiazarian et al.: Extreme Compression of Large Language Models via Additive Quantization, 2024",
)  # fmt: skip
def additive_codebooks(
    weight: Tensor, stats: LayerStats | None, *,
    n_codebooks: int = 1, bits: int = 8, group_size: int = 4, beam: int = 1, rounds: int = 8, tolerance: float = 0.01,
    damping: float = 0.01, seed: int = 0,
) -> CodebookWeight:  # fmt: skip
    """Codes and codebooks that lose least of ``W x``: k-means, then least squares for codebooks and a search for codes in turn.

    For about 2 bits a weight and below, where the even grid of :func:`gptq` runs out of levels; with more bits try :func:`gptq`
    first, which takes far less time. Codes take ``n_codebooks * bits / group_size`` bits a weight, the codebooks of a small layer up to a
    tenth of that again.

    Args:
        weight: ``[out_features, in_features]``.
        stats: Statistics of the inputs; at least 16 tokens an input feature.
        n_codebooks: Vectors that are summed for each group; 1 is plain vector quantisation and the best use of bytes in layers of a small
            model, whose codebooks are not free.
        bits: Of a code, 1 to 8.
        group_size: Neighbouring inputs that a vector stands for; divides ``in_features``, -1 for whole rows.
        beam: States of a row kept while its codes are searched; 1 is coordinate descent.
        rounds: At most so many turns.
        tolerance: Turns end when one lowers the error by less than this fraction.
        damping: Added to the diagonal of the hessian, relative to its mean.
        seed: Of the first centres.

    Returns:
        The weight; its ``report`` holds the ``rounds`` run, the relative error after k-means (``start_error``) and at the end (``error``),
        both in the damped metric, and the ``damping``.

    Raises:
        InvalidArgument: On an option out of range, a weight that is not a finite matrix, or missing or foreign statistics.

    Reference:
        Egiazarian, Panferov, Kuznedelev, Frantar, Babenko, Alistarh: "Extreme Compression of Large Language Models via Additive
        Quantization", 2024.
    """
    stats = check_stats("additive_codebooks", stats)
    values = check_weight(weight, stats)
    _check_options(n_codebooks, beam, rounds, tolerance, damping)
    group_size = Grid.of(values.shape[1], bits, "symmetric", group_size).group_size
    hessian = stats.hessian.double()
    mean = float(hessian.diagonal().mean()) or 1.0
    damped = (hessian / mean + damping * torch.eye(values.shape[1], dtype=torch.float64)).float()
    # Codebooks of ordinary size survive float16; the size of the weight is in the scales.
    unit = float(values.square().mean().sqrt()) or 1.0
    fit = _codebooks.start(values / unit, damped, n_codebooks, bits, group_size, seed)
    total = float(((fit.target @ damped) * fit.target).sum(dtype=torch.float64)) or 1.0
    losses = [fit.loss]
    for _ in range(rounds):
        _codebooks.fit_codebooks(fit, _STEPS)
        _codebooks.fit_codes(fit, beam)
        losses.append(fit.loss)
        if losses[-1] > (1 - tolerance) * losses[-2]:
            break
    fit.codebooks = fit.codebooks.half().float()
    _codebooks.fit_codes(fit, beam)
    compressed = CodebookWeight(fit.codes, fit.codebooks, fit.scale * unit, bits=bits)
    compressed.report = {
        "rounds": len(losses) - 1, "start_error": losses[0] / total, "error": fit.loss / total, "damping": damping,
    }  # fmt: skip
    return compressed


def _check_options(n_codebooks: int, beam: int, rounds: int, tolerance: float, damping: float) -> None:
    check_integer("n_codebooks", n_codebooks, 1, MOST_CODEBOOKS)
    check_integer("beam", beam, 1, 32)
    check_integer("rounds", rounds, 0)
    check_number("tolerance", tolerance, 0.0, 1.0)
    check_number("damping", damping, 0.0)
