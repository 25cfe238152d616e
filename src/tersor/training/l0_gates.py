"""Gates that learn to be open or closed: hard-concrete variables, the size that they leave, and the multipliers that hold it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from tersor.errors import InvalidArgument
from tersor.training.decoder import Decoder, Masks, Shape, masks_of

Kind = Literal["groups", "units", "width"]
# Temperature and ends of the stretched interval of Louizos, Welling and Kingma.
BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
# A logit stays between these, or its gradient would vanish for good.
LOGIT_BOUND = math.log(100)
# Weight of the squared excess, and the step of the multiplier. Moving two multipliers by Adam, as the published code does, overshoots
# within some hundred steps: of an importance that is known, twice as much as needed was removed after 300, with these 1.1 times.
STIFFNESS, ASCENT = 50.0, 2.0
# Noise stays this far from 0 and 1, whose logits are infinite.
_NOISE_MARGIN = 1e-6


def sample_gate(logit: Tensor, uniform: Tensor) -> Tensor:
    """Hard-concrete gates in [0, 1], exactly 0 or 1 with positive probability, differentiable in ``logit`` in between.

    Args:
        logit: Any shape.
        uniform: Draws from (0, 1), of that shape.

    Reference:
        Louizos, Welling, Kingma: "Learning Sparse Neural Networks through L0 Regularization", 2018.
    """
    soft = torch.sigmoid((uniform.logit(_NOISE_MARGIN) + logit) / BETA)
    return (soft * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)


def open_probability(logit: Tensor) -> Tensor:
    """Probability that :func:`sample_gate` is above 0."""
    return torch.sigmoid(logit - BETA * math.log(-GAMMA / ZETA))


def settled_gate(logit: Tensor) -> Tensor:
    """The gate without noise, in [0, 1]."""
    return (torch.sigmoid(logit) * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)


def expected_share(logit: Tensor) -> Tensor:
    """Share of a gate that is counted: 0 at the lower bound of the logits, 1 at the upper one, in between as :func:`open_probability`.

    At the bounds a gate is open with probability 0.047 and 0.998. Without this correction, thousands of gates that have decided would
    still count as some hundred open ones too many, and the size after cutting would differ from the one trained for.
    """
    low, high = (open_probability(torch.tensor(bound)) for bound in (-LOGIT_BOUND, LOGIT_BOUND))
    return (open_probability(logit) - low) / (high - low)


class Gates:
    """Gates on the parts of a decoder, and the Lagrangian that holds the expected number of parameters at a target.

    Args:
        decoder: What they are for.
        kinds: What may be cut; the rest stays whole.
        per_layer: Let every layer keep another number of heads and units; without it all layers keep equally many, each its own.
        generator: Of the first logits.

    Attributes:
        logits: By kind: ``[layers, key-value heads]``, ``[layers, units]``, ``[width]``.
        multiplier: Of the constraint; moved by :meth:`project`, not by the optimizer.

    Raises:
        InvalidArgument: If a kind is unknown or none is given.
    """

    def __init__(self, decoder: Decoder, kinds: Sequence[Kind], per_layer: bool, generator: torch.Generator) -> None:
        for kind in kinds:
            if kind not in get_args(Kind):
                raise InvalidArgument(f"kinds must be among {', '.join(get_args(Kind))}, got {kind!r}")
        if not kinds:
            raise InvalidArgument(f"kinds is empty; name what may be cut: {', '.join(get_args(Kind))}")
        self.decoder, self.per_layer = decoder, per_layer
        shape, layers = decoder.shape, len(decoder.layers)
        self.sizes = {"groups": (layers, shape.groups[0]), "units": (layers, shape.units[0]), "width": (shape.width,)}
        self.logits = {
            kind: nn.Parameter(LOGIT_BOUND - 0.01 * torch.randn(size, generator=generator).abs())
            for kind, size in self.sizes.items() if kind in kinds
        }  # fmt: skip
        self.multiplier = torch.zeros(())
        self.noise = {kind: torch.full_like(logit, 0.5) for kind, logit in self.logits.items()}

    def draw(self, generator: torch.Generator) -> None:
        """Fresh noise for the next step."""
        self.noise = {kind: torch.rand(noise.shape, generator=generator) for kind, noise in self.noise.items()}

    def gate(self, kind: str, layer: int | None, noisy: bool) -> Tensor | None:
        """The gates of one layer, or of the width; ``None`` where none are learned."""
        if kind not in self.logits:
            return None
        whole: Tensor = self.logits[kind]
        logit, noise = (whole, self.noise[kind]) if layer is None else (whole[layer], self.noise[kind][layer])
        return sample_gate(logit, noise) if noisy else settled_gate(logit)

    def expected_keep(self, shift: float = 0.0) -> Tensor:
        """Expected fraction of the parameters of the model that is left, if ``shift`` were added to all logits."""
        counts = {kind: expected_share((logit + shift).clamp(-LOGIT_BOUND, LOGIT_BOUND)).sum(-1) for kind, logit in self.logits.items()}
        return self._size(counts) / self.decoder.parameters

    def _size(self, counts: Mapping[str, Tensor]) -> Tensor:
        whole = {kind: torch.full(size[:-1], float(size[-1])) for kind, size in self.sizes.items()}
        known = whole | dict(counts)
        return self.decoder.count(known["groups"], known["units"], known["width"])

    def penalty(self, keep: float) -> Tensor:
        """What is minimised over the logits so that :meth:`expected_keep` becomes ``keep``: an augmented Lagrangian."""
        excess = self.expected_keep() - keep
        return self.multiplier * excess + STIFFNESS * excess.square()

    @torch.no_grad()
    def project(self, keep: float) -> None:
        """Raise the multiplier by how much too large the model is, bring the logits back into their bounds, and the layers to equal
        expected numbers unless each may have its own."""
        self.multiplier = self.multiplier + ASCENT * (self.expected_keep() - keep)
        for kind, logit in self.logits.items():
            logit.clamp_(-LOGIT_BOUND, LOGIT_BOUND)
            if not self.per_layer and kind != "width":
                wanted = expected_share(logit).sum(1).mean()
                shifts = _bisect(partial(_shifted_share, logit), wanted, logit.shape[0])
                logit.add_(shifts[:, None]).clamp_(-LOGIT_BOUND, LOGIT_BOUND)

    @torch.no_grad()
    def settle(self, keep: float, multiple: int) -> Masks:
        """The parts that stay: masks of ones.

        All logits are shifted by one number so that the expected size is exactly the target; then numbers of heads and of the width are
        rounded, and the units fill what is left of the target.

        Args:
            keep: Fraction of the parameters; not exceeded where units are learned.
            multiple: The width and the numbers of units become multiples of it.

        Raises:
            InvalidArgument: If the kinds cannot reach ``keep``.
        """
        self.check_reachable(keep)
        shift = float(_bisect(lambda shift: self.expected_keep(float(shift))[None], torch.tensor([keep]), 1))
        shifted = {kind: (logit + shift).clamp(-LOGIT_BOUND, LOGIT_BOUND) for kind, logit in self.logits.items()}
        counts = {kind: expected_share(logit).sum(-1) for kind, logit in shifted.items()}
        scores = {kind: shifted.get(kind, torch.zeros(size)) for kind, size in self.sizes.items()}
        shape = fit_shape(self.decoder, keep, counts, self.logits.get("units"), self.per_layer, multiple)
        # Ones, not the gates' own values as published: those of undecided gates only weaken what is kept.
        return masks_of(shape, **scores)

    def check_reachable(self, keep: float) -> None:
        """Refuse a target below what is left when all that may be cut is.

        Raises:
            InvalidArgument: Naming the smallest fraction.
        """
        least = float(self._size({kind: torch.ones(self.sizes[kind][:-1]) for kind in self.logits})) / self.decoder.parameters
        if keep <= least:
            kinds = ", ".join(self.logits)
            raise InvalidArgument(f"keep={keep:g} cannot be reached by cutting {kinds} alone; it must be above {least:.3g}")


def fit_shape(
    decoder: Decoder, keep: float, counts: Mapping[str, Tensor], scores: Tensor | None, per_layer: bool, multiple: int,
) -> Shape:  # fmt: skip
    """Whole numbers near expected ``counts`` of which transformers can make a model of at most ``keep`` of the parameters.

    Args:
        decoder: What is cut.
        keep: Fraction of its parameters.
        counts: Expected numbers by kind; what is missing stays whole.
        scores: Of the units, ``[layers, units]``, by which layers share them if ``per_layer``; ``None`` if units stay whole.
        per_layer: Whether layers may differ.
        multiple: Of the width and of the units of a layer.
    """
    layers, full = len(decoder.layers), decoder.shape
    groups = [round(float(count)) for count in counts["groups"]] if "groups" in counts else list(full.groups)
    if "groups" in counts and not per_layer:
        groups = [round(float(counts["groups"].mean()))] * layers
    groups = [min(max(count, 1), most) for count, most in zip(groups, full.groups, strict=True)]
    # Some configurations insist that the heads divide the width; where the width stays whole, the heads give way.
    if "width" not in counts and not per_layer:
        groups = [next(count for count in range(groups[0], full.groups[0] + 1) if full.width % (count * decoder.queries) == 0)] * layers
    step = math.lcm(multiple, (full.groups[0] if per_layer else groups[0]) * decoder.queries)
    width = min(max(round(float(counts["width"]) / step), 1) * step, full.width // step * step) if "width" in counts else full.width
    if width == 0:
        raise InvalidArgument(f"no width up to {full.width} is a multiple of {step}, as multiple={multiple} and the heads need; lower it")
    if scores is None:
        return Shape(tuple(groups), full.units, width)
    empty, one = (decoder.count_of(Shape(tuple(groups), (size, *[0] * (layers - 1)), width)) for size in (0, 1))
    total = max(int((keep * decoder.parameters - empty) / (one - empty)), layers)
    return Shape(tuple(groups), _share(total, scores, per_layer, multiple), width)


def _share(total: int, scores: Tensor, per_layer: bool, multiple: int) -> tuple[int, ...]:
    """Numbers of units by layer that sum up to at most ``total``, unless the least that a layer must have is more."""
    layers, most = scores.shape
    least = min(multiple, most)
    if per_layer:
        ranked = scores.detach().clone()
        # What every layer must have counts first.
        ranked.scatter_(1, scores.argsort(dim=1, descending=True, stable=True)[:, :least], math.inf)
        chosen = ranked.flatten().argsort(descending=True, stable=True)[:total] // most
        counts = torch.bincount(chosen, minlength=layers).tolist()
    else:
        counts = [total // layers] * layers
    return tuple(min(max(count // multiple * multiple, least), most) for count in counts)


def _shifted_share(logit: Tensor, shift: Tensor) -> Tensor:
    return expected_share((logit + shift[:, None]).clamp(-LOGIT_BOUND, LOGIT_BOUND)).sum(1)


def _bisect(value: Callable[[Tensor], Tensor], wanted: Tensor, count: int) -> Tensor:
    """``count`` shifts at which ``value``, which grows with them, is ``wanted``."""
    low, high = (torch.full((count,), bound) for bound in (-2 * LOGIT_BOUND, 2 * LOGIT_BOUND))
    for _ in range(40):
        middle = (low + high) / 2
        above = value(middle) > wanted
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2
