"""How far the outputs of layers in a compressed model fall behind those of the original, from running both block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tersor.models.activations import Observer, Propagation
from tersor.models.structure import hidden_of, linear_layers
from tersor.weights.modules import dense_shape

_NUDGE = 0.1  # of the stream's size: small beside it, large beside rounding in 16 bits

Ran = dict[str, tuple[Tensor, Tensor]]


class LagObserver:
    """Runs a block beside the same block of the original and relates what their layers put out.

    A layer that writes to the residual stream answers for the whole stream behind it, so that it can make up for all that was lost
    before. Every other layer answers for its own output.

    Args:
        block: A block of the compressed model.
        original: The same block of the original.
    """

    def __init__(self, block: nn.Module, original: nn.Module) -> None:
        self._block, self._original = block, original
        self._sums: dict[str, Tensor] = {}
        self._tokens: dict[str, int] = {}

    def run(self, index: int, mine: Propagation, theirs: Propagation, observer: Observer) -> dict[str, Tensor]:
        """Run block ``index`` of both on every batch.

        Args:
            index: The block; the one before it must have been the last one stored in both.
            mine: The compressed model's hidden states.
            theirs: The original's.
            observer: Gathers the statistics of the inputs meanwhile.

        Returns:
            For each linear layer, named within the block, ``[in_features, out_features]`` float64: the mean of ``z e^T`` over tokens,
            with the input ``z`` and the lag ``e`` of the output. An expert that other tokens reach in the original is not among them.
        """
        layers = set(linear_layers(self._block))
        streams: dict[str, str] | None = None
        for rows in mine.batches():
            mask = mine.mask_of(rows)
            if streams is None:
                streams = self._streams(index, mine, rows)
            noted = layers | set(streams.values())
            with observer.attached():
                observer.begin(mask)
                ran = _run(self._block, mine, index, rows, noted)
            original = _run(self._original, theirs, index, rows, noted)
            for name in layers & ran.keys() & original.keys():
                kept, reached = (_behind(each, name, streams) for each in (ran, original))
                if kept.shape == reached.shape:
                    self._add(name, ran[name][0], reached - kept, mask)
        return {name: total / self._tokens[name] for name, total in self._sums.items()}

    def _add(self, name: str, inputs: Tensor, lag: Tensor, mask: Tensor | None) -> None:
        rows, lost = inputs.reshape(-1, inputs.shape[-1]).float(), lag.reshape(-1, lag.shape[-1]).float()
        if mask is not None and mask.numel() == len(rows):
            keep = mask.reshape(-1)
            rows, lost = rows[keep], lost[keep]
        product = (rows.T @ lost).double()
        self._sums[name] = product + self._sums[name] if name in self._sums else product
        self._tokens[name] = self._tokens.get(name, 0) + len(rows)

    def _streams(self, index: int, mine: Propagation, rows: slice) -> dict[str, str]:
        """For each layer that writes to the residual stream, the module whose input is the stream behind it, ``""`` for the block's output.

        Found by experiment, whatever the architecture: what is added to the output of such a layer is added to the stream. A norm
        behind the block, as in BERT, or a scaled residual leaves none.
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
