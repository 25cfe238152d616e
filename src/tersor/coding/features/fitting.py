"""How a student learns: first to resemble its teacher inside at few bits, then to do the task with what the bits leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tersor.coding.features.resnet import split_model
from tersor.coding.features.student import MAIN, EntropicStudent
from tersor.errors import InvalidArgument

# Stages whose outputs are compared besides the decoder's; those that the tail lacks are left out.
STAGES = ("layer2", "layer3", "layer4")
_SHIFT = 4
# Between the generators of two seeds. They take 32 bits: a seed in the bits above would change nothing.
_SEED_STRIDE = 1_000_003
# Of the first quantiser of blocks, in deviations of the pixels.
STEPS = (0.2, 0.4, 0.8, 1.6, 3.2)

Progress = Callable[[int, int, float], object]


@dataclass(frozen=True)
class FitConfig:
    """One stage of training.

    Attributes:
        steps: Optimizer steps.
        batch: Images a step.
        learning_rate: Of Adam, a tenth of it in the last quarter. In stage 2, where the paper takes plain gradients with momentum, a third
            of the default does well; plain gradients diverged at rates at which Adam learns.
        seed: Of batches, shifts, flips and noise.
        alpha: Weight of the labels in stage 2; the rest is the teacher's.
        temperature: Of the teacher's probabilities in stage 2.
        weight_decay: In stage 2.
    """

    steps: int = 300
    batch: int = 64
    learning_rate: float = 1e-3
    seed: int = 0
    alpha: float = 0.5
    temperature: float = 1.0
    weight_decay: float = 5e-4


def batches(x: Tensor, labels: Tensor | None, config: FitConfig, step: int) -> tuple[Tensor, Tensor | None, torch.Generator]:
    """The images of ``step``, shifted by up to four pixels and flipped, their labels, and the generator for what else the step draws.

    Everything follows from the seed and the step, so that a training can go on anywhere.
    """
    random = torch.Generator().manual_seed(config.seed * _SEED_STRIDE + step)
    chosen = torch.randint(len(x), (config.batch,), generator=random)
    images = functional.pad(x[chosen], (_SHIFT,) * 4)
    down, across = torch.randint(2 * _SHIFT + 1, (2, config.batch), generator=random).tolist()
    flip = torch.rand(config.batch, generator=random) < 0.5
    height, width = x.shape[2:]
    cut = torch.stack([image[:, top : top + height, left : left + width] for image, top, left in zip(images, down, across, strict=True)])
    cut = torch.where(flip[:, None, None, None], cut.flip(3), cut)
    return cut.contiguous(memory_format=torch.channels_last), None if labels is None else labels[chosen], random


def rate(step: int, steps: int) -> float:
    """Fraction of the learning rate at ``step`` of ``steps``: 1, and a tenth in the last quarter."""
    return 1.0 if step < 0.75 * steps else 0.1


def stage_outputs(network: nn.Sequential, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Outputs of the stages of :data:`STAGES` that ``network`` has, and of its end."""
    found = []
    for name, part in network.named_children():
        x = part(x)
        if name in STAGES:
            found.append(x)
    return found, x


def stage1_loss(
    student: EntropicStudent, teacher: nn.Sequential, x: Tensor, beta: float, generator: torch.Generator, labels: Tensor | None = None
) -> Tensor:
    """Squared distances to the teacher after every stage plus ``beta`` times the bits, both sums over all elements, a mean over images.

    Args:
        student: Whose encoder, prior and decoder learn; its tail is left as it is.
        teacher: The network that it was made of.
        x: Images ``[n, 3, h, w]``.
        beta: Price of a bit; the squared distances of an image are in the hundreds.
        generator: Of the noise that stands in for rounding.
        labels: ``[n]``: learn the task in place of resembling the teacher, the baseline without a teacher.
    """
    latent, likelihood = student.latent(x, generator)
    bits = -likelihood.log2().sum() / len(x)
    decoded = student.decoder(latent)
    if labels is not None:
        return functional.cross_entropy(student.tail()(decoded), labels) + beta * bits
    found, _ = stage_outputs(student.tail(), decoded)
    head, rest = split_model(teacher, student.at)
    with torch.no_grad():
        target = head(x)
        targets, _ = stage_outputs(rest, target)
    distance = sum((ours - theirs).square().sum() for ours, theirs in zip([decoded, *found], [target, *targets], strict=True))
    return distance / len(x) + beta * bits


def start_blocks(
    student: EntropicStudent, teacher: nn.Sequential, x: Tensor, beta: float, steps: Sequence[float] = STEPS, sample: int = 64
) -> float:
    """Start a student of ``"blocks"`` from principal components, at the step of the quantiser whose first loss is least.

    Args:
        student: Changed in place.
        teacher: The network that it was made of.
        x: Images ``[n, 3, h, w]``, of which the first 1024 give the components and the first ``sample`` the losses.
        beta: Price of a bit.
        steps: To choose among, in the unit of the images.
        sample: Images.

    Returns:
        The step.

    Raises:
        InvalidArgument: If the student is of another transform.
    """
    losses = {}
    training = student.training
    for step in steps:
        student.start_from(x[:1024], step)
        with torch.no_grad():
            losses[step] = float(stage1_loss(student.eval(), teacher, x[:sample], beta, torch.Generator()))
    best = min(losses, key=losses.__getitem__)
    student.start_from(x[:1024], best)
    student.train(training)
    return best


def stage2_loss(student: EntropicStudent, target: Tensor | None, x: Tensor, labels: Tensor, config: FitConfig, tail: str = MAIN) -> Tensor:
    """Cross-entropy of labels and of the teacher's probabilities, from latents that are really rounded.

    Args:
        student: Whose decoder and tail learn; the encoder and the prior are left as they are, and so are the bytes.
        target: Logits of the teacher ``[n, classes]``, or ``None`` to learn from labels alone.
        x: Images ``[n, 3, h, w]``.
        labels: ``[n]``.
        config: Its ``alpha`` and ``temperature``.
        tail: Which tail learns.
    """
    with torch.no_grad():
        training = student.training
        latent, _ = student.eval().latent(x)
        student.train(training)
    logits = student.tail(tail)(student.decoder(latent))
    loss = functional.cross_entropy(logits, labels)
    if target is None:
        return loss
    heat = config.temperature
    close = functional.kl_div(
        functional.log_softmax(logits / heat, 1), functional.log_softmax(target / heat, 1), reduction="batchmean", log_target=True
    )
    return config.alpha * loss + (1 - config.alpha) * heat**2 * close


def fit_stage1(
    student: EntropicStudent, teacher: nn.Sequential, x: Tensor, *, beta: float, config: FitConfig | None = None,
    labels: Tensor | None = None, progress: Progress | None = None,
) -> list[float]:  # fmt: skip
    """Train encoder, prior and decoder against the frozen teacher, then make the tables of the prior.

    Args:
        student: Changed in place.
        teacher: The network that it was made of, in evaluation mode.
        x: Images ``[n, 3, h, w]``, no labels.
        beta: Price of a bit.
        config: Of this stage.
        labels: Given for the baseline without a teacher: everything learns from them alone, the tail too.
        progress: Called with steps done, steps in all and the loss.

    Returns:
        The loss of every step.

    Raises:
        InvalidArgument: On NaN or Inf, a beta that is not positive, or sizes out of range.
    """
    config = FitConfig() if config is None else config
    _check(x, config)
    if not beta > 0:
        raise InvalidArgument(f"beta must be positive, got {beta}")
    parts = [student.encoder, student.prior, student.decoder, *([student.tails] if labels is not None else [])]
    optimizer = torch.optim.Adam(_learning(student, parts), config.learning_rate)

    def loss(step: int) -> Tensor:
        images, ours, random = batches(x, labels, config, step)
        return stage1_loss(student, teacher, images, beta, random, ours)

    losses = list(_steps(student, optimizer, loss, config, progress))
    student.prior.update()
    return losses


def fit_stage2(
    student: EntropicStudent, teacher: nn.Sequential | None, x: Tensor, labels: Tensor, *, config: FitConfig | None = None,
    tail: str = MAIN, shared: bool = False, progress: Progress | None = None,
) -> list[float]:  # fmt: skip
    """Train decoder and tail for the task, from latents as they will arrive; the bytes of every image stay what they are.

    Args:
        student: Changed in place.
        teacher: Whose probabilities are learned beside the labels; ``None`` for labels alone.
        x: Images ``[n, 3, h, w]``.
        labels: ``[n]``.
        config: Of this stage.
        tail: Which tail learns.
        shared: Leave the decoder as it is, for a second tail beside one that uses it.
        progress: Called with steps done, steps in all and the loss.

    Returns:
        The loss of every step.

    Raises:
        InvalidArgument: On NaN or Inf, labels of another number, or before stage 1.
    """
    config = FitConfig(steps=100) if config is None else config
    _check(x, config)
    if len(labels) != len(x):
        raise InvalidArgument(f"{len(x)} images need as many labels, got {len(labels)}")
    student.prior.tables.as_tables()
    parts: list[nn.Module] = [student.tail(tail), *([] if shared else [student.decoder])]
    optimizer = torch.optim.AdamW(_learning(student, parts), config.learning_rate, weight_decay=config.weight_decay)

    def loss(step: int) -> Tensor:
        images, ours, _ = batches(x, labels, config, step)
        assert ours is not None
        with torch.no_grad():
            target = None if teacher is None else teacher(images)
        return stage2_loss(student, target, images, ours, config, tail)

    return list(_steps(student, optimizer, loss, config, progress))


def _learning(student: EntropicStudent, parts: list[nn.Module]) -> list[nn.Parameter]:
    student.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)
    return [parameter for parameter in student.parameters() if parameter.requires_grad]


def _steps(
    student: EntropicStudent, optimizer: torch.optim.Optimizer, loss: Callable[[int], Tensor], config: FitConfig, progress: Progress | None
) -> Iterator[float]:
    student.train()
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * rate(step, config.steps)
        optimizer.zero_grad(set_to_none=True)
        found = loss(step)
        found.backward()
        optimizer.step()
        value = float(found.detach())
        if progress is not None:
            progress(step + 1, config.steps, value)
        yield value
    student.eval().requires_grad_(True)


def _check(x: Tensor, config: FitConfig) -> None:
    if x.ndim != 4 or not len(x) or not bool(torch.isfinite(x).all()):
        raise InvalidArgument(f"training needs finite images [n, 3, height, width], got {tuple(x.shape)}")
    if config.steps < 1 or config.batch < 1 or not 0 <= config.alpha <= 1 or config.temperature <= 0 or config.learning_rate <= 0:
        raise InvalidArgument("steps and batch must be at least 1, alpha within 0 and 1, temperature and learning rate positive")
