"""The stack of blocks inside a transformer, and running the model's own forward on a part of it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tersor.errors import InvalidArgument
from tersor.models.model import Model, is_linear, is_tied, name_of, output_head


@dataclass(frozen=True)
class Blocks:
    """The repeated blocks of a transformer, in the order in which they run.

    Attributes:
        name: Dotted name of the list, such as ``"model.layers"``.
        modules: The blocks.
        head: Dotted name of an untied output head, or ``None``.
    """

    name: str
    modules: nn.ModuleList
    head: str | None = None

    def __len__(self) -> int:
        return len(self.modules)

    def __getitem__(self, index: int) -> nn.Module:
        return self.modules[index]

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.modules)

    def index_of(self, layer: str) -> int:
        """The first block whose input stays the same when ``layer`` changes and everything from it on may not.

        Args:
            layer: A dotted name. The head gives ``len(self)``; any other layer outside the blocks, such as an embedding, gives 0.
        """
        if layer.startswith(f"{self.name}."):
            return int(layer[len(self.name) + 1 :].partition(".")[0])
        return len(self) if layer == self.head else 0


def find_blocks(module: nn.Module | Model) -> Blocks:
    """The blocks of any transformers decoder or encoder: of all module lists whose members all hold linear layers, the one that holds most.

    Args:
        module: The whole model. ``transformer.h``, ``model.layers``, ``model.decoder.layers`` and ``encoder.layer`` are found alike.

    Raises:
        InvalidArgument: If there is no such list, or the model runs its blocks more than once.
    """
    root = module.module if isinstance(module, Model) else module
    lists = {name: part for name, part in root.named_modules() if isinstance(part, nn.ModuleList) and len(part)}
    found = {name: part for name, part in lists.items() if all(map(linear_layers, part))}
    if not found:
        raise InvalidArgument(f"{type(root).__name__} has no list of blocks with linear layers; only transformer stacks can be walked")
    name, modules = max(found.items(), key=lambda item: len(linear_layers(item[1])))
    depth = getattr(getattr(root, "config", None), "num_hidden_layers", None)
    if isinstance(depth, int) and depth != len(modules):
        raise InvalidArgument(f"{type(root).__name__} runs {depth} layers out of {len(modules)} blocks; shared blocks cannot be walked")
    head = output_head(root)
    return Blocks(name, modules, name_of(root, head) if head is not None and not is_tied(root) else None)


def linear_layers(module: nn.Module, prefix: str = "") -> dict[str, nn.Module]:
    """Linear layers inside ``module`` by dotted name, dense or compressed."""
    return {f"{prefix}{name}": part for name, part in module.named_modules() if is_linear(part)}


class Stop(Exception):
    """Ends a forward pass early, carrying what was wanted from it."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


@contextmanager
def overridden_forward(module: nn.Module, forward: Any) -> Iterator[None]:
    """Let ``forward`` answer for ``module``, whose own attributes stay readable (models ask blocks for their attention type)."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def run_model(module: nn.Module, tokens: Tensor, mask: Tensor | None = None) -> Any:
    """One forward pass without a cache. ``tokens`` and ``mask`` are ``[n, length]``; mask entries are true where a token counts."""
    parameters = inspect.signature(module.forward).parameters
    options: dict[str, Any] = {"use_cache": False} if "use_cache" in parameters else {}
    if mask is not None:
        options["attention_mask"] = mask.long()
    return module(input_ids=tokens, **options)


def run_block(module: nn.Module, blocks: Blocks, index: int, inputs: Any, tokens: Tensor, mask: Tensor | None = None) -> Any:
    """What block ``index`` returns, called as the model calls it: with the masks and position embeddings that this block would get.

    Args:
        module: The whole model.
        blocks: Its blocks.
        index: The block to run. All before it are skipped; the pass ends after it.
        inputs: What the block before returned (its tensor or tuple); ignored for the first.
        tokens: ``[n, length]``, from which the model makes masks and positions.
        mask: ``[n, length]`` or ``None``.
    """
    block = blocks[index]
    original = block.forward

    def run_and_stop(*args: Any, **kwargs: Any) -> Any:
        raise Stop(original(*map(_without_cache, args), **{key: _without_cache(value) for key, value in kwargs.items()}))

    with ExitStack() as stack:
        stack.enter_context(skipped(blocks, index, inputs))
        stack.enter_context(overridden_forward(block, run_and_stop))
        try:
            run_model(module, tokens, mask)
        except Stop as stop:
            return stop.output
    raise InvalidArgument(f"{type(module).__name__} never calls its block {blocks.name}.{index}")


@contextmanager
def skipped(blocks: Blocks, count: int, output: Any) -> Iterator[None]:
    """Inside, the first ``count`` blocks return ``output`` at once, whatever they are given."""
    with ExitStack() as stack:
        for block in list(blocks)[:count]:
            stack.enter_context(overridden_forward(block, lambda *args, **kwargs: output))
        yield


def _without_cache(value: Any) -> Any:
    # By type, because the argument's name differs between architectures and releases. A cache that outlives
    # one call would leak keys of earlier sequences into later ones without any error.
    from transformers import Cache

    return None if isinstance(value, Cache) else value


def hidden_of(output: Any) -> Tensor:
    """The hidden states in what a block returns, a tensor or a tuple that begins with it."""
    hidden = output[0] if isinstance(output, (tuple, list)) else output
    assert isinstance(hidden, Tensor)
    return hidden


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """``output`` with its hidden states replaced."""
    return (hidden, *output[1:]) if isinstance(output, (tuple, list)) else hidden


def logits_of(output: Any) -> Tensor:
    """Logits of a model's output; the last hidden state of a model without a head."""
    logits = getattr(output, "logits", None)
    result = logits if logits is not None else output[0]
    assert isinstance(result, Tensor)
    return result
