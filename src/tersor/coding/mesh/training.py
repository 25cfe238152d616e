"""The codec ``mesh`` of ``tersor train-codec``: an encoder and a generator trained apart, then the bridge on pairs that are made up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from tersor.coding.mesh.codec import NAME, BridgeCodec, FieldGenerator, PointEncoder
from tersor.coding.mesh.networks import CodeQuantiser, Kind, LatentBridge, ShapeEncoder, ShapeGenerator
from tersor.coding.mesh.shapes import ShapeSet, shape_set
from tersor.coding.training import with_options
from tersor.errors import InvalidArgument

# The seeds of the generator's shapes begin after those of the encoder's.
_SECOND_HALF = 1_000_000
_BATCH, _POINTS, _QUERIES, _SIDE = 16, 512, 256, 8
# Distances beyond this are learned as this: what is far from the surface does not move it.
_CLAMP = 0.2
_PRIOR_WEIGHT = 5e-5
_RATE = 3e-3
_FIRST = 0.6
# Between the generators of two seeds. They take 32 bits: a seed in the bits above would change nothing.
_SEED_STRIDE = 1_000_003
_PAIR_RESOLUTION = 20
# Bounds of a saved configuration; nothing larger is built from a file.
_LARGEST = 4096


@dataclass(frozen=True)
class MeshSettings:
    """What ``tersor train-codec mesh --option`` sets.

    Attributes:
        code: Numbers of a code.
        bits: Of its quantisation.
        width: Of the encoder's latent.
        latent: Of the generator's.
        kind: Of the bridge, see :class:`LatentBridge`.
        shapes: That each of the two networks sees.
        pairs: For the bridge.

    Raises:
        InvalidArgument: If one is out of range.
    """

    code: int = 24
    bits: int = 8
    width: int = 256
    latent: int = 24
    kind: str = "wide"
    shapes: int = 384
    pairs: int = 600

    def __post_init__(self) -> None:
        sizes = (self.code, self.bits, self.width, self.latent, self.shapes, self.pairs)
        if self.kind not in get_args(Kind) or not all(type(size) is int and 0 < size <= _LARGEST for size in sizes) or self.pairs < 2:
            kinds = ", ".join(get_args(Kind))
            raise InvalidArgument(f"kind must be one of {kinds}, sizes 1 to {_LARGEST} and pairs at least 2, got {self}")


class ShapeModels(nn.Module):
    """All that is learned, and the two parts that are thrown away: the encoder's task and the generator's own encoder.

    Args:
        settings: Sizes.
        seed: Of the weights.
    """

    def __init__(self, settings: MeshSettings, seed: int = 0) -> None:
        super().__init__()
        width, latent = settings.width, settings.latent
        self.encoder, self.generator = ShapeEncoder(width), ShapeGenerator(latent)
        self.task: nn.Module = nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, _SIDE**3))
        self.guide: nn.Module = nn.Sequential(nn.Linear(_SIDE**3, 256), nn.ReLU(), nn.Linear(256, 2 * latent))
        self.bridge = LatentBridge(width, settings.code, latent, next(kind for kind in get_args(Kind) if kind == settings.kind))
        self.quantiser = CodeQuantiser(settings.code, settings.bits)
        draw_linear(self, seed)

    @torch.no_grad()
    def whiten(self, shapes: ShapeSet) -> None:
        """Turn and scale the generator's latents so that those of ``shapes`` are standard normal, whatever the training made of them."""
        latents, _ = self.guide(shapes.coarse).chunk(2, 1)
        values, vectors = torch.linalg.eigh(torch.cov(latents.T).double())
        root = (vectors * values.clamp(min=0).sqrt()).float()
        self.generator.place.bias.add_(self.generator.code.weight @ latents.mean(0))
        self.generator.code.weight.copy_(self.generator.code.weight @ root)

    def codec(self, identity: str | None = None) -> BridgeCodec:
        """The codec of these networks, which it shares."""
        return BridgeCodec(PointEncoder(self.encoder), self.bridge, FieldGenerator(self.generator), self.quantiser, identity)


def draw_linear(module: nn.Module, seed: int) -> None:
    """Fill the linear layers of ``module`` from ``seed`` (He et al.), biases with zero."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Linear):
                part.weight.copy_(torch.randn(part.weight.shape, generator=random) * (2 / part.in_features) ** 0.5)
                if part.bias is not None:
                    part.bias.zero_()


def encoder_loss(models: ShapeModels, shapes: ShapeSet, random: torch.Generator) -> Tensor:
    """The encoder's task: the distance field on a coarse grid, from points of the surface."""
    chosen = torch.randint(len(shapes.points), (_BATCH,), generator=random)
    points = shapes.points[chosen][:, torch.randperm(shapes.points.shape[1], generator=random)[:_POINTS]]
    return functional.mse_loss(models.task(models.encoder(points)), shapes.coarse[chosen])


def generator_loss(models: ShapeModels, shapes: ShapeSet, random: torch.Generator) -> Tensor:
    """The generator as the decoder of a variational auto-encoder, so that latents between those of known shapes are of shapes too."""
    chosen = torch.randint(len(shapes.points), (_BATCH,), generator=random)
    mean, spread = models.guide(shapes.coarse[chosen]).chunk(2, 1)
    latent = mean + torch.exp(spread / 2) * torch.randn(mean.shape, generator=random)
    asked = torch.randint(shapes.queries.shape[1], (_BATCH, _QUERIES), generator=random)
    places = shapes.queries[chosen[:, None], asked]
    wanted = shapes.distances[chosen[:, None], asked].clamp(-_CLAMP, _CLAMP)
    divergence = 0.5 * (mean.square() + spread.exp() - 1 - spread).sum(1).mean()
    return functional.l1_loss(models.generator(latent, places), wanted) + _PRIOR_WEIGHT * divergence


def synthesise_pairs(generator: FieldGenerator, encoder: PointEncoder, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pairs without a single given shape: latents are drawn, their surfaces generated, and those encoded.

    Args:
        generator: Its latents follow the standard normal distribution.
        encoder: Of the generated surfaces.
        count: Pairs.
        seed: Of the latents.

    Returns:
        The encoder's latents ``[count, d_in]`` and the generator's ``[count, d_out]``.

    Raises:
        InvalidArgument: If the generator makes no surface of most latents: it is not trained.
    """
    random = torch.Generator().manual_seed(seed)
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    for _ in range(2 * count + 8):
        if len(inputs) == count:
            break
        latent = torch.randn(generator.network.latent, generator=random)
        found = generator.decode(latent)
        if len(found.faces):
            inputs.append(encoder.encode(found))
            outputs.append(latent)
    if len(inputs) < count:
        raise InvalidArgument("the generator makes no surface of most latents; train it for more steps")
    return torch.stack(inputs), torch.stack(outputs)


def fit_bridge(
    bridge: LatentBridge, inputs: Tensor, outputs: Tensor, *, steps: int = 500, batch: int = 64, learning_rate: float = 2e-3,
    apart: float = 1.0, seed: int = 0,
) -> list[float]:  # fmt: skip
    """Train a bridge on pairs.

    Args:
        bridge: Changed in place.
        inputs: ``[n, d_in]``.
        outputs: ``[n, d_out]``.
        steps: Of Adam.
        batch: Pairs a step.
        learning_rate: At first; falls linearly to zero.
        apart: Weight of the term that keeps codes apart.
        seed: Of the batches.

    Returns:
        The squared error of every step.

    Raises:
        InvalidArgument: On NaN or Inf, or sets of different lengths.
    """
    if len(inputs) != len(outputs) or len(inputs) < 2 or not bool(torch.isfinite(inputs).all() and torch.isfinite(outputs).all()):
        raise InvalidArgument(f"a bridge is fitted to two pairs or more of finite latents, got {len(inputs)} and {len(outputs)}")
    bridge.standardise(inputs, outputs)
    bridge.train()
    optimizer = torch.optim.Adam(bridge.parameters(), learning_rate)
    errors = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - step / steps)
        chosen = torch.randint(len(inputs), (batch,), generator=torch.Generator().manual_seed(seed * _SEED_STRIDE + step))
        error, spread = bridge.loss(inputs[chosen], outputs[chosen], apart)
        optimizer.zero_grad(set_to_none=True)
        (error + spread).backward()
        optimizer.step()
        errors.append(float(error.detach()))
    bridge.eval()
    return errors


class MeshJob:
    """Encoder and generator at once, each on its own shapes, then the bridge.

    Args:
        settings: Sizes.
        steps: In all.
        seed: Of weights, batches and pairs.
    """

    def __init__(self, settings: MeshSettings, steps: int, seed: int = 0) -> None:
        self.settings, self.steps, self.seed = settings, steps, seed
        self.config = asdict(settings)
        self.first = max(round(_FIRST * steps), 1)
        self.module = ShapeModels(settings, seed)
        self.optimizer = torch.optim.Adam(self.module.parameters(), _RATE)
        self.data = "made-up shapes"
        self._sets: tuple[ShapeSet, ShapeSet] | None = None
        self._pairs: tuple[Tensor, Tensor] | None = None

    def rate(self, step: int) -> float:
        """Fraction of the learning rate: each stage falls linearly."""
        if step < self.first:
            return 1 - step / self.first
        return 1 - (step - self.first) / (self.steps - self.first)

    def loss(self, step: int) -> Tensor:
        """Loss of both networks, then of the bridge."""
        random = torch.Generator().manual_seed(self.seed * _SEED_STRIDE + step)
        models, first = self.module, step < self.first
        for part, learns in ((models.encoder, first), (models.task, first), (models.generator, first), (models.guide, first)):
            part.requires_grad_(learns)
        models.bridge.requires_grad_(not first)
        if first:
            ours, theirs = self.made_shapes()
            return encoder_loss(models, ours, random) + generator_loss(models, theirs, random)
        if step == self.first:
            models.whiten(self.made_shapes()[1])
            models.bridge.standardise(*self.made_pairs())
        inputs, outputs = self.made_pairs()
        chosen = torch.randint(len(inputs), (4 * _BATCH,), generator=random)
        error, spread = models.bridge.loss(inputs[chosen], outputs[chosen])
        return error + spread

    def made_shapes(self) -> tuple[ShapeSet, ShapeSet]:
        """Shapes of the encoder, and of the generator: no shape is in both."""
        if self._sets is None:
            count = self.settings.shapes
            self._sets = shape_set(0, count, side=_SIDE), shape_set(_SECOND_HALF, count, side=_SIDE)
        return self._sets

    def made_pairs(self) -> tuple[Tensor, Tensor]:
        """The pairs, which follow from the networks and the seed alone."""
        if self._pairs is None:
            generator = FieldGenerator(self.module.generator, _PAIR_RESOLUTION)
            self._pairs = synthesise_pairs(generator, PointEncoder(self.module.encoder), self.settings.pairs, self.seed)
        return self._pairs

    def finish(self) -> None:
        """Fit the quantiser to the codes of the pairs, and throw the helpers of the training away."""
        if self.first == self.steps:
            self.module.whiten(self.made_shapes()[1])
            self.module.bridge.standardise(*self.made_pairs())
        inputs, _ = self.made_pairs()
        with torch.no_grad():
            self.module.quantiser.fit(self.module.bridge.code(inputs))
        self.module.task, self.module.guide = nn.Identity(), nn.Identity()


def start(data: Path | None, steps: int, seed: int, options: Mapping[str, str]) -> MeshJob:
    """A training at its first step.

    Args:
        data: Nothing: the networks learn from shapes that are made up.
        steps: In all.
        seed: Of weights, batches and pairs.
        options: Of :class:`MeshSettings`, as text.

    Raises:
        InvalidArgument: If data is given, or an option is out of range.
    """
    if data is not None:
        raise InvalidArgument(f"the codec {NAME} is trained on shapes that it makes up, not on {data}; leave the data (--data) out")
    return MeshJob(with_options(MeshSettings(), options), steps, seed)


def load(config: dict[str, Any], tensors: dict[str, Tensor], fingerprint: str) -> BridgeCodec:
    """The codec of a saved configuration and state.

    Raises:
        ValueError: If the configuration is out of bounds.
        RuntimeError: If the state does not fit it.
    """
    models = ShapeModels(MeshSettings(**config))
    models.task, models.guide = nn.Identity(), nn.Identity()
    models.load_state_dict(tensors)
    if len(models.quantiser.tables.as_tables()) != config["code"]:
        raise ValueError(f"{len(models.quantiser.tables.as_tables())} tables for {config['code']} numbers")
    return models.codec(fingerprint)
