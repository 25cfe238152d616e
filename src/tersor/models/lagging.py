"""How far the outputs of layers in a compressed model fall behind those of the original, from running both block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tersor.layerwise.drift import Lag
from tersor.models.activations import Observer, Propagation
from tersor.models.structure import hidden_of, linear_layers
from tersor.weights.modules import dense_shape

_NUDGE = 0.1  # of the stream's size: small beside it, large beside rounding in 16 bits

Ran = dict[str, tuple[Tensor, Tensor]]


@dataclass
class _Moments:
    """Sums over the tokens that a layer was given."""

    gram: Tensor
    weight: float = 0.0
    square: float = 0.0
    cache: dict[str, Any] = field(default_factory=dict)

    @property
    def n_tokens(self) -> float:
        return self.weight**2 / self.square if self.square else 0.0


class LagObserver:
    """Runs a block beside the same block of the original and relates what their layers put out.

    A layer that writes to the residual stream answers for the whole stream behind it, so that it can make up for all that was lost
    before. Every other layer answers for its own output. A token whose mean square in the original's stream is beyond the median counts
    less in proportion, since what follows normalises it: the few huge ones that attention rests on would else outweigh all others.

    Args:
        block: A block of the compressed model.
        original: The same block of the original.
    """

    def __init__(self, block: nn.Module, original: nn.Module) -> None:
        self._block, self._original = block, original
        self._leader: dict[str, str] = {}
        self._moments: dict[str, _Moments] = {}
        self._cross: dict[str, Tensor] = {}

    def run(self, index: int, mine: Propagation, theirs: Propagation, observer: Observer) -> dict[str, Lag]:
        """Run block ``index`` of both on every batch.

        Args:
            index: The block; the one before it must have been the last one stored in both.
            mine: The compressed model's hidden states.
            theirs: The original's.
            observer: Gathers the statistics of the inputs meanwhile.

        Returns:
            The lag of each linear layer, named within the block. An expert has none.
        """
        layers = linear_layers(self._block)
        usual = _usual(theirs) if index else None
        streams: dict[str, str] | None = None
        for rows in mine.batches():
            if streams is None:
                streams = self._streams(index, mine, rows)
            noted = layers.keys() | set(streams.values())
            with observer.attached():
                observer.begin(mine.mask_of(rows))
                ran = _run(self._block, mine, index, rows, noted)
            original = _run(self._original, theirs, index, rows, noted)
            counts = _counts(ran[""][1] if usual is None else hidden_of(theirs.inputs(rows)), usual, mine.mask_of(rows))
            given: dict[int, str] = {}
            for name in (name for name in ran if name in layers and name in original):
                kept, reached = (_behind(each, name, streams) for each in (ran, original))
                # An expert is given other rows than the stream has, and others than in the original.
                if kept.shape == reached.shape and kept[..., 0].numel() == len(counts):
                    leader = self._leader.setdefault(name, given.setdefault(id(ran[name][0]), name))
                    self._add(name, leader, ran[name][0], reached - kept, counts)
        return {name: self._lag(name, cross) for name, cross in self._cross.items()}

    def _lag(self, name: str, cross: Tensor) -> Lag:
        moments = self._moments[self._leader[name]]
        shared = sum(self._leader[other] == self._leader[name] for other in self._cross) > 1
        return Lag(moments.gram, cross, moments.n_tokens, moments.cache if shared else None)

    def _add(self, name: str, leader: str, inputs: Tensor, lag: Tensor, counts: Tensor) -> None:
        rows, lost = inputs.reshape(-1, inputs.shape[-1]).float(), lag.reshape(-1, lag.shape[-1]).float()
        weighted = counts.unsqueeze(1) * rows
        if name == leader:
            moments = self._moments.setdefault(name, _Moments(torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)))
            moments.gram += weighted.T @ rows
            moments.weight += float(counts.sum())
            moments.square += float(counts.square().sum())
        product = (weighted.T @ lost).double()
        self._cross[name] = product + self._cross[name] if name in self._cross else product

    def _streams(self, index: int, mine: Propagation, rows: slice) -> dict[str, str]:
        """For each layer that writes to the residual stream, the module whose input is the stream behind it, ``""`` for the block's output.

        Found by experiment, whatever the architecture: what is added to the output of such a layer is added to the stream. A norm or
        a factor between the layer and the sum leaves none.
        """
        plain = _run(self._block, mine, index, rows)
        order = list(plain)
        layers = [name for name in order if name in linear_layers(self._block)]
        output = plain[""][1]
        # Another one for every token: attention passes on what all tokens have in common.
        nudge = _NUDGE * output.float().abs().median() * torch.tensor([1.0, -1.0]).repeat(output[..., 0].numel() // 2 + 1)
        found = {}
        for name in layers:
            if dense_shape(self._block.get_submodule(name))[0] != output.shape[-1]:
                continue
            hook = self._block.get_submodule(name).register_forward_hook(lambda _, __, result: result + _shaped(nudge, result))
            try:
                moved = _run(self._block, mine, index, rows)
            finally:
                hook.remove()
            # What takes the layer's own output, such as a dropout or a norm before the sum, does not see the stream.
            later = (other for other in order[order.index(name) + 1 :] if other and plain[other][0] is not plain[name][1])
            seen = [other for other in later if _alike(plain[other][0], output) and _moved(plain[other][0], moved[other][0], nudge)]
            if seen:
                found[name] = seen[-1]
            elif name == layers[-1] and _moved(output, moved[""][1], nudge):
                found[name] = ""
        return found


def _squares(stream: Tensor) -> Tensor:
    return stream.reshape(-1, stream.shape[-1]).float().square().mean(-1)


def _usual(states: Propagation) -> float:
    """The median over all tokens that count of their mean square in the stream."""
    found = []
    for rows in states.batches():
        squares, mask = _squares(hidden_of(states.inputs(rows))), states.mask_of(rows)
        found.append(squares if mask is None else squares[mask.reshape(-1)])
    return max(float(torch.cat(found).median()), torch.finfo(torch.float32).tiny)


def _counts(stream: Tensor, usual: float | None, mask: Tensor | None) -> Tensor:
    """How much each token counts, ``[n_tokens]``: one up to the ``usual`` mean square, less in proportion above, nothing in padding."""
    squares = _squares(stream)
    counts = torch.ones_like(squares) if usual is None else (usual / squares.clamp_min(torch.finfo(torch.float32).tiny)).clamp_max(1.0)
    return counts if mask is None else counts * mask.reshape(-1)


def _behind(ran: Ran, name: str, streams: dict[str, str]) -> Tensor:
    """The stream behind a layer that writes to it, else the layer's output."""
    if name not in streams:
        return ran[name][1]
    return ran[streams[name]][0] if streams[name] else ran[""][1]


def _alike(first: Tensor, second: Tensor) -> bool:
    """Whether both hold as many tokens of one width; some models flatten sequences."""
    return first.numel() == second.numel() and first.shape[-1] == second.shape[-1]


def _shaped(nudge: Tensor, like: Tensor) -> Tensor:
    return nudge[: like[..., 0].numel()].view(*like.shape[:-1], 1).to(like.dtype)


def _moved(before: Tensor, after: Tensor, nudge: Tensor) -> bool:
    if before.shape != after.shape:
        return False
    beyond = after.float() - before.float() - _shaped(nudge, after).float()
    return bool(beyond.abs().median() < 0.1 * nudge.abs().max())


def _run(block: nn.Module, states: Propagation, index: int, rows: slice, names: Iterable[str] | None = None) -> Ran:
    """Input and output of parts of ``block`` for one batch, all parts without ``names``, in the order in which they end; ``""`` is last."""
    found: Ran = {}

    def hook_of(name: str) -> Callable[..., None]:
        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            inputs = next((each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)), None)
            result = output[0] if isinstance(output, (tuple, list)) and output else output
            if inputs is not None and isinstance(result, Tensor):
                found[name] = (inputs, result)

        return note

    parts = {name: part for name, part in block.named_modules() if name and (names is None or name in names)}
    hooks = [part.register_forward_hook(hook_of(name), with_kwargs=True) for name, part in parts.items()]
    try:
        output = hidden_of(states.run_batch(index, rows))
    finally:
        for hook in hooks:
            hook.remove()
    found[""] = (output, output)
    return found
