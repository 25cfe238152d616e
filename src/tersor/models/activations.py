"""Hidden states of many sequences between two blocks, in memory or in a memory-mapped file, and what linear layers saw of them."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import InvalidArgument, TersorError
from tersor.layerwise.stats import LayerStats, StatsAccumulator
from tersor.models.structure import Blocks, hidden_of, run_block, with_hidden


class HiddenStates:
    """One tensor ``[n_sequences, length, width]`` that is overwritten batch by batch as a model is propagated.

    Args:
        spill_dir: Folder of a temporary memory-mapped file, or ``None`` to stay in memory.
    """

    def __init__(self, spill_dir: Path | None = None) -> None:
        self._spill_dir = spill_dir
        self._values: Tensor | None = None
        self._file: Path | None = None

    def write(self, rows: slice, values: Tensor, n_sequences: int) -> None:
        """Store the hidden states of some sequences; the first call fixes shape and type for all ``n_sequences``."""
        if self._values is None:
            self._values = self._allocate((n_sequences, *values.shape[1:]), values.dtype)
        self._values[rows] = values

    def read(self, rows: slice) -> Tensor:
        """The stored hidden states of some sequences, a copy."""
        assert self._values is not None
        return self._values[rows].clone()

    def close(self) -> None:
        """Free the memory or delete the file."""
        self._values = None
        if self._file is not None:
            self._file.unlink(missing_ok=True)
            self._file = None

    def _allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if self._spill_dir is None:
            return torch.empty(shape, dtype=dtype)
        nbytes = math.prod(shape) * dtype.itemsize
        try:
            self._spill_dir.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(suffix=".hidden", dir=self._spill_dir)
            self._file = Path(name)
            try:
                # Reserved, not sparse: writing to a hole of a full disk would kill the process.
                os.posix_fallocate(handle, 0, nbytes)
            finally:
                os.close(handle)
        except OSError as error:
            self.close()
            raise TersorError(f"cannot spill {nbytes / 1e6:.0f} MB of hidden states to {self._spill_dir}: {error.strerror}") from None
        return torch.from_file(str(self._file), shared=True, size=math.prod(shape), dtype=dtype).view(shape)


class Propagation:
    """The hidden states of one set of sequences, moved through a model one block at a time.

    Args:
        module: The whole model.
        blocks: Its blocks.
        tokens: ``[n_sequences, length]``.
        mask: ``[n_sequences, length]``, true where a token counts, or ``None``.
        batch_size: Sequences run at once.
        spill_dir: See :class:`HiddenStates`.
    """

    def __init__(
        self, module: nn.Module, blocks: Blocks, tokens: Tensor, mask: Tensor | None, batch_size: int, spill_dir: Path | None,
    ) -> None:  # fmt: skip
        self._module, self._blocks = module, blocks
        self.tokens, self.mask = tokens, None if mask is None else mask.bool()
        self._batch_size = batch_size
        self._states = HiddenStates(spill_dir)
        self._form: dict[int, Any] = {}

    def batches(self) -> Iterator[slice]:
        """Row ranges of the batches."""
        for start in range(0, self.tokens.shape[0], self._batch_size):
            yield slice(start, min(start + self._batch_size, self.tokens.shape[0]))

    def mask_of(self, rows: slice) -> Tensor | None:
        """The mask of a batch."""
        return None if self.mask is None else self.mask[rows]

    def inputs(self, rows: slice) -> Any:
        """What the last block that was advanced returned for a batch; ``None`` before the first."""
        return with_hidden(self._form[rows.start], self._states.read(rows)) if self._form else None

    def run(self, index: int, store: bool, observer: Observer | None = None) -> None:
        """Run block ``index`` on every batch.

        Args:
            index: The block; the one before it must have been the last one stored.
            store: Whether its outputs replace the hidden states.
            observer: Told the mask of every batch before it runs.
        """
        for rows in self.batches():
            if observer is not None:
                observer.begin(self.mask_of(rows))
            output = self.run_batch(index, rows)
            if store:
                self._form[rows.start] = with_hidden(output, torch.empty(0))
                self._states.write(rows, hidden_of(output), self.tokens.shape[0])

    def run_batch(self, index: int, rows: slice) -> Any:
        """What block ``index`` returns for one batch; nothing is stored."""
        inputs = self.inputs(rows) if index else None
        return run_block(self._module, self._blocks, index, inputs, self.tokens[rows], self.mask_of(rows))

    def close(self) -> None:
        """Free the hidden states."""
        self._states.close()


class Observer:
    """Gathers statistics of the inputs of linear layers, one accumulator for all layers that are given the same tensor.

    Args:
        layers: The layers to observe, by name.
    """

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        self._layers = layers
        self._leader: dict[str, str] = {}
        self._sums: dict[str, StatsAccumulator] = {}
        self._seen: dict[tuple[Any, ...], tuple[str, Tensor]] = {}
        self._mask: Tensor | None = None

    def begin(self, mask: Tensor | None) -> None:
        """A new forward pass: tensors of the one before are let go, so that an address cannot mean two inputs."""
        self._seen = {}
        self._mask = mask

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Observe inside."""
        def hook_of(name: str) -> Callable[..., None]:
            return lambda _, args, kwargs: self._observe(name, (*args, *kwargs.values())[0])

        hooks = [layer.register_forward_pre_hook(hook_of(name), with_kwargs=True) for name, layer in self._layers.items()]
        try:
            yield
        finally:
            self._seen = {}
            for hook in hooks:
                hook.remove()

    def leader(self, name: str) -> str:
        """The first of the layers that are given the same input as ``name``, which has run."""
        return self._leader[name]

    def finish(self) -> dict[str, LayerStats]:
        """The statistics of every layer that ran; layers that share an input share one object."""
        # One after the other: sums and means of all layers at once would be twice the memory of a block's statistics.
        finished = {leader: self._sums.pop(leader).finish() for leader in list(self._sums)}
        return {name: finished[self._leader[name]] for name in self._layers if name in self._leader}

    def _observe(self, name: str, inputs: Tensor) -> None:
        key = (inputs.data_ptr(), tuple(inputs.shape), inputs.stride(), inputs._version)
        leader, _ = self._seen.setdefault(key, (name, inputs))
        if self._leader.setdefault(name, leader) != leader:
            raise TersorError(
                f"layer {name} shares its input with {leader} for some sequences and not for others; calibrate with one sequence a batch"
            )
        if leader == name:
            self._sums.setdefault(name, StatsAccumulator(inputs.shape[-1])).update(inputs, self._mask_for(name, inputs))

    def _mask_for(self, name: str, inputs: Tensor) -> Tensor | None:
        mask = self._mask
        if mask is None or bool(mask.all()):
            return None
        if inputs.ndim == 2 and inputs.shape[0] == mask.shape[0] != mask.numel():
            return None  # A pooler: one row a sequence, and no sequence is padding alone.
        if math.prod(inputs.shape[:-1]) != mask.numel() or (inputs.ndim > 2 and inputs.shape[:-1] != mask.shape):
            raise InvalidArgument(
                f"layer {name} sees inputs of shape {tuple(inputs.shape)}, where padding cannot be told; use sequences of one length"
            )
        return mask
