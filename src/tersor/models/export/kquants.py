"""Rounding dense matrices to GGUF block types: a search for scales and minima, then least squares on what the block can store."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.models.export.gguf_blocks import BLOCK_TYPES, BlockType, Fields

# Weights searched at once: some tens of megabytes of temporaries.
_CHUNK = 1 << 20
# Trial scales around the one that maps the range onto all codes; outliers make a smaller range the better choice.
_SYMMETRIC_TRIALS = 19
_MINIMUM_TRIALS = 21
_REFINEMENTS = 3


def quantize(values: Tensor, type_name: str, importance: Tensor | None = None) -> tuple[np.ndarray, Tensor]:
    """Round a matrix to a GGUF type with a small squared error, in which large weights count a little more.

    Args:
        values: float32 ``[rows, columns]``; columns must be a multiple of the block.
        type_name: A key of :data:`BLOCK_TYPES`.
        importance: ``[columns]``, further weight of the squared error of each column, such as the mean squared input; uniform if ``None``.

    Returns:
        The packed bytes, uint8 ``[rows, bytes]``, and the float32 values that they stand for.

    Raises:
        InvalidArgument: If the rows do not consist of whole blocks, or a value is too large for a float16 scale.
    """
    kind = BLOCK_TYPES[type_name]
    rows, columns = values.shape
    if columns % kind.block:
        raise InvalidArgument(f"{type_name} stores rows in blocks of {kind.block}, a row of {columns} weights does not fit")
    weights = torch.ones(columns) if importance is None else _checked(importance, columns)
    packed, decoded = [], []
    step = max(_CHUNK // columns, 1)
    for start in range(0, rows, step):
        part = values[start : start + step].float()
        fields = search(part.reshape(-1, kind.block), _emphasis(part, kind) * weights.repeat(part.shape[0]).reshape(-1, kind.block), kind)
        packed.append(kind.pack(fields).reshape(part.shape[0], -1))
        decoded.append(torch.from_numpy(fields.values()).reshape(part.shape))
    return np.concatenate(packed), torch.cat(decoded)


def _checked(importance: Tensor, columns: int) -> Tensor:
    if tuple(importance.shape) != (columns,) or not torch.isfinite(importance).all() or bool((importance < 0).any()):
        raise InvalidArgument(f"importance must be {columns} finite numbers that are not negative, got shape {tuple(importance.shape)}")
    # A column that calibration never saw still has to be stored sensibly.
    mean = importance.float().mean().clamp_min(1e-30)
    return importance.float() / mean + 1e-3


def _emphasis(values: Tensor, kind: BlockType) -> Tensor:
    """Weights ``[n, block]`` that grow with the magnitude: errors on large weights hurt a model more than their square says."""
    groups = values.reshape(-1, kind.group)
    return (groups.square().mean(-1, keepdim=True).sqrt() + groups.abs()).reshape(-1, kind.block)


def search(blocks: Tensor, weights: Tensor, kind: BlockType) -> Fields:
    """Fields of ``kind`` for ``blocks`` ``[n, block]`` under per-weight ``weights`` of the squared error.

    Raises:
        InvalidArgument: If a scale overflows float16.
    """
    x = blocks.reshape(len(blocks), -1, kind.group)
    w = weights.reshape(x.shape)
    state = _with_min(x, w, kind) if kind.has_min else _symmetric(x, w, kind)
    best, best_error = state, state.error(x, w)
    for _ in range(_REFINEMENTS):
        state = _refine(state, x, w, kind)
        error = state.error(x, w)
        best = best.where(error < best_error, state)
        best_error = torch.minimum(error, best_error)
    return best.fields(kind)


@dataclass(frozen=True)
class _State:
    """Float fields of ``n`` blocks of ``g`` groups: codes ``[n, g, group]``, d and dmin ``[n]``, scales and mins ``[n, g]``."""

    codes: Tensor
    d: Tensor
    scales: Tensor
    dmin: Tensor
    mins: Tensor

    @property
    def step(self) -> Tensor:
        return (self.d[:, None] * self.scales)[..., None]

    @property
    def offset(self) -> Tensor:
        return (self.dmin[:, None] * self.mins)[..., None]

    def error(self, x: Tensor, w: Tensor) -> Tensor:
        """Weighted squared error of each block."""
        return (w * (self.codes * self.step - self.offset - x).square()).sum((1, 2))

    def where(self, take: Tensor, other: _State) -> _State:
        pairs = zip(vars(other).values(), vars(self).values(), strict=True)
        return _State(*(torch.where(take.reshape(-1, *[1] * (new.ndim - 1)), new, old) for new, old in pairs))

    def fields(self, kind: BlockType) -> Fields:
        codes = self.codes.reshape(len(self.codes), -1).to(torch.int16).numpy()
        d, dmin = self.d.half().numpy(), self.dmin.half().numpy() if kind.has_min else None
        if kind.scale_range is None:
            return Fields(codes, d, dmin=dmin)
        mins = self.mins.to(torch.int16).numpy() if kind.has_min else None
        return Fields(codes, d, self.scales.to(torch.int16).numpy(), dmin, mins)


def _as_half(values: Tensor) -> Tensor:
    half = values.half().float()
    if not torch.isfinite(half).all():
        largest = float(values.abs().max())
        raise InvalidArgument(f"weights need a scale of {largest:.3g}, beyond float16; GGUF can store such a matrix as F32 only")
    return half


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator == 0, torch.zeros_like(numerator), numerator / torch.where(denominator == 0, 1.0, denominator))


def _round_codes(x: Tensor, step: Tensor, offset: Tensor, kind: BlockType) -> Tensor:
    return _ratio(x + offset, step).round().clamp(_lowest(kind), kind.high)


def _lowest(kind: BlockType) -> int:
    # The reference never makes the code -128, which some kernels cannot negate.
    return max(kind.low, -127)


def _symmetric(x: Tensor, w: Tensor, kind: BlockType) -> _State:
    """Best scale of each group among trials, then integer scales of the block that come nearest."""
    extreme = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    low = _lowest(kind)
    best_scale, best_gain = torch.zeros_like(extreme), torch.full_like(extreme, -1.0)
    for trial in range(_SYMMETRIC_TRIALS):
        # The longer, negative side of the code range is given to the value of largest magnitude.
        inverse = _ratio((low - 0.1 * (trial - _SYMMETRIC_TRIALS // 2)) * torch.ones_like(extreme), extreme)
        codes = (x * inverse).round().clamp(low, kind.high)
        product, power = (w * x * codes).sum(-1, keepdim=True), (w * codes.square()).sum(-1, keepdim=True)
        gain = _ratio(product.square(), power)
        better = gain > best_gain
        best_scale = torch.where(better, _ratio(product, power), best_scale)
        best_gain = torch.where(better, gain, best_gain)
    scale = best_scale.squeeze(-1)
    none = torch.zeros(len(x))
    if kind.scale_range is None:
        d, scales = _as_half(scale[:, 0]), torch.ones_like(scale)
    else:
        largest = scale.gather(-1, scale.abs().argmax(-1, keepdim=True)).squeeze(-1)
        d = _as_half(largest / kind.scale_range[0])
        scales = _ratio(scale, d[:, None]).round().clamp(*kind.scale_range)
    codes = _round_codes(x, (d[:, None] * scales)[..., None], torch.zeros(1), kind)
    return _State(codes, d, scales, none, torch.zeros_like(scales))


def _with_min(x: Tensor, w: Tensor, kind: BlockType) -> _State:
    """Best pair of scale and minimum of each group among trials, then integers of the block that come nearest."""
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    if kind.scale_range is not None:
        # Inside a super-block the minima are unsigned.
        low = low.clamp_max(0)
    scale, offset = _ratio(high - low, torch.full_like(low, kind.high)), -low
    best_error = torch.full_like(low, torch.inf)
    best_scale, best_offset = scale, offset
    for trial in range(_MINIMUM_TRIALS):
        inverse = _ratio((kind.high - 1 + 0.1 * trial) * torch.ones_like(low), high - low)
        codes = ((x - low) * inverse).round().clamp(0, kind.high)
        scale, offset = _line(x, codes, w, kind)
        error = (w * (codes * scale - offset - x).square()).sum(-1, keepdim=True)
        better = error < best_error
        best_scale, best_offset = torch.where(better, scale, best_scale), torch.where(better, offset, best_offset)
        best_error = torch.where(better, error, best_error)
    scale, offset = best_scale.squeeze(-1), best_offset.squeeze(-1)
    if kind.scale_range is None:
        d, dmin, scales = _as_half(scale[:, 0]), _as_half(offset[:, 0]), torch.ones_like(scale)
        mins = scales
    else:
        d, dmin = _as_half(scale.amax(-1) / kind.scale_range[1]), _as_half(offset.amax(-1) / kind.scale_range[1])
        scales = _ratio(scale, d[:, None]).round().clamp(*kind.scale_range)
        mins = _ratio(offset, dmin[:, None]).round().clamp(*kind.scale_range)
    codes = _round_codes(x, (d[:, None] * scales)[..., None], (dmin[:, None] * mins)[..., None], kind)
    return _State(codes, d, scales, dmin, mins)


def _line(x: Tensor, codes: Tensor, w: Tensor, kind: BlockType) -> tuple[Tensor, Tensor]:
    """Weighted least squares for ``x = scale * codes - offset`` in each group; offsets of super-blocks stay at or above zero."""
    total, mean_c, mean_x = (t.sum(-1, keepdim=True) for t in (w, w * codes, w * x))
    square, cross = (w * codes.square()).sum(-1, keepdim=True), (w * codes * x).sum(-1, keepdim=True)
    determinant = total * square - mean_c.square()
    scale = _ratio(total * cross - mean_c * mean_x, determinant)
    offset = _ratio(mean_c * cross - square * mean_x, determinant)
    constant = -_ratio(mean_x, total)
    if kind.scale_range is None:
        return scale, torch.where(determinant <= 0, constant, offset)
    pinned = (offset < 0) | (determinant <= 0)
    at_zero = torch.where(square > 0, torch.zeros_like(offset), constant.clamp_min(0))
    return torch.where(pinned, _ratio(cross, square), scale).clamp_min(0), torch.where(pinned, at_zero, offset)


def _refine(state: _State, x: Tensor, w: Tensor, kind: BlockType) -> _State:
    """One round of: integers for the present codes, then the float16 factors, then the codes."""
    scales, mins = state.scales, state.mins
    if kind.scale_range is not None:
        if kind.has_min:
            scale, offset = (part.squeeze(-1) for part in _line(x, state.codes, w, kind))
            mins = _ratio(offset, state.dmin[:, None]).round().clamp(*kind.scale_range)
        else:
            scale = _ratio((w * x * state.codes).sum(-1), (w * state.codes.square()).sum(-1))
        scales = _ratio(scale, state.d[:, None]).round().clamp(*kind.scale_range)
    d, dmin = _factors(state.codes * scales[..., None], mins[..., None].expand_as(x), x, w, kind)
    codes = _round_codes(x, (d[:, None] * scales)[..., None], (dmin[:, None] * mins)[..., None], kind)
    return _State(codes, d, scales, dmin, mins)


def _factors(a: Tensor, b: Tensor, x: Tensor, w: Tensor, kind: BlockType) -> tuple[Tensor, Tensor]:
    """Weighted least squares for ``x = d * a - dmin * b`` over each block, rounded to float16."""
    aa, ax = (w * a * a).sum((1, 2)), (w * a * x).sum((1, 2))
    alone = _ratio(ax, aa)
    if not kind.has_min:
        return _as_half(alone), torch.zeros_like(alone)
    ab, bb, bx = ((w * p * q).sum((1, 2)) for p, q in ((a, b), (b, b), (b, x)))
    determinant = aa * bb - ab.square()
    usable = determinant > 1e-6 * aa * bb
    d = torch.where(usable, _ratio(bb * ax - ab * bx, determinant), alone)
    dmin = torch.where(usable, _ratio(ab * ax - aa * bx, determinant), _ratio(-bx, bb) * (aa == 0))
    return _as_half(d), _as_half(dmin)
