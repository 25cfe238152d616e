"""Attention to tuples of keys: every query meets every pair (or triple, ...) of keys, exactly or by a polynomial in near-linear time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tersor.attention.features import feature_count, poly_features, required_degree, taylor_coefficients, truncation_error
from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_choice, check_integer, check_number

Method = Literal["auto", "exact", "poly"]

_EPS = 1e-6
# Bytes that intermediate tensors may take, unless the caller says otherwise.
_MEMORY = 1 << 30
# Bytes of a block of the exact form on a CPU: what its cache holds, several times faster than blocks of all the memory there is.
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Certificate:
    """What the polynomial form promises about its output.

    Attributes:
        logit_bound: No logit is larger in magnitude, from the largest entries of each column.
        degree: Of the polynomial, even.
        features: Monomials, the width of the linear form.
        error: No entry of the output is further from the exact one; truncation and rounding.
    """

    logit_bound: float
    degree: int
    features: int
    error: float


class _Inputs(NamedTuple):
    q: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    scale: float
    mask: Tensor | None
    causal: bool
    memory: int


def tensor_attention(
    q: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor, scale: float | None = None, method: Method = "auto",
    degree: int | None = None, eps: float | None = None, mask: Tensor | None = None, *, causal: bool = False, memory_limit: int = _MEMORY,
) -> Tensor:  # fmt: skip
    """``out[i] = sum over j, k of softmax_jk(scale * sum_m q[i,m] k1[j,m] k2[k,m]) * v1[j] * v2[k]``.

    Use it where an output depends on pairs of tokens jointly, which no single head of ordinary attention can represent. Exactly, time
    is cubic and memory quadratic; where logits are small, the polynomial form takes time linear in the tokens at a certified error.

    Args:
        q: Queries ``[..., n, d]``.
        k1: First keys ``[..., m, d]``.
        k2: Second keys, likewise.
        v1: First values ``[..., m, width]``.
        v2: Second values, likewise.
        scale: Of the logits; ``1 / d`` unless given.
        method: ``"exact"``, ``"poly"``, or ``"auto"`` for the cheaper of those that keep to ``eps``.
        degree: Of the polynomial, even; the least that keeps to ``eps`` unless given.
        eps: Largest error of an output that the certificate of the polynomial may promise; 1e-6 unless given.
        mask: Keys that may be attended to, bool ``[..., m]``.
        causal: Whether query ``i`` sees the keys up to ``i`` alone.
        memory_limit: Bytes for intermediate tensors; work is cut into pieces that fit.

    Returns:
        ``[..., n, width]`` in the type of ``q``, differentiable.

    Raises:
        InvalidArgument: If shapes do not belong together, an entry is NaN or Inf, the logits are too large for the polynomial asked for,
            or it has more monomials than fit into the memory.

    Reference:
        Alman, Song: "How to Capture Higher-order Correlations? Generalizing Matrix Softmax Attention to Kronecker Computation", 2024.
    """
    options = {"scale": scale, "method": method, "degree": degree, "eps": eps, "mask": mask, "causal": causal, "memory_limit": memory_limit}
    return higher_order_attention(q, (k1, k2), (v1, v2), **options)  # type: ignore[arg-type]


def higher_order_attention(
    q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], scale: float | None = None, method: Method = "auto",
    degree: int | None = None, eps: float | None = None, mask: Tensor | None = None, *, causal: bool = False, memory_limit: int = _MEMORY,
) -> Tensor:  # fmt: skip
    """:func:`tensor_attention` to tuples of as many keys as there are key tensors; with one it is ordinary attention.

    Args:
        q: Queries ``[..., n, d]``.
        keys: Each ``[..., m, d]``.
        values: As many, each ``[..., m, width]``.
        scale: See :func:`tensor_attention`, as the others.
        method: Likewise.
        degree: Likewise.
        eps: Likewise.
        mask: Likewise.
        causal: Likewise.
        memory_limit: Likewise.

    Raises:
        InvalidArgument: As there.
    """
    check_choice("method", method, Method)
    inputs = _checked(q, keys, values, scale, mask, causal, memory_limit)
    if method == "exact":
        return _exact(inputs)
    if method == "auto":
        chosen = _affordable(inputs, degree, eps)
        return _exact(inputs) if chosen is None else _poly(inputs, chosen.degree)
    return _poly(inputs, _certified(inputs, degree, eps).degree)


def certify(
    q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], scale: float | None = None, degree: int | None = None,
    eps: float | None = None, *, memory_limit: int = _MEMORY,
) -> Certificate:  # fmt: skip
    """What the polynomial form of these inputs promises, without computing it.

    Args:
        q: Queries ``[..., n, d]``.
        keys: Each ``[..., m, d]``.
        values: As many, each ``[..., m, width]``.
        scale: Of the logits; ``1 / d`` unless given.
        degree: Of the polynomial, even; the least that keeps to ``eps`` unless given.
        eps: Largest error; 1e-6 unless given.
        memory_limit: Bytes for intermediate tensors.

    Raises:
        InvalidArgument: If nothing can be promised, or the monomials do not fit into the memory.
    """
    return _certified(_checked(q, keys, values, scale, None, False, memory_limit), degree, eps)


def _checked(
    q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], scale: float | None, mask: Tensor | None, causal: bool, memory: int
) -> _Inputs:
    if not keys or len(keys) != len(values):
        raise InvalidArgument(f"there must be as many values as keys, at least one of each, got {len(keys)} and {len(values)}")
    tokens = keys[0].shape[:-1]
    for name, tensors, width in (("keys", keys, q.shape[-1]), ("values", values, values[0].shape[-1])):
        for tensor in tensors:
            if tensor.shape != (*tokens, width):
                raise InvalidArgument(f"all {name} must be of shape {(*tokens, width)}, got {tuple(tensor.shape)}")
    if q.ndim < 2 or q.shape[:-2] != tokens[:-1] or not q.shape[-2] or not tokens[-1]:
        raise InvalidArgument(f"queries of shape {tuple(q.shape)} do not go with keys of shape {tuple(keys[0].shape)}")
    for name, tensor in (("queries", q), *(("keys", key) for key in keys), *(("values", value) for value in values)):
        if not torch.isfinite(tensor).all():
            raise InvalidArgument(f"the {name} hold NaN or Inf")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != tokens or not mask.any(-1).all()):
        raise InvalidArgument(f"mask must be bool of shape {tuple(tokens)} and leave a key to see, got {mask.dtype} {tuple(mask.shape)}")
    if causal and (q.shape[-2] != tokens[-1] or (mask is not None and not mask[..., 0].all())):
        raise InvalidArgument("a causal mask needs as many queries as keys and a first key that is not masked")
    scale = 1 / q.shape[-1] if scale is None else check_number("scale", scale, -math.inf)
    return _Inputs(q, tuple(keys), tuple(values), scale, mask, causal, check_integer("memory_limit", memory, 1))


def _certified(inputs: _Inputs, degree: int | None, eps: float | None) -> Certificate:
    bound, value_bound = _logit_bound(inputs), math.prod(float(value.detach().abs().max()) for value in inputs.values)
    if degree is None:
        degree = required_degree(bound, _EPS if eps is None else eps, value_bound)
    check_integer("degree", degree, 0)
    if degree % 2:
        raise InvalidArgument(f"degree {degree} is odd, for which the polynomial can be negative; use {degree + 1}")
    truncation = truncation_error(bound, degree)
    if math.isinf(truncation):
        raise InvalidArgument(
            f"logits may reach {bound:.3g}, where a polynomial of degree {degree} promises nothing; use degree "
            f"{required_degree(bound, 0.1)}, a smaller scale or method='exact'"
        )
    count = feature_count(inputs.q.shape[-1], degree)
    # The tables of sums over keys, and the features of a single row.
    needed = 8 * count * math.prod(inputs.q.shape[:-2]) * ((len(inputs.keys) + 1) * (inputs.values[0].shape[-1] + 1) + 2)
    if needed > inputs.memory:
        raise InvalidArgument(
            f"degree {degree} in {inputs.q.shape[-1]} features has {count:,} monomials, which take {needed / 1e9:.3g} GB of the allowed "
            f"{inputs.memory / 1e9:.3g}; raise memory_limit or eps, or use method='exact'"
        )
    # Sums of so many float64 terms, the sizes of which add up to exp(bound) where the exact weight may be exp(-bound).
    terms = inputs.keys[0].shape[-2] + count + degree * (len(inputs.keys) + 2)
    rounding = 4 * terms * torch.finfo(torch.float64).eps * math.exp(min(2 * bound, 700)) + 4 * torch.finfo(inputs.q.dtype).eps
    error = value_bound * (truncation + rounding)
    if eps is not None and error > eps:
        mend = "raise the degree or eps, or use method='exact'"
        raise InvalidArgument(f"degree {degree} promises an error of {error:.3g}, not {eps:.3g}; {mend}")
    return Certificate(bound, degree, count, error)


def _affordable(inputs: _Inputs, degree: int | None, eps: float | None) -> Certificate | None:
    """The certificate of the polynomial if it exists and costs less than the exact form."""
    try:
        certificate = _certified(inputs, degree, eps)
    except InvalidArgument:
        return None
    n, m, d = inputs.q.shape[-2], inputs.keys[0].shape[-2], inputs.q.shape[-1]
    width, order = inputs.values[0].shape[-1], len(inputs.keys)
    if inputs.causal:
        width *= order
    return certificate if certificate.features * (n + order * m) * (width + 2) < n * m**order * (d + width) else None


def _logit_bound(inputs: _Inputs) -> float:
    """No logit is larger in magnitude: the sum over columns of the products of their largest entries."""
    largest = abs(inputs.scale) * inputs.q.detach().double().abs().amax(-2)
    for key in inputs.keys:
        largest = largest * key.detach().double().abs().amax(-2)
    return float(largest.sum(-1).max())


def _exact(inputs: _Inputs) -> Tensor:
    """A block of queries at a time against all tuples, recomputed for gradients, so that memory stays that of a block."""
    n, m, order = inputs.q.shape[-2], inputs.keys[0].shape[-2], len(inputs.keys)
    row = math.prod(inputs.q.shape[:-2]) * m ** (order - 1) * max(m, inputs.q.shape[-1]) * inputs.q.element_size() * 3
    if row > inputs.memory and order > 2:
        raise InvalidArgument(f"all tuples of {order} keys take {row / 1e9:.3g} GB for one query; raise memory_limit or use method='poly'")
    step = max((min(inputs.memory, _BLOCK) if inputs.q.device.type == "cpu" else inputs.memory) // row, 1)
    needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (inputs.q, *inputs.keys, *inputs.values))
    recomputed = needs_grad and inputs.memory // row < n
    parts = []
    for start in range(0, n, step):
        block = inputs._replace(q=inputs.q[..., start : start + step, :])
        if recomputed:
            parts.append(checkpoint(_exact_block, block, start, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(_exact_block(block, start))
    return torch.cat(parts, -2)


def _exact_block(inputs: _Inputs, start: int) -> Tensor:
    order, m = len(inputs.keys), inputs.keys[0].shape[-2]
    logits = inputs.q * inputs.scale
    lead, rows = logits.ndim - 2, logits.shape[-2]
    for index, key in enumerate(inputs.keys[:-1]):
        # [..., rows, m, ..., m, d], a further m with every key, until the last sums over d.
        logits = logits.unsqueeze(-2) * key.reshape(*key.shape[:-2], *[1] * (index + 1), *key.shape[-2:])
    tuples = (*logits.shape[:lead], rows, *[m] * order)
    logits = (logits.flatten(lead, -2) @ inputs.keys[-1].mT).reshape(tuples)
    hidden = _hidden(inputs, start, rows)
    for axis in range(order) if hidden is not None else ():
        assert hidden is not None
        shape = (*hidden.shape[:-1], *[1] * axis, m, *[1] * (order - 1 - axis))
        logits = logits.masked_fill(hidden.reshape(shape), -math.inf)
    weights = logits.flatten(-order).softmax(-1).reshape(*tuples[:lead], -1, m)
    mixed = (weights @ inputs.values[-1]).reshape(*tuples[:-1], -1)
    for index, value in reversed(list(enumerate(inputs.values[:-1]))):
        mixed = (mixed * value.reshape(*value.shape[:-2], *[1] * (index + 1), *value.shape[-2:])).sum(-2)
    return mixed


def _hidden(inputs: _Inputs, start: int, rows: int) -> Tensor | None:
    """Keys that a query must not see, ``[..., rows or 1, m]``."""
    hidden = None if inputs.mask is None else ~inputs.mask.unsqueeze(-2)
    if inputs.causal:
        m = inputs.keys[0].shape[-2]
        position = torch.arange(start, start + rows, device=inputs.q.device)[:, None]
        later = torch.arange(m, device=inputs.q.device) > position
        hidden = later if hidden is None else hidden | later
    return hidden


def _poly(inputs: _Inputs, degree: int) -> Tensor:
    """Sums over keys of features times values, once; then an inner product for every query."""
    q, keys = _balanced(inputs)
    shown = torch.ones_like(keys[0][..., :1]) if inputs.mask is None else inputs.mask.unsqueeze(-1).double()
    # The ones beside the values make the denominator.
    values = [torch.cat([value.double(), torch.ones_like(shown)], -1) * shown for value in inputs.values]
    coefficients = taylor_coefficients(q.shape[-1], degree).to(q.device)
    width = values[0].shape[-1] * len(keys) if inputs.causal else 1
    step = max(inputs.memory // (16 * len(coefficients) * math.prod(q.shape[:-2]) * (1 + width)), 1)
    made = _poly_causal(q, keys, values, coefficients, degree, step) if inputs.causal else None
    if made is None:
        table = _table(keys, values, degree, step)
        blocks = q.split(step, -2)
        made = torch.cat([(poly_features(block, degree) * coefficients) @ table for block in blocks], -2)
    return (made[..., :-1] / made[..., -1:]).to(inputs.q.dtype)


def _table(keys: Sequence[Tensor], values: Sequence[Tensor], degree: int, step: int) -> Tensor:
    """``[..., features, width + 1]``, the product over key tensors of their sums."""
    table: Tensor | None = None
    for key, value in zip(keys, values, strict=True):
        pairs = zip(key.split(step, -2), value.split(step, -2), strict=True)
        sums = torch.stack([poly_features(part, degree).mT @ weight for part, weight in pairs]).sum(0)
        table = sums if table is None else table * sums
    assert table is not None
    return table


def _poly_causal(q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], coefficients: Tensor, degree: int, step: int) -> Tensor:
    """The same with sums over the keys so far, a block at a time."""
    carried: list[Tensor | None] = [None] * len(keys)
    parts = []
    for start in range(0, q.shape[-2], step):
        block = slice(start, start + step)
        product: Tensor | None = None
        for index, (key, value) in enumerate(zip(keys, values, strict=True)):
            features = poly_features(key[..., block, :], degree)
            sums = (features.unsqueeze(-1) * value[..., block, :].unsqueeze(-2)).cumsum(-3)
            before = carried[index]
            sums = sums if before is None else sums + before.unsqueeze(-3)
            carried[index] = sums[..., -1, :, :]
            product = sums if product is None else product * sums
        assert product is not None
        weighted = poly_features(q[..., block, :], degree) * coefficients
        parts.append((weighted.unsqueeze(-2) @ product).squeeze(-2))
    return torch.cat(parts, -2)


def _balanced(inputs: _Inputs) -> tuple[Tensor, list[Tensor]]:
    """Queries and keys in float64 with the scale in the queries and columns of one size, which keeps high powers within range."""
    q, keys = inputs.q.double() * inputs.scale, [key.double() for key in inputs.keys]
    sizes = [tensor.detach().abs().amax(-2, keepdim=True) for tensor in (q, *keys)]
    # A column of zeros makes no logit, whatever its partners are.
    sizes = [torch.where(size > 0, size, 1.0) for size in sizes]
    common = torch.stack([size.log() for size in sizes]).mean(0).exp()
    return q * (common / sizes[0]), [key * (common / size) for key, size in zip(keys, sizes[1:], strict=True)]
