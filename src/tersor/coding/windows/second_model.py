"""A small transformer trained on tokens of compressed text, to see what there is to learn in them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tersor.coding.windows.tokenizers import Tokens
from tersor.errors import InvalidArgument


@dataclass(frozen=True)
class SecondModelConfig:
    """Shape and training of a second model; the defaults take a few minutes of one core.

    Attributes:
        layers: Blocks.
        width: Of the hidden states.
        heads: Of the attention.
        context: Tokens that it sees.
        phases: Tokens of a window, each position of which has an embedding of its own: helps small models. 1 for none.
        steps: Optimizer steps.
        batch: Sequences a step.
        learning_rate: Of AdamW at its peak, reached after a tenth of the steps, falling to zero.
        seed: Of weights and batches.
    """

    layers: int = 2
    width: int = 128
    heads: int = 4
    context: int = 64
    phases: int = 1
    steps: int = 700
    batch: int = 32
    learning_rate: float = 2e-3
    seed: int = 0


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.before_attention(x)).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, length, width)
        x = x + self.out(mixed)
        return x + self.down(functional.gelu(self.up(self.before_mlp(x))))


class SecondModel(nn.Module):
    """Decoder-only transformer over tokens below ``vocabulary``; :func:`train_second_model` makes one.

    Args:
        vocabulary: Different tokens.
        config: Shape, and the seed of the weights.
    """

    def __init__(self, vocabulary: int, config: SecondModelConfig) -> None:
        super().__init__()
        if config.width % config.heads or min(config.layers, config.context, config.phases, config.steps, config.batch) < 1:
            raise InvalidArgument("a second model needs positive sizes and a width that its heads divide")
        self.config = config
        # Without a generator of their own the layers would draw from, and move, the global one.
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            self.tokens = nn.Embedding(vocabulary + 1, config.width)
            self.positions = nn.Embedding(config.context, config.width)
            self.phase = nn.Embedding(config.phases, config.width)
            self.blocks = nn.ModuleList(_Block(config.width, config.heads) for _ in range(config.layers))
            self.last = nn.LayerNorm(config.width)
            self.head = nn.Linear(config.width, vocabulary, bias=False)
        self.to_empty(device="cpu")
        random = torch.Generator().manual_seed(config.seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                with torch.no_grad():
                    parameter.copy_(0.02 * torch.randn(parameter.shape, generator=random))
            else:
                nn.init.constant_(parameter, float(name.endswith("weight")))

    def forward(self, tokens: Tensor, starts: Tensor) -> Tensor:
        """Logits of each token from those before it in its row.

        Args:
            tokens: int64 ``[batch, length]``.
            starts: int64 ``[batch]``: where in the text each row begins, for its phases.

        Returns:
            ``[batch, length, vocabulary]``.
        """
        first = torch.full_like(tokens[:, :1], self.tokens.num_embeddings - 1)
        places = torch.arange(tokens.shape[1])
        phases = (starts[:, None] + places) % self.config.phases
        x = self.tokens(torch.cat([first, tokens[:, :-1]], 1)) + self.positions(places) + self.phase(phases)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.last(x))
        return logits


def train_second_model(
    tokens: Tokens, vocabulary: int, config: SecondModelConfig, progress: Callable[[int, float], object] | None = None
) -> SecondModel:
    """Train a second model on one long row of tokens.

    Args:
        tokens: ``[n]``, more than the context.
        vocabulary: Different tokens.
        config: Shape, steps and seed.
        progress: Called with the step and its loss in nats a token.

    Returns:
        The model in eval mode.

    Raises:
        InvalidArgument: If there are too few tokens.
    """
    config_length = config.context
    if len(tokens) <= config_length:
        raise InvalidArgument(f"{len(tokens)} tokens do not fill a context of {config_length}; give more text")
    model = SecondModel(vocabulary, config).train()
    row = torch.from_numpy(np.asarray(tokens, dtype=np.int64))
    random = torch.Generator().manual_seed(config.seed + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(config.steps):
        warm = min((step + 1) / max(config.steps / 10, 1), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        starts = torch.randint(len(row) - config_length, (config.batch,), generator=random)
        batch = row[starts[:, None] + torch.arange(config_length)]
        loss = functional.cross_entropy(model(batch, starts).flatten(0, 1), batch.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if progress is not None:
            progress(step, float(loss.detach()))
    return model.eval()


@torch.no_grad()
def bits_per_token(model: SecondModel, tokens: Tokens, most: int = 65_536) -> list[float]:
    """Cross-entropy on other tokens, one value a phase of the window.

    Args:
        model: What was trained.
        tokens: ``[n]``; windows of the model's context that do not overlap are scored, the first of each with nothing before it.
        most: Tokens to score at most.
    """
    length, phases = model.config.context, model.config.phases
    row = torch.from_numpy(np.asarray(tokens[:most], dtype=np.int64))
    batch = row[: len(row) // length * length].view(-1, length)
    starts = torch.arange(len(batch)) * length
    parts = [
        functional.cross_entropy(model(some, begin).transpose(1, 2), some, reduction="none")
        for some, begin in zip(batch.split(64), starts.split(64), strict=True)
    ]
    losses = torch.cat(parts).double().flatten() / math.log(2)
    return [float(losses[phase::phases].mean()) for phase in range(phases)]


def unigram_bits(train: Tokens, test: Tokens, vocabulary: int) -> float:
    """Cross-entropy on ``test`` of how often each token occurs in ``train``: what can be learned without context."""
    counts = np.bincount(train, minlength=vocabulary) + 0.5
    return float(-np.log2(counts / counts.sum())[test].mean())


def bits_per_byte(bits: float, n_tokens: int, n_bytes: int) -> float:
    """Bits a token to bits a byte of the text that the tokens stand for."""
    return bits * n_tokens / n_bytes
