"""Small digits in the hands of four simulated workers, each of which sees other classes."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn

from tersor.distributed import ErrorFeedbackState, Simulator
from tersor.papers.gloo_training import CLASSES

WIDTHS = (64, 128, 128, 10)
_BATCH = 32
# Vectors and what is smaller are averaged as they are.
_SMALLEST = 129


@cache
def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixels and labels of three quarters of the digits of scikit-learn, and of the rest, which is for testing."""
    from sklearn.datasets import load_digits

    pixels, labels = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    x, y = pixels.float()[order] / 16, labels.long()[order]
    cut = 3 * len(y) // 4
    return x[:cut], y[:cut], x[cut:], y[cut:]


def train(method: str, compressor: str, rate: float, steps: int, seed: int) -> float:
    """Train a perceptron by plain SGD.

    Args:
        method: A mode of :class:`tersor.distributed.ErrorFeedbackState`, or ``"none"`` for uncompressed averaging.
        compressor: Of the matrices.
        rate: Learning rate.
        steps: Of one batch a worker.
        seed: Draws the split, the start and the batches.

    Returns:
        The fraction of the test digits that are recognised.
    """
    x, y, x_test, y_test = digits(seed)
    mine = [torch.isin(y, torch.tensor(classes)).nonzero().flatten() for classes in CLASSES]

    def gradients(parameters: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        random = torch.Generator().manual_seed(1_000_003 * seed + step)
        chosen = torch.stack([rows[torch.randint(len(rows), (_BATCH,), generator=random)] for rows in mine])
        copies = {name: tensor.expand(len(mine), *tensor.shape).clone().requires_grad_() for name, tensor in parameters.items()}
        # The mean over each worker's batch, added up: the copy of each then has the gradient of its own batch.
        loss = nn.functional.cross_entropy(logits(copies, x[chosen]).flatten(0, 1), y[chosen].flatten(), reduction="sum") / _BATCH
        return dict(zip(copies, torch.autograd.grad(loss, list(copies.values())), strict=True))

    mode, sent = ("csgd", "identity") if method == "none" else (method, compressor)
    simulator = Simulator(ErrorFeedbackState(mode, sent, min_numel=_SMALLEST), start(seed), gradients)
    found = logits(simulator.run(steps, rate), x_test)
    return float((found.argmax(-1) == y_test).float().mean())


def start(seed: int) -> dict[str, Tensor]:
    """Matrices and vectors of a perceptron before training."""
    random = torch.Generator().manual_seed(seed)
    parameters = {}
    for index, (inputs, outputs) in enumerate(pairwise(WIDTHS)):
        parameters[f"{index}.weight"] = (2 / inputs) ** 0.5 * torch.randn(outputs, inputs, generator=random)
        parameters[f"{index}.bias"] = torch.zeros(outputs)
    return parameters


def logits(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    """What the perceptron says of ``x`` ``[..., n, 64]``; parameters may have the same leading dimensions."""
    last = len(WIDTHS) - 2
    for index in range(last + 1):
        x = x @ parameters[f"{index}.weight"].mT + parameters[f"{index}.bias"].unsqueeze(-2)
        x = x.relu() if index < last else x
    return x
