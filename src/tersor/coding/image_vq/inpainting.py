"""Indices that were lost on the way, guessed from those around them by a small bidirectional transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tersor.coding.blocks import initialise
from tersor.errors import InvalidArgument

# Largest share of indices that training hides; more is lost than can be guessed.
_MOST_HIDDEN = 0.75


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.norms[1](x))))


class IndexInpainter(nn.Module):
    """Fills lost places of a grid of indices; those that arrived stay as they are.

    Args:
        codes: Indices are below it.
        embedding: Dimensions of the codewords.
        window: Places a side that are looked at together.
        width: Of the transformer.
        layers: Blocks.
        heads: Of the attention.
        seed: Of the weights.

    Reference:
        Mao et al.: "Extreme image compression using fine-tuned VQGANs", 2024; Chang et al.: "MaskGIT", 2022, for the order by confidence.
    """

    def __init__(
        self, codes: int, embedding: int, window: int = 8, width: int = 96, layers: int = 2, heads: int = 4, seed: int = 0
    ) -> None:
        super().__init__()
        self.codes, self.window = codes, window
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            self.codeword, self.lost = nn.Linear(embedding, width), nn.Parameter(torch.empty(width))
            self.position = nn.Parameter(torch.empty(window * window, width))
            # What is beside a place says most about it; attention would have to find that out first.
            self.beside = nn.Conv2d(width, width, 3, padding=1)
            self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(layers)))
            self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, codes)
        self.to_empty(device="cpu")
        initialise(self, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            self.lost.zero_()
            self.position.mul_(0.5 * width**0.5)

    def forward(self, indices: Tensor, lost: Tensor, codebook: Tensor) -> Tensor:
        """Logits ``[batch, window, window, codes]``.

        Args:
            indices: int64 ``[batch, window, window]``; what stands at lost places is not looked at.
            lost: bool of the same shape.
            codebook: ``[codes, embedding]``.
        """
        seen = self.codeword(codebook[indices.masked_fill(lost, 0)])
        known = torch.where(lost[..., None], self.lost, seen)
        around = self.beside(known.movedim(-1, 1)).movedim(1, -1)
        x = (known + around).flatten(1, 2) + self.position
        logits: Tensor = self.last(self.norm(self.blocks(x)))
        return logits.reshape(*indices.shape, self.codes)

    def loss(self, indices: Tensor, codebook: Tensor, random: torch.Generator) -> Tensor:
        """Mean cost in nats of indices ``[batch, window, window]`` hidden at random, or in whole rows as packets are lost."""
        batch, side, _ = indices.shape
        share = torch.rand(batch, 1, 1, generator=random) * _MOST_HIDDEN
        draws = torch.rand(batch, side, side, generator=random)
        rows = torch.rand(batch, side, 1, generator=random).expand_as(draws)
        lost = torch.where(torch.rand(batch, 1, 1, generator=random) < 0.25, rows, draws) < share
        lost[:, 0, 0] |= ~lost.flatten(1).any(1)
        return functional.cross_entropy(self(indices, lost, codebook)[lost], indices[lost])

    @torch.no_grad()
    def fill(self, indices: Tensor, lost: Tensor, codebook: Tensor, rounds: int = 1) -> Tensor:
        """The grid with a guess at every lost place.

        Args:
            indices: int64 ``[rows, columns]``.
            lost: bool of the same shape, known to the decoder.
            codebook: ``[codes, embedding]``.
            rounds: 1 guesses all at once; more keep the surest guesses of each round and look again.

        Raises:
            InvalidArgument: If the shapes differ or ``rounds`` is below 1.
        """
        if indices.shape != lost.shape or indices.ndim != 2 or lost.dtype != torch.bool or rounds < 1:
            raise InvalidArgument(f"lost is bool {tuple(indices.shape)} like the indices and rounds 1 or more, got {list(lost.shape)}")
        filled, missing = indices.clone(), lost.clone()
        for left in range(rounds, 0, -1):
            if not bool(missing.any()):
                break
            best, guess = self._guesses(filled, missing, codebook)
            sure = torch.where(missing, best, -1.0).flatten()
            keep = torch.zeros_like(sure, dtype=torch.bool)
            keep[sure.topk(-(-int(missing.sum()) // left)).indices] = True
            chosen = keep.view_as(missing) & missing
            filled = torch.where(chosen, guess, filled)
            missing = missing & ~chosen
        return filled

    def _guesses(self, indices: Tensor, lost: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
        """The largest probability of every place and its index; only windows that hold a loss are looked at, the last ones overlapping."""
        rows, columns = indices.shape
        side = self.window
        # A grid smaller than a window is continued by places that are lost.
        down, across = max(side - rows, 0), max(side - columns, 0)
        grid = functional.pad(indices, (0, across, 0, down))
        gone = functional.pad(lost, (0, across, 0, down), value=True)
        best, guess = torch.zeros(grid.shape), torch.zeros_like(grid)
        for top in _starts(grid.shape[0], side):
            for left in _starts(grid.shape[1], side):
                place = (slice(top, top + side), slice(left, left + side))
                if bool(gone[place].any()):
                    probabilities = torch.softmax(self(grid[place][None], gone[place][None], codebook)[0], -1)
                    best[place], guess[place] = probabilities.max(-1)
        return best[:rows, :columns], guess[:rows, :columns]


def _starts(length: int, side: int) -> list[int]:
    return sorted({*range(0, length - side, side), length - side})
