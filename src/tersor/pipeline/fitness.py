"""What a search measures: how far a candidate model's predictions are from the original's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tersor.allocation.problem import Choices
from tersor.errors import InvalidArgument
from tersor.models import Model
from tersor.models.blocks import PrefixRunner, find_blocks
from tersor.models.model import output_head
from tersor.pipeline.levels import LevelDatabase
from tersor.weights.modules import bias_of, set_matrix, set_offset

AT_ONCE = 1024  # tokens that are run together, whose logits are held
CHUNK = 64  # positions whose vocabulary-wide probabilities are worked on at once: they stay in the cache


@dataclass
class Teacher:
    """The original model's predictions on every search sequence: half-precision probabilities on disk, entropies in memory.

    Attributes:
        path: Where the probabilities are.
        probabilities: ``[n_sequences, length, vocabulary]`` float16, memory-mapped.
        negative_entropy: ``sum_v p log p``, ``[n_sequences, length]`` float32.
    """

    path: Path
    probabilities: np.ndarray
    negative_entropy: Tensor

    @classmethod
    def record(cls, module: nn.Module, tokens: Tensor, path: Path) -> Teacher:
        """Run ``module`` on ``tokens`` ``[n_sequences, length]`` and keep what the divergence needs at ``path``."""
        vocabulary = module(tokens[:1, :1], use_cache=False).logits.shape[-1]
        probabilities = np.lib.format.open_memmap(path, "w+", np.float16, (*tokens.shape, vocabulary))
        negative_entropy = torch.empty(tokens.shape)
        with torch.inference_mode():
            for index, sequence in enumerate(tokens):
                logits = module(sequence[None], use_cache=False).logits[0]
                for start in range(0, len(sequence), CHUNK):
                    log_p = logits[start : start + CHUNK].float().log_softmax(-1)
                    p = log_p.exp()
                    negative_entropy[index, start : start + CHUNK] = (p * log_p).sum(-1)
                    probabilities[index, start : start + CHUNK] = p.half().numpy()
        return cls(path, probabilities, negative_entropy)

    @classmethod
    def open(cls, path: Path, negative_entropy: Tensor) -> Teacher:
        """What :meth:`record` left at ``path``."""
        return cls(path, np.load(path, mmap_mode="r+"), negative_entropy)

    def divergence(self, sequence: int, logits: Tensor) -> float:
        """Sum over positions of ``KL(teacher || student)`` in nats for the first ``len(logits)`` positions of a sequence."""
        total = 0.0
        for start in range(0, logits.shape[0], CHUNK):
            z = logits[start : start + CHUNK].float()
            p = torch.from_numpy(self.probabilities[sequence, start : start + z.shape[0]]).float()
            # Rounded to half precision, the probabilities no longer add up to exactly one.
            cross = torch.bmm(p.unsqueeze(1), z.unsqueeze(2)).flatten() / p.sum(-1) - torch.logsumexp(z, -1)
            total += float((self.negative_entropy[sequence, start : start + z.shape[0]] - cross).double().sum())
        return total


@dataclass
class DenseCache:
    """Levels as dense layers compute them, in the type of the search, least recently used ones dropped above a limit.

    Attributes:
        limit: Bytes to hold at most; what does not fit is decompressed again when it is needed.
    """

    database: LevelDatabase
    dtype: torch.dtype
    limit: int = 4 << 30
    _held: OrderedDict[tuple[str, int], tuple[Tensor, Tensor | None]] = field(default_factory=OrderedDict)
    _bytes: int = 0

    def get(self, layer: str, level: int) -> tuple[Tensor, Tensor | None]:
        """The matrix of one level, and the offset that it adds to its product, if any."""
        key = (layer, level)
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        weight = self.database.weight(layer, level)
        self._held[key] = (weight.dense().to(self.dtype), weight.offset)
        self._bytes += self._held[key][0].nbytes
        while self._bytes > self.limit and len(self._held) > 1:
            self._bytes -= self._held.popitem(last=False)[1][0].nbytes
        return self._held[key]


class KLFitness:
    """Mean ``KL(original || candidate)`` in nats a token, on a minibatch of the search tokens.

    A candidate shares every block before its first change with its parent, so the parent's hidden states are
    computed once a minibatch and candidates start from there.

    Args:
        model: The original model; its tensors are shared, not changed.
        database: Levels of every unit.
        layers: Layer name of each unit, in the order of the problem.
        tokens: ``[n_sequences, length]`` search tokens.
        teacher: The original's predictions, or the file where they are to be kept during the search.
        dtype: Type to compute in; bfloat16 is several times faster where the CPU has instructions for it.
        reuse: Whether to start from the parent's hidden states; the values are the same either way.
    """

    def __init__(
        self, model: Model, database: LevelDatabase, layers: Sequence[str], tokens: Tensor, teacher: Teacher | Path,
        dtype: torch.dtype = torch.float32, reuse: bool = True,
    ) -> None:
        if tokens.ndim != 2 or tokens.numel() == 0:
            raise InvalidArgument(f"search tokens must be [n_sequences, length], got shape {tuple(tokens.shape)}")
        self.tokens = tokens
        self.database = database
        self.layers = tuple(layers)
        student = model.copy(dtype)
        self.dtype = dtype
        self.teacher = teacher if isinstance(teacher, Teacher) else Teacher.record(student.module, tokens, teacher)
        self._cache = DenseCache(database, dtype)
        self._student = student
        self._modules = {name: student.module.get_submodule(name) for name in self.layers}
        # A table that is tied to the head is looked up and multiplied by; only the head has a product to add to.
        head = output_head(student.module) if student.tied else None
        multiplying = {name: head if name in student.embeddings() else layer for name, layer in self._modules.items()}
        self._products = {name: (layer, bias_of(layer)) for name, layer in multiplying.items() if layer is not None}
        blocks = find_blocks(student.module)
        self._block_of = tuple(blocks.index_of(name) for name in self.layers)
        self._runner = PrefixRunner(student.module)
        self._current: list[int | None] = [None] * len(self.layers)
        self._reuse = reuse
        self.evaluations = 0
        self.tokens_judged = 0

    @property
    def available_tokens(self) -> int:
        """Tokens that a minibatch can have at most."""
        return self.tokens.numel()

    @property
    def blocks_run(self) -> int:
        """Blocks executed so far."""
        return self._runner.blocks_run

    @property
    def blocks_skipped(self) -> int:
        """Blocks that prefix reuse saved so far."""
        return self._runner.blocks_skipped

    def _apply(self, choices: Choices) -> None:
        for unit, choice in enumerate(choices):
            if self._current[unit] != choice:
                name = self.layers[unit]
                matrix, offset = self._cache.get(name, choice)
                set_matrix(self._modules[name], matrix)
                if name in self._products:
                    layer, bias = self._products[name]
                    set_offset(layer, offset, bias)
                self._current[unit] = choice

    def _first_change(self, parent: Choices, candidate: Choices) -> int:
        changed = [block for block, a, b in zip(self._block_of, parent, candidate, strict=True) if a != b]
        return min(changed, default=self._runner.n_blocks)

    def minibatch(self, tokens: int, seed: int) -> list[tuple[list[int], int]]:
        """Sequence indices and lengths that hold exactly ``tokens`` tokens, drawn by ``seed``.

        Raises:
            InvalidArgument: If that is more than there are.
        """
        count, length = self.tokens.shape
        if tokens > count * length:
            raise InvalidArgument(f"a search stage asks for {tokens} tokens but only {count * length} are set aside for the search")
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
        full, rest = divmod(tokens, length)
        parts = [(order[:full], length)] if full else []
        return parts + ([(order[full : full + 1], rest)] if rest else [])

    @torch.inference_mode()
    def __call__(self, candidates: Sequence[Choices], *, parent: Choices, tokens: int, seed: int) -> list[float]:
        """Divergence of every candidate on the same minibatch; see :class:`tersor.allocation.Fitness`."""
        totals = [0.0] * len(candidates)
        parts = [
            (rows[first : first + max(1, AT_ONCE // length)], length)
            for rows, length in self.minibatch(tokens, seed) for first in range(0, len(rows), max(1, AT_ONCE // length))
        ]  # fmt: skip
        for rows, length in parts:
            batch = self.tokens[rows, :length]
            if self._reuse:
                self._apply(parent)
                self._runner.prepare(batch)
            for index, candidate in enumerate(candidates):
                self._apply(candidate)
                start = self._first_change(parent, candidate) if self._reuse else 0
                logits = self._runner.logits(batch, start)
                totals[index] += sum(self.teacher.divergence(row, logits[i]) for i, row in enumerate(rows))
        self.evaluations += len(candidates)
        self.tokens_judged += len(candidates) * tokens
        return [total / tokens for total in totals]
