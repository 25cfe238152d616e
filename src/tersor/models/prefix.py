"""Logits of a model whose last blocks changed, without running the blocks before them again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import InvalidArgument
from tersor.models.model import Model
from tersor.models.structure import Stop, find_blocks, logits_of, run_model, skipped


class PrefixRunner:
    """Evaluates variants of a model that agree up to some block, from the hidden states there.

    A search that changes a few layers a time runs about half the blocks that plain forward passes would. The values are
    the same bit for bit: the model's own forward is used, only that the first blocks answer from memory.

    Args:
        model: The model, in the type that it should compute in. Its layers may be changed between calls.

    Attributes:
        blocks_run: Blocks executed so far, :meth:`prepare` included.
        blocks_skipped: Blocks answered from memory so far.

    Example:
        >>> import torch, transformers
        >>> config = transformers.LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=3,
        ...                                   num_attention_heads=2)
        >>> model = Model(transformers.LlamaForCausalLM(config))
        >>> runner, tokens = PrefixRunner(model), torch.arange(8)[None]
        >>> runner.prepare(tokens)
        >>> torch.equal(runner.logits(tokens, start=2), model.module(tokens).logits), runner.blocks_skipped
        (True, 2)
    """

    def __init__(self, model: Model | nn.Module) -> None:
        self._module = model.module if isinstance(model, Model) else model
        self._blocks = find_blocks(self._module)
        self._outputs: list[Any] = []
        self._tokens: Tensor | None = None
        self._mask: Tensor | None = None
        self.blocks_run = 0
        self.blocks_skipped = 0

    @property
    def n_blocks(self) -> int:
        """Blocks of the model."""
        return len(self._blocks)

    @torch.inference_mode()
    def prepare(self, tokens: Tensor, mask: Tensor | None = None) -> None:
        """Run all blocks on a minibatch and remember what each returned, ``n_blocks`` hidden states a token.

        The head is not run: ``logits(tokens, n_blocks)`` gives the logits of the model as it was here.

        Args:
            tokens: ``[n, length]``.
            mask: ``[n, length]``, true where a token counts; ``None`` if all do.
        """
        self._outputs = []
        hooks = [block.register_forward_hook(self._remember) for block in self._blocks]
        try:
            run_model(self._module, tokens, mask)
        except Stop:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        if len(self._outputs) != self.n_blocks:
            ran = len(self._outputs)
            raise InvalidArgument(f"{type(self._module).__name__} ran {ran} blocks of {self.n_blocks}; its prefix cannot be reused")
        self._tokens, self._mask = tokens, mask
        self.blocks_run += self.n_blocks

    @torch.inference_mode()
    def logits(self, tokens: Tensor, start: int) -> Tensor:
        """Logits ``[n, length, vocabulary]`` of the model as it is now, whose blocks before ``start`` are as they were in :meth:`prepare`.

        Args:
            tokens: The minibatch given to :meth:`prepare`; any other if ``start`` is 0.
            start: First block to run, ``0 <= start <= n_blocks``. 0 runs everything, the embedding included.

        Raises:
            InvalidArgument: If ``start`` is out of range or nothing was prepared for ``tokens``.
        """
        if not 0 <= start <= self.n_blocks:
            raise InvalidArgument(f"start must be from 0 to {self.n_blocks}, got {start}")
        self.blocks_run += self.n_blocks - start
        self.blocks_skipped += start
        if start == 0:
            same = self._tokens is not None and torch.equal(tokens, self._tokens)
            return logits_of(run_model(self._module, tokens, self._mask if same else None))
        if self._tokens is None or not torch.equal(tokens, self._tokens):
            raise InvalidArgument("call prepare with these tokens before starting at a later block")
        with skipped(self._blocks, start, self._outputs[start - 1]):
            return logits_of(run_model(self._module, tokens, self._mask))

    def _remember(self, block: nn.Module, args: Any, output: Any) -> None:
        self._outputs.append(output)
        if block is self._blocks[self.n_blocks - 1]:
            raise Stop(None)
