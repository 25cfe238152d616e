"""Calibration block by block: every layer is fitted to inputs that come from the compressed blocks before it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import InvalidArgument, TersorError
from tersor.layerwise.drift import Lag
from tersor.layerwise.stats import LayerStats
from tersor.models.activations import Observer, Propagation
from tersor.models.casting import converted, lean_copy
from tersor.models.lagging import LagObserver, find_streams
from tersor.models.model import Model, is_tied, name_of, output_head, token_table
from tersor.models.prefix import PrefixRunner
from tersor.models.structure import Blocks, Stop, find_blocks, hidden_of, linear_layers, logits_of, run_model, skipped

__all__ = ["BlockStep", "BlockWalk", "Blocks", "PrefixRunner", "check_propagation", "find_blocks"]


@dataclass(frozen=True)
class BlockStep:
    """One block of a walk, its inputs observed.

    Attributes:
        index: Position of the block.
        name: Its dotted name.
        layers: Its linear layers that ran, by dotted name; an expert that no token reached is not among them.
        stats: Input statistics of each; layers that are given the same tensor share one object.
        held_out: The same on the held-out sequences; empty without them.
        lags: How far each layer's output falls behind that in the original, see :func:`tersor.layerwise.corrected`; empty unless asked for.
    """

    index: int
    name: str
    layers: dict[str, nn.Module]
    stats: dict[str, LayerStats]
    held_out: dict[str, LayerStats] = field(default_factory=dict)
    lags: dict[str, Lag] = field(default_factory=dict)


class BlockWalk:
    """Walks the blocks of a model in order, handing out what calibration needs of each.

    Between two steps the caller may put other weights into the block; the walk then runs the block as it is and feeds its
    outputs to the next. A caller that restores the weights before asking for the next step calibrates on dense inputs.
    Memory holds one hidden state a token and the statistics of one block.

    Args:
        model: The model; its layers are looked up anew in every step.
        tokens: Calibration sequences, int64 ``[n_sequences, length]``.
        held_out: Sequences that are only observed, never fitted, or ``None``.
        batch_size: Sequences run at once.
        spill_dir: Folder for hidden states on disk; in memory without it.
        mask: ``[n_sequences, length]``, true where a token counts; padding is left out of the statistics.
        held_out_mask: The same for ``held_out``.
        dtype: Floating type for the forward passes, or ``None`` to run ``model`` itself. With a type the walk works on a copy that
            shares the values of ``model``; a block is converted when its turn comes and let go afterwards, with whatever
            :func:`~tersor.weights.modules.set_matrix` put into ``step.layers``, so that the caller need not restore anything.
        lags: Whether to run ``model`` as it is now beside it and measure how far every layer falls behind. Takes twice the time and
            memory for hidden states and statistics while a block runs, and afterwards what its weights take in float32.

    Attributes:
        outside: After the last step, input statistics of linear layers outside the blocks, an untied head and a tied
            head (under the name of its embedding table) among them.
        outside_held_out: The same on the held-out sequences.

    Raises:
        InvalidArgument: If the tokens are not a non-empty matrix of known ids, or the model is not a stack of blocks.

    Example:
        >>> for step in BlockWalk(model, tokens):                                   # doctest: +SKIP
        ...     for name in step.layers:
        ...         model.replace(name, layerwise.gptq(model.matrix(name), step.stats[name], bits=3))
    """

    def __init__(
        self, model: Model, tokens: Tensor, held_out: Tensor | None = None, *, batch_size: int = 8, spill_dir: str | Path | None = None,
        mask: Tensor | None = None, held_out_mask: Tensor | None = None, dtype: torch.dtype | None = None, lags: bool = False,
    ) -> None:  # fmt: skip
        if batch_size < 1:
            raise InvalidArgument(f"batch_size must be at least 1, got {batch_size}")
        if getattr(model.config, "is_encoder_decoder", False):
            raise InvalidArgument(f"{model.architecture} pairs an encoder with a decoder; only one stack of blocks can be walked")
        self._dtype = dtype
        self._model = model if dtype is None else lean_copy(model, dtype)
        self._blocks = find_blocks(self._model.module)
        folder = None if spill_dir is None else Path(spill_dir)
        self._passes = []
        for name, part, part_mask in (("tokens", tokens, mask), ("held_out", held_out, held_out_mask)):
            if part is not None:
                _check_tokens(name, part, part_mask, model)
                self._passes.append(Propagation(self._model.module, self._blocks, part, part_mask, batch_size, folder))
        self._original = _Original(model, dtype, tokens, mask, batch_size, folder) if lags else None
        self.outside: dict[str, LayerStats] = {}
        self.outside_held_out: dict[str, LayerStats] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def head_stats(self) -> LayerStats | None:
        """Input statistics of the output head, tied or not, after the last step; ``None`` before it or without a head."""
        return self.outside.get(self._head_key())

    @property
    def head_held_out(self) -> LayerStats | None:
        """:attr:`head_stats` on the held-out sequences."""
        return self.outside_held_out.get(self._head_key())

    def __iter__(self) -> Generator[BlockStep, None, None]:
        try:
            for index in range(len(self._blocks)):
                with nullcontext() if self._dtype is None else converted(self._blocks[index], self._dtype):
                    yield self._step(index)
                    with torch.no_grad():
                        for propagation in self._passes:
                            propagation.run(index, store=True)
                        if self._original is not None:
                            self._original.advance(index)
            found = [_observe_outside(self._model.module, self._blocks, propagation) for propagation in self._passes]
            self.outside, self.outside_held_out = (*found, {})[:2]
        finally:
            for propagation in self._passes:
                propagation.close()
            if self._original is not None:
                self._original.states.close()

    @torch.no_grad()
    def _step(self, index: int) -> BlockStep:
        name = f"{self._blocks.name}.{index}"
        layers = linear_layers(self._blocks[index], f"{name}.")
        found: list[dict[str, LayerStats]] = []
        lags: dict[str, Lag] = {}
        for propagation in self._passes:
            observer = Observer(layers)
            if self._original is not None and not found:
                lags = self._original.lags(index, f"{name}.", self._blocks[index], propagation, observer)
            else:
                with observer.attached():
                    propagation.run(index, store=False, observer=observer)
            found.append(observer.finish())
        stats, held_out = (*found, {})[:2]
        return BlockStep(index, name, {key: layers[key] for key in stats}, stats, held_out, lags)

    def _head_key(self) -> str:
        return _outside_name(self._model.module, output_head(self._model.module)) or ""


class _Original:
    """The model as it was, walked beside the one that is compressed."""

    def __init__(
        self, model: Model, dtype: torch.dtype | None, tokens: Tensor, mask: Tensor | None, batch_size: int, folder: Path | None
    ) -> None:
        self._dtype = dtype
        # The layers of its own, their tensors those of ``model``: what is put into the walked blocks does not reach them.
        module = (model.copy() if dtype is None else lean_copy(model, dtype)).module
        self._blocks = find_blocks(module)
        self.states = Propagation(module, self._blocks, tokens, mask, batch_size, folder)
        # By the parts of a block: those of one make write to the stream at the same places.
        self._streams: dict[tuple[tuple[str, type[nn.Module]], ...], dict[str, str]] = {}

    def lags(self, index: int, prefix: str, block: nn.Module, compressed: Propagation, observer: Observer) -> dict[str, Lag]:
        with self._converted(index):
            original = self._blocks[index]
            make = tuple((name, type(part)) for name, part in original.named_modules())
            if make not in self._streams:
                self._streams[make] = find_streams(original, index, self.states)
            return LagObserver(block, original, prefix).run(index, compressed, self.states, observer, self._streams[make])

    def advance(self, index: int) -> None:
        with self._converted(index):
            self.states.run(index, store=True)

    def _converted(self, index: int) -> AbstractContextManager[None]:
        return nullcontext() if self._dtype is None else converted(self._blocks[index], self._dtype)


def _outside_name(module: nn.Module, layer: nn.Module | None) -> str | None:
    if layer is None:
        return None
    return name_of(module, token_table(module) if layer is output_head(module) and is_tied(module) else layer)


@torch.no_grad()
def _observe_outside(module: nn.Module, blocks: Blocks, propagation: Propagation) -> dict[str, LayerStats]:
    head = output_head(module)
    inside = f"{blocks.name}."
    layers = {name: layer for name, layer in linear_layers(module).items() if not name.startswith(inside)}
    named = {_outside_name(module, layer) or name: layer for name, layer in layers.items()}
    observer = Observer(named)

    def stop(*_: Any) -> None:
        raise Stop(None)

    with observer.attached():
        # After the observer's own hook on the head: its product with the vocabulary is never formed.
        hook = head.register_forward_pre_hook(stop) if head is not None else None
        try:
            for rows in propagation.batches():
                _run_tail(module, blocks, propagation, rows, observer)
        finally:
            if hook is not None:
                hook.remove()
    return observer.finish()


def _run_tail(module: nn.Module, blocks: Blocks, propagation: Propagation, rows: slice, observer: Observer) -> None:
    mask = propagation.mask_of(rows)
    observer.begin(mask)
    try:
        with skipped(blocks, len(blocks), propagation.inputs(rows)):
            run_model(module, propagation.tokens[rows], mask)
    except Stop:
        pass


@torch.no_grad()
def check_propagation(model: Model, tokens: Tensor, *, batch_size: int = 4, mask: Tensor | None = None, tolerance: float = 1e-4) -> float:
    """Gate: moving an unmodified model through :class:`BlockWalk`'s machinery gives its own hidden states, on every sequence.

    The walk runs batches; the reference runs every sequence alone through the model's plain forward. A cache that leaks keys
    from one sequence into the next, a mask or a position table of the wrong block, or a wrong batch order shows here.

    Args:
        model: Any model that can be walked.
        tokens: ``[n_sequences, length]``; at least two sequences make the gate worth its name.
        batch_size: Of the propagation.
        mask: ``[n_sequences, length]``, true where a token counts.
        tolerance: Largest difference allowed, relative to the largest hidden state of the sequence.

    Returns:
        The largest relative difference found.

    Raises:
        TersorError: If it exceeds ``tolerance``; block and sequence are named.
    """
    _check_tokens("tokens", tokens, mask, model)
    blocks = find_blocks(model.module)
    propagation = Propagation(model.module, blocks, tokens, mask, batch_size, None)
    reference, logits = _plain_states(model.module, tokens, propagation.mask)
    worst = 0.0
    try:
        for index in range(len(blocks)):
            propagation.run(index, store=True)
            # The last entry of the reference is behind the final norm: the logits below stand for it.
            if index + 1 < len(blocks):
                got = torch.cat([hidden_of(propagation.inputs(rows)) for rows in propagation.batches()])
                expected = [states[index + 1] for states in reference]
                worst = max(worst, _deviation(f"the output of block {index}", got, expected, propagation.mask, tolerance))
        outputs = []
        for rows in propagation.batches():
            with skipped(blocks, len(blocks), propagation.inputs(rows)):
                outputs.append(logits_of(run_model(model.module, tokens[rows], propagation.mask_of(rows))))
        return max(worst, _deviation("the output", torch.cat(outputs), logits, propagation.mask, tolerance))
    finally:
        propagation.close()


def _plain_states(module: nn.Module, tokens: Tensor, mask: Tensor | None) -> tuple[list[Any], list[Tensor]]:
    states, logits = [], []
    for row in range(tokens.shape[0]):
        options = {} if mask is None else {"attention_mask": mask[row : row + 1].long()}
        output = module(input_ids=tokens[row : row + 1], output_hidden_states=True, **options)
        states.append([state[0] for state in output.hidden_states])
        logits.append(logits_of(output)[0])
    return states, logits


def _deviation(what: str, got: Tensor, expected: list[Tensor], mask: Tensor | None, tolerance: float) -> float:
    worst = 0.0
    for row, reference in enumerate(expected):
        keep = slice(None) if mask is None else mask[row]
        difference = float((got[row][keep] - reference[keep]).abs().max() / reference[keep].abs().max())
        if not difference <= tolerance:
            raise TersorError(
                f"propagating block by block does not reproduce the model: {what} on sequence {row} is {difference:.2g} off (relative)"
            )
        worst = max(worst, difference)
    return worst


def _check_tokens(name: str, tokens: Tensor, mask: Tensor | None, model: Model) -> None:
    if tokens.ndim != 2 or tokens.numel() == 0 or tokens.dtype != torch.long:
        raise InvalidArgument(f"{name} must be int64 token ids [n_sequences, length], got {tokens.dtype} of shape {tuple(tokens.shape)}")
    if tokens.shape[1] > model.max_context:
        raise InvalidArgument(
            f"{name} has sequences of {tokens.shape[1]} tokens, the model takes {model.max_context}; cut them with tersor.data.windows"
        )
    table = token_table(model.module)
    vocabulary = getattr(table, "num_embeddings", None)
    if vocabulary is not None and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
        raise InvalidArgument(f"{name} holds ids from {int(tokens.min())} to {int(tokens.max())}, the vocabulary has {vocabulary}")
    if mask is not None and (mask.shape != tokens.shape or not bool(mask.bool().any(1).all())):
        raise InvalidArgument(f"the mask of {name} must have its shape {tuple(tokens.shape)} and keep a token of every sequence")
