"""How far the outputs of layers in a compressed model fall behind those of the original, from running both block by block."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tersor.layerwise.drift import Lag
from tersor.models.activations import Observer, Propagation
from tersor.models.structure import hidden_of, linear_layers
from tersor.weights.modules import dense_shape

_NUDGE = 0.1  # of the stream's size: small beside it, large beside rounding in 16 bits

Ran = dict[str, tuple[Tensor, Tensor]]
Streams = dict[str, str]
Note = Callable[[str, Tensor, Tensor], None]


@dataclass
class _Moments:
    """Sums over the tokens that layers with the same input were given."""

    gram: Tensor
    weight: float = 0.0
    square: float = 0.0

    @property
    def n_tokens(self) -> float:
        return self.weight**2 / self.square if self.square else 0.0

    def add(self, weighted: Tensor, rows: Tensor, counts: Tensor) -> None:
        self.gram += weighted.T @ rows
        self.weight += float(counts.sum())
        self.square += float(counts.square().sum())


class LagObserver:
    """Runs a block beside the same block of the original and relates what their layers put out.

    A layer that writes to the residual stream answers for the whole stream behind it, so that it can make up for all that was lost
    before. Every other layer answers for its own output. A token whose mean square in the original's stream is beyond the median counts
    less in proportion, since what follows normalises it: the few huge ones that attention rests on would else outweigh all others.

    Beside the statistics, memory holds the outputs of the original's layers for one batch, each until it was compared.

    Args:
        block: A block of the compressed model.
        original: The same block of the original.
        prefix: What the names of the block's layers begin with in the model.
    """

    def __init__(self, block: nn.Module, original: nn.Module, prefix: str = "") -> None:
        self._block, self._original, self._prefix = block, original, prefix
        self._layers = linear_layers(block)
        self._leader: dict[str, str] = {}
        self._moments: dict[str, _Moments] = {}
        self._cross: dict[str, Tensor] = {}

    def run(self, index: int, mine: Propagation, theirs: Propagation, observer: Observer, streams: Streams) -> dict[str, Lag]:
        """Run block ``index`` of both on every batch.

        Args:
            index: The block; the one before it must have been the last one stored in both.
            mine: The compressed model's hidden states.
            theirs: The original's.
            observer: Gathers the statistics of the inputs meanwhile, under names in the model.
            streams: From :func:`find_streams` on a block of the same make.

        Returns:
            The lag of each linear layer by its name in the model. An expert has none.
        """
        usual = _usual(theirs) if index else None
        for rows in mine.batches():
            reached = self._reached(index, theirs, rows, streams)
            before = reached[""] if usual is None else hidden_of(theirs.inputs(rows))
            counts = _counts(before, usual, mine.mask_of(rows))
            del before
            with observer.attached():
                observer.begin(mine.mask_of(rows))
                self._compare(index, mine, rows, reached, counts, observer, streams)
        return self._solved()

    def _reached(self, index: int, theirs: Propagation, rows: slice, streams: Streams) -> dict[str, Tensor]:
        """What the original has where layers answer for it: outputs of layers, inputs of the modules that see the stream."""
        found: dict[str, Tensor] = {}

        def note(name: str, inputs: Tensor, output: Tensor) -> None:
            # Copies: what comes later in the block may write into either.
            if name in streams.values():
                found.setdefault(f"> {name}", inputs.clone())
            if name in self._layers and name not in streams:
                found.setdefault(name, output.clone())

        found[""] = _visit(self._original, theirs, index, rows, note, self._layers.keys() | set(streams.values()))
        return found

    def _compare(
        self, index: int, mine: Propagation, rows: slice, reached: dict[str, Tensor], counts: Tensor, observer: Observer, streams: Streams
    ) -> None:  # fmt: skip
        writers: dict[str, Tensor] = {}
        added: set[str] = set()

        def add(name: str, inputs: Tensor, kept: Tensor, wanted: Tensor) -> None:
            # An expert is given other rows than the stream has, and others than in the original.
            if kept.shape == wanted.shape and kept[..., 0].numel() == len(counts):
                leader = observer.leader(self._prefix + name)
                self._add(name, leader, inputs, wanted - kept, counts, leader not in added)
                added.add(leader)

        def note(name: str, inputs: Tensor, output: Tensor) -> None:
            for writer in [each for each in writers if streams[each] == name]:
                add(writer, writers.pop(writer), inputs, reached[f"> {name}"])
            if name in streams:
                writers[name] = inputs
            elif name in reached:
                add(name, inputs, output, reached.pop(name))

        output = _visit(self._block, mine, index, rows, note, self._layers.keys() | set(streams.values()))
        for writer in [each for each in writers if not streams[each]]:
            add(writer, writers.pop(writer), output, reached[""])

    def _add(self, name: str, leader: str, inputs: Tensor, lag: Tensor, counts: Tensor, is_first: bool) -> None:
        rows, lost = inputs.reshape(-1, inputs.shape[-1]).float(), lag.reshape(-1, lag.shape[-1]).float()
        weighted = counts.unsqueeze(1) * rows
        if name not in self._cross:
            self._leader[name] = leader
            # In float32, as its products are: what it is solved for is a fraction of a change, not a factorisation.
            self._cross[name] = torch.zeros(rows.shape[1], lost.shape[1])
        self._cross[name].addmm_(weighted.T, lost)
        if is_first:
            if leader not in self._moments:
                self._moments[leader] = _Moments(torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64))
            self._moments[leader].add(weighted, rows, counts)

    def _solved(self) -> dict[str, Lag]:
        solved: dict[str, Lag] = {}
        for leader in list(self._moments):
            moments = self._moments.pop(leader)
            names = [name for name in self._cross if self._leader[name] == leader]
            crosses = [self._cross.pop(name) for name in names]
            solved |= zip((self._prefix + name for name in names), Lag.solved(moments.gram, crosses, moments.n_tokens), strict=True)
        return solved


def find_streams(block: nn.Module, index: int, states: Propagation) -> Streams:
    """For each layer that writes to the residual stream, the module whose input is the stream behind it, ``""`` for the block's output.

    Found by experiment on one sequence, whatever the architecture: what is added to the output of such a layer is added to the stream.
    A norm or a factor between the layer and the sum leaves none.

    Args:
        block: Block ``index`` of the model.
        index: The block; the one before it must have been the last one stored.
        states: Hidden states.
    """
    rows = slice(0, 1)
    plain = _run(block, states, index, rows)
    order = list(plain)
    layers = [name for name in order if name in linear_layers(block)]
    output = plain[""][1]
    # Another one for every token: attention passes on what all tokens have in common.
    nudge = _NUDGE * output.float().abs().median() * torch.tensor([1.0, -1.0]).repeat(output[..., 0].numel() // 2 + 1)
    found = {}
    for name in layers:
        if dense_shape(block.get_submodule(name))[0] != output.shape[-1]:
            continue
        hook = block.get_submodule(name).register_forward_hook(lambda _, __, result: result + _shaped(nudge, result))
        try:
            moved = _run(block, states, index, rows)
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


def _run(block: nn.Module, states: Propagation, index: int, rows: slice) -> Ran:
    """Input and output of every part of ``block`` for one batch, in the order in which they end; ``""`` for the block is last."""
    found: Ran = {}

    def note(name: str, inputs: Tensor, output: Tensor) -> None:
        found[name] = (inputs, output)

    output = _visit(block, states, index, rows, note, {name for name, _ in block.named_modules()})
    return {**found, "": (output, output)}


def _visit(block: nn.Module, states: Propagation, index: int, rows: slice, note: Note, names: AbstractSet[str]) -> Tensor:
    """Run ``block`` on one batch; as each part of ``names`` ends, tell ``note`` its name, input and output. Returns the hidden states."""

    def hook_of(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            inputs = next((each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)), None)
            result = output[0] if isinstance(output, (tuple, list)) and output else output
            if inputs is not None and isinstance(result, Tensor):
                note(name, inputs, result)

        return hook

    parts = {name: part for name, part in block.named_modules() if name and name in names}
    hooks = [part.register_forward_hook(hook_of(name), with_kwargs=True) for name, part in parts.items()]
    try:
        return hidden_of(states.run_batch(index, rows))
    finally:
        for hook in hooks:
            hook.remove()
