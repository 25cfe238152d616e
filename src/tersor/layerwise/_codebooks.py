"""Learning codebooks: k-means to start with, then codebooks and codes in turn, each best for the other in the metric of the inputs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from tersor.kernels.codebook import lookup

# Groups that k-means looks at: more move no centre by much.
_KMEANS_GROUPS = 1 << 16
_KMEANS_STEPS = 25
_CHUNK = 1 << 14
# Of the mean curvature: what two codebooks could shift between them, and entries that no code names, stay where they are.
_RIDGE = 1e-4


@dataclass
class Fit:
    """A weight in the making.

    Attributes:
        target: float32 ``[out_features, in_features]``, what is approximated.
        hessian: float32 ``[in_features, in_features]``, damped.
        codes: uint8 ``[out_features, groups, n_codebooks]``.
        codebooks: float32 ``[n_codebooks, entries, group_size]``.
        scale: float32 ``[out_features]``.
    """

    target: Tensor
    hessian: Tensor
    codes: Tensor
    codebooks: Tensor
    scale: Tensor

    @property
    def loss(self) -> float:
        """``tr(D H D^T)`` for the present difference ``D``."""
        error = self.target - lookup(self.codes, self.codebooks, self.scale)
        return float(((error @ self.hessian) * error).sum(dtype=torch.float64))


def start(target: Tensor, hessian: Tensor, n_codebooks: int, bits: int, group_size: int, seed: int) -> Fit:
    """Every row at unit root mean square; each codebook by k-means of what those before it left."""
    generator = torch.Generator().manual_seed(seed)
    scale = target.square().mean(1).sqrt()
    scale = torch.where(scale > 0, scale, 1.0).half().float()
    groups = (target / scale.unsqueeze(1)).reshape(-1, group_size)
    codes, codebooks = [], []
    for _ in range(n_codebooks):
        centres = kmeans(groups, 2**bits, generator)
        chosen = nearest(groups, centres)
        groups = groups - centres[chosen]
        codes.append(chosen.to(torch.uint8).view(target.shape[0], -1))
        codebooks.append(centres)
    return Fit(target, hessian, torch.stack(codes, -1).contiguous(), torch.stack(codebooks), scale)


def kmeans(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` centres of ``points`` ``[n, d]`` by Lloyd's algorithm; a centre that lost all its points stays where it was."""
    order = torch.randperm(points.shape[0], generator=generator)
    points = points[order[:_KMEANS_GROUPS]]
    centres = points[:count].clone() if points.shape[0] >= count else points[torch.arange(count) % points.shape[0]].clone()
    for _ in range(_KMEANS_STEPS):
        chosen = nearest(points, centres)
        total = torch.zeros_like(centres).index_add_(0, chosen, points)
        members = torch.bincount(chosen, minlength=count).unsqueeze(1)
        moved = torch.where(members > 0, total / members.clamp(min=1), centres)
        if torch.allclose(moved, centres):
            break
        centres = moved
    return centres


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """The number of the centre closest to each point, int64 ``[n]``; ties go to the lower number."""
    half = centres.square().sum(1) / 2
    return torch.cat([(half - part @ centres.T).argmin(1) for part in points.split(_CHUNK)])


def fit_codebooks(fit: Fit, steps: int) -> None:
    """The codebooks that lose least with the codes as they are, by conjugate gradients, then each row's scale; never worse than before."""
    index = fit.codes.long().flatten(0, 1)
    weights = fit.scale.repeat_interleave(fit.codes.shape[1]).unsqueeze(1)

    def gather(gradient: Tensor) -> Tensor:
        groups = gradient.reshape(-1, fit.codebooks.shape[2]) * weights
        found = torch.zeros_like(fit.codebooks)
        for number in range(found.shape[0]):
            found[number].index_add_(0, index[:, number], groups)
        return found

    curvature = gather((fit.scale.unsqueeze(1) * fit.hessian.diagonal()).contiguous())
    ridge = _RIDGE * float(curvature.mean())

    def apply(direction: Tensor) -> Tensor:
        return gather(lookup(fit.codes, direction, fit.scale) @ fit.hessian).add_(direction, alpha=ridge)

    precondition = 1 / (curvature + max(ridge, 1e-30))
    residual = gather((fit.target - lookup(fit.codes, fit.codebooks, fit.scale)) @ fit.hessian)
    found, direction = fit.codebooks.clone(), torch.zeros_like(residual)
    before = 0.0
    for _ in range(steps):
        step = precondition * residual
        length = float((residual * step).sum(dtype=torch.float64))
        direction = step + direction * (length / before if before else 0.0)
        product = apply(direction)
        bend = float((direction * product).sum(dtype=torch.float64))
        if bend <= 0 or length <= 0:
            break
        found += direction * (length / bend)
        residual -= product * (length / bend)
        before = length
    _keep_if_better(fit, found, fit.scale)
    _keep_if_better(fit, fit.codebooks, _best_scale(fit))


def _best_scale(fit: Fit) -> Tensor:
    shape = lookup(fit.codes, fit.codebooks, torch.ones_like(fit.scale))
    projected = shape @ fit.hessian
    energy = (projected * shape).sum(1)
    scale = torch.where(energy > 0, (projected * fit.target).sum(1) / energy.clamp(min=1e-30), fit.scale)
    # A row whose best scale is negative or tiny is better off where it is until its codes have changed.
    return torch.where(scale > 0.1 * fit.scale, scale, fit.scale).half().float()


def _keep_if_better(fit: Fit, codebooks: Tensor, scale: Tensor) -> None:
    kept, before = (fit.codebooks, fit.scale), fit.loss
    fit.codebooks, fit.scale = codebooks, scale
    if not fit.loss <= before:
        fit.codebooks, fit.scale = kept


def fit_codes(fit: Fit, beam: int) -> int:
    """One sweep over all codes with the codebooks as they are; returns how many changed."""
    from tersor.layerwise import _codebook_search

    size = fit.codebooks.shape[2]
    residuals = (fit.target - lookup(fit.codes, fit.codebooks, fit.scale)) @ fit.hessian
    hessian = fit.hessian.contiguous()
    blocks = torch.stack([hessian[first : first + size, first : first + size] for first in range(0, hessian.shape[0], size)])
    energies = torch.einsum("mck,gkl,mcl->gmc", fit.codebooks, blocks, fit.codebooks).contiguous()
    shared = hessian.numpy(), fit.scale.numpy(), fit.codebooks.contiguous().numpy(), energies.numpy()

    def sweep(rows: slice) -> int:
        part, codes = residuals[rows].numpy(), fit.codes[rows].numpy()
        own = shared[0], shared[1][rows], shared[2], shared[3]
        return int(_codebook_search.beam_search(part, *own, codes, beam) if beam > 1 else _codebook_search.descend(part, *own, codes))

    rows, threads = fit.codes.shape[0], torch.get_num_threads()
    step = -(-rows // threads)
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(sweep, [slice(first, min(first + step, rows)) for first in range(0, rows, step)]))
