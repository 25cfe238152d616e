"""QuEST: train with weights and activations of few bits, in a rotated basis, with gradients only where rounding can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.errors import InvalidArgument
from tersor.kernels.hadamard import block_of, rotate
from tersor.layerwise.checking import check_choice, check_integer, check_number
from tersor.training.layers import linear_layers, put_layer
from tersor.weights import CompressedLinear, QuantizedWeight, RotatedWeight

Mask = Literal["trust", "clip", "straight_through"]

# The clip of a unit Gaussian that loses least in mean square on 2 ** bits mid-rise levels.
GAUSSIAN_CLIP = {
    1: 0.79788456, 2: 1.49353462, 3: 2.05106835, 4: 2.51393058, 5: 2.91609388, 6: 3.27659728, 7: 3.61113, 8: 3.92222,
}  # fmt: skip
# Half-step ties are inside: rounding leaves exactly half a step there.
_SLACK = 1e-5
_SMALLEST = 1e-8


@dataclass(frozen=True)
class Quantizer:
    """How a tensor is rounded in the forward pass and which of its entries get a gradient.

    Attributes:
        bits: 1 to 8.
        hadamard: Largest Hadamard block; the largest power of two up to it that divides the features is used, 1 for none.
        mask: ``"trust"``: where rounding moved an entry by no more than half a step; ``"clip"``: within ``clip_scale`` times the clip;
            ``"straight_through"``: everywhere.
        clip_scale: For ``"clip"``; 1.3 is what the published 1-bit runs use.
        keep_pairs: Of every four pairs of neighbours, how many of the largest norm are kept, the others zero; 4 for no sparsity.
    """

    bits: int = 4
    hadamard: int = 128
    mask: Mask = "trust"
    clip_scale: float = 1.3
    keep_pairs: int = 4

    def __post_init__(self) -> None:
        check_integer("bits", self.bits, 1, 8)
        check_integer("hadamard", self.hadamard, 1)
        check_choice("mask", self.mask, Mask)
        check_number("clip_scale", self.clip_scale, 0.0)
        check_integer("keep_pairs", self.keep_pairs, 1, 4)

    def block(self, features: int) -> int:
        """The Hadamard block for so many features."""
        return block_of(features, self.hadamard)

    def rotated(self, x: Tensor) -> Tensor:
        """``x`` in the basis that it is rounded in."""
        return rotate(x, self.block(x.shape[-1]))

    def grid(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Step and lowest level ``[..., 1]`` for each row of rotated ``h``: one scale a row, from its root mean square."""
        alpha = GAUSSIAN_CLIP[self.bits] * h.square().mean(-1, keepdim=True).sqrt() + _SMALLEST
        return 2 * alpha / (2**self.bits - 1), -alpha

    def __call__(self, x: Tensor, stored: bool = False) -> Tensor:
        """``x`` rotated and rounded, with the masked gradient.

        Args:
            x: ``[..., features]``.
            stored: Round step and lowest level to float16 first, as :meth:`stored` has them, so that what is trained is what is exported.
        """
        h = self.rotated(x)
        step, low = self.grid(h.detach())
        return _round(h, *((step.half().to(h.dtype), low.half().to(h.dtype)) if stored else (step, low)), self)

    def stored(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 codes ``[out_features, in_features]`` of a weight, step and lowest level ``[out_features, 1]`` in float16 precision."""
        h = self.rotated(weight.detach().float())
        step, low = (part.half().float() for part in self.grid(h))
        return _codes(h, step, low, self.bits).to(torch.uint8), step, low


def _codes(h: Tensor, step: Tensor, low: Tensor, bits: int) -> Tensor:
    return ((h - low) / step).round().clamp(0, 2**bits - 1)


class _Rounded(torch.autograd.Function):
    """Rounding whose result is the level itself: ``x * mask + (q - x * mask)`` would differ from it in the last bit."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, q: Tensor, trusted: Tensor) -> Tensor:
        ctx.save_for_backward(trusted)
        return q

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (trusted,) = ctx.saved_tensors
        return gradient * trusted, None, None


def _round(h: Tensor, step: Tensor, low: Tensor, quantizer: Quantizer) -> Tensor:
    differentiated = torch.is_grad_enabled() and h.requires_grad
    with torch.no_grad():
        values = h.detach()
        q = _codes(values, step, low, quantizer.bits) * step + low
        if quantizer.keep_pairs < 4:
            q = q * _kept_pairs(values, quantizer.keep_pairs)
        if not differentiated:
            return q
        if quantizer.mask == "straight_through":
            trusted = torch.ones_like(values, dtype=torch.bool)
        elif quantizer.mask == "clip":
            trusted = values.abs() <= -low * quantizer.clip_scale
        else:
            trusted = (q - values).abs() <= step * (0.5 + _SLACK)
    rounded: Tensor = _Rounded.apply(h, q, trusted)
    return rounded


def _kept_pairs(h: Tensor, keep: int) -> Tensor:
    """One where the pair is among the ``keep`` of largest norm in its four, zero elsewhere."""
    if h.shape[-1] % 8:
        raise InvalidArgument(f"pairs are chosen among eight neighbours, which {h.shape[-1]} features do not divide into")
    norms = h.unflatten(-1, (-1, 4, 2)).square().sum(-1)
    chosen = norms.topk(keep, dim=-1).indices
    kept = torch.zeros_like(norms).scatter_(-1, chosen, 1.0)
    return kept.unsqueeze(-1).expand(*kept.shape, 2).flatten(-3)


class QuESTLinear(nn.Linear):
    """A linear layer that computes with a rounded weight and rounded inputs, both in the Hadamard basis, where their product is the same.

    The float weight is what the optimizer moves; :meth:`compressed` is what is stored in the end.

    Args:
        in_features: Inputs.
        out_features: Outputs.
        bias: Whether there is one; it stays in floating point.
        weights: How the weight is rounded, ``None`` to leave it.
        activations: How the inputs are rounded, each token by itself, ``None`` to leave them.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, weights: Quantizer | None, activations: Quantizer | None,
    ) -> None:  # fmt: skip
        super().__init__(in_features, out_features, bias)
        if weights is not None and activations is not None and weights.block(in_features) != activations.block(in_features):
            raise InvalidArgument("weights and activations must be rounded in one basis: give both quantizers the same hadamard")
        self.quantized_weights, self.quantized_activations = weights, activations

    def forward(self, x: Tensor) -> Tensor:
        """``x`` ``[..., in_features]`` to ``[..., out_features]``."""
        block = max(q.block(self.in_features) for q in (self.quantized_weights, self.quantized_activations, Quantizer(hadamard=1)) if q)
        inputs = rotate(x, block) if self.quantized_activations is None else self.quantized_activations(x)
        weight = rotate(self.weight, block) if self.quantized_weights is None else self.quantized_weights(self.weight, stored=True)
        return F.linear(inputs, weight.to(inputs.dtype), self.bias)

    def compressed(self) -> RotatedWeight:
        """The weight as integer codes with one scale a row, in the Hadamard basis.

        Raises:
            InvalidArgument: If the weight is not rounded, or is sparse besides.
        """
        quantizer = self.quantized_weights
        if quantizer is None or quantizer.keep_pairs < 4:
            raise InvalidArgument("only a weight that is rounded, and not pruned besides, is exported to codes")
        codes, step, low = quantizer.stored(self.weight)
        body = QuantizedWeight(codes, step, low, bits=quantizer.bits, scheme="float_min", group_size=-1)
        return RotatedWeight(body, quantizer.block(self.in_features))

    def extra_repr(self) -> str:
        """Shape and bits."""
        bits = [None if q is None else q.bits for q in (self.quantized_weights, self.quantized_activations)]
        return f"{super().extra_repr()}, weights={bits[0]}, activations={bits[1]} bits"


class RoundedInputs(nn.Module):
    """An exported layer that still rounds its inputs as it did in training.

    Args:
        layer: The compressed layer.
        activations: How the inputs are rounded.
    """

    def __init__(self, layer: CompressedLinear, activations: Quantizer) -> None:
        super().__init__()
        self.layer, self.activations = layer, activations

    def forward(self, x: Tensor) -> Tensor:
        """``x`` ``[..., in_features]`` to ``[..., out_features]``."""
        body = self.layer.weight
        assert isinstance(body, RotatedWeight)
        y: Tensor = body.body(self.activations(x))
        return y if self.layer.bias is None else y + self.layer.bias.to(y.dtype)


def quest(
    model: nn.Module, *, weights: Quantizer | int | None = 4, activations: Quantizer | int | None = 4,
    skip: Sequence[str] = ("lm_head", "embed"),
) -> list[str]:  # fmt: skip
    """Turn every linear layer of ``model`` into a :class:`QuESTLinear`, in place, with the parameters that it has.

    For training from scratch, or for going on with a trained model: the rotations of weights and inputs cancel, so only rounding changes
    what it computes. The optimizer may be built before or after.

    Args:
        model: Any module.
        weights: A quantizer, a number of bits with its defaults, or ``None``.
        activations: The same for inputs.
        skip: Layers whose dotted name contains one of these stay; embeddings, norms and heads do by default.

    Returns:
        The names of the layers.

    Raises:
        InvalidArgument: If no layer is left, or an option is out of range.

    Reference:
        Panferov, Chen, Tabesh, Castro, Nikdan, Alistarh: "QuEST: Stable Training of LLMs with 1-Bit Weights and Activations", 2025.
    """
    made = [part if isinstance(part, Quantizer) or part is None else Quantizer(bits=part) for part in (weights, activations)]
    layers = linear_layers(model, skip)
    for name, layer in layers.items():
        with torch.device("meta"):
            new = QuESTLinear(layer.in_features, layer.out_features, layer.bias is not None, weights=made[0], activations=made[1])
        # The same Parameter objects: an optimizer that was built before stays valid.
        new.weight, new.bias = layer.weight, layer.bias
        put_layer(model, name, new)
    return list(layers)


def export(model: nn.Module, *, round_inputs: bool = True) -> list[str]:
    """Replace every :class:`QuESTLinear` by its stored codes, in place.

    Args:
        model: What :func:`quest` changed.
        round_inputs: Go on rounding inputs where they were, so that exactly what was trained is computed. Without it plain compressed
            layers are left, which a :class:`tersor.Model` holds, saves and exports; inputs in floating point lose less.

    Returns:
        The names of the layers.

    Raises:
        InvalidArgument: If there is none, or one cannot be exported.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, QuESTLinear)}
    if not layers:
        raise InvalidArgument("the model has no layer that was trained with quest()")
    for name, layer in layers.items():
        compressed = CompressedLinear(layer.compressed(), layer.bias)
        rounded = layer.quantized_activations
        put_layer(model, name, RoundedInputs(compressed, rounded) if rounded is not None and round_inputs else compressed)
    return list(layers)
