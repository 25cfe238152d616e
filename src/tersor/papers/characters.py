"""A small recurrent network on characters for experiments on compression during training: one text, one loop, one split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.training import Compression, Method


@dataclass(frozen=True)
class Text:
    """A text as indices into its alphabet, cut into disjoint parts.

    Attributes:
        alphabet: Its characters; those not in the training part are one more, the last.
        train: Nine tenths of the text.
        test: The last tenth.
    """

    alphabet: str
    train: Tensor
    test: Tensor


def load(source: str, limit: int) -> Text:
    """The first ``limit`` characters of a text that :func:`tersor.data.text` knows.

    Raises:
        InvalidArgument: If there is no such text.
    """
    from tersor import data

    characters = data.text(source)[:limit]
    cut = len(characters) * 9 // 10
    alphabet = "".join(sorted(set(characters[:cut]))) + "\ufffd"
    index = {character: position for position, character in enumerate(alphabet)}
    codes = torch.tensor([index.get(character, len(alphabet) - 1) for character in characters])
    return Text(alphabet, codes[:cut], codes[cut:])


class CharacterLSTM(nn.Module):
    """An embedding, one recurrent layer, and a linear layer to the next character.

    Args:
        characters: Size of the alphabet.
        width: Of the recurrent state; the embedding has a third of it.
        seed: Of the initial weights.
    """

    def __init__(self, characters: int, width: int, seed: int = 0) -> None:
        super().__init__()
        narrow = max(width // 3, 1)
        self.table = nn.Embedding(characters, narrow)
        self.recurrent = nn.LSTM(narrow, width, batch_first=True)
        self.head = nn.Linear(width, characters)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            reach = width**-0.5
            parameter.data = (2 * torch.rand(parameter.shape, generator=generator) - 1) * reach

    def forward(self, codes: Tensor) -> Tensor:
        """Logits ``[n, length, characters]`` of what follows each of ``codes`` ``[n, length]``."""
        states, _ = self.recurrent(self.table(codes))
        logits: Tensor = self.head(states)
        return logits


@dataclass(frozen=True)
class Plan:
    """How it is trained: Adam with a cosine schedule.

    Attributes:
        steps: Of the optimizer.
        batch: Windows a step.
        length: Characters a window.
        rate: Peak learning rate.
    """

    steps: int = 300
    batch: int = 32
    length: int = 64
    rate: float = 8e-3


def fit(model: nn.Module, text: Text, plan: Plan, *, seed: int, methods: Sequence[Method] = ()) -> None:
    """Train ``model`` in place on random windows of the training part, with ``methods`` on board, and leave plain modules."""
    compression = Compression(model, methods, total_steps=plan.steps, seed=seed) if methods else None
    optimizer = torch.optim.Adam(model.parameters(), lr=plan.rate)
    if compression is not None:
        compression.attach(optimizer)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for step in range(plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * 0.5 * (1 + math.cos(math.pi * step / plan.steps))
        starts = torch.randint(len(text.train) - plan.length - 1, (plan.batch, 1), generator=generator)
        windows = text.train[starts + torch.arange(plan.length + 1)]
        optimizer.zero_grad()
        F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    if compression is not None:
        compression.finalize()
    model.eval()


@torch.no_grad()
def bits_per_character(model: nn.Module, codes: Tensor, length: int = 256, limit: int = 50_000) -> float:
    """Mean bits of the next character over the first ``limit`` of ``codes``, in windows that each start anew."""
    count = (min(len(codes), limit) - 1) // length
    windows = codes[: count * length + 1].unfold(0, length + 1, length)
    logits = model(windows[:, :-1])
    return float(F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())) / math.log(2)
