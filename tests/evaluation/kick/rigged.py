"""A model whose answers are written down: after each prompt it says what the script says, letter by letter."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tersor.models import Model

CHARACTERS = "\n abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'\"()&-@/"
BEGIN, END = 0, 1


def characters() -> Any:
    """A tokenizer with one token a character, in which a blank and a capital letter are two; it adds no tokens."""
    import tokenizers
    import transformers

    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", "<unk>", *CHARACTERS])}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    inner.decoder = tokenizers.decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )


class Scripted(nn.Module):
    """Continues a text that ends in a scripted prompt by what the script says, then by the end token; knows no cache.

    Its forward pass takes neither mask nor positions, so prompts of different lengths must not be padded into one batch.
    """

    def __init__(self, script: dict[str, str], tokenizer: Any, context: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            vocab_size=len(tokenizer), max_position_embeddings=context, eos_token_id=END, is_encoder_decoder=False, layer_types=None
        )
        self.generation_config = None
        self.script, self.tokenizer = script, tokenizer

    def can_generate(self) -> bool:
        return True

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Any:
        logits = torch.zeros(*input_ids.shape, self.config.vocab_size)
        for row, tokens in enumerate(input_ids):
            text = self.tokenizer.decode(tokens)
            prompt = max((key for key in self.script if key in text), key=text.rfind, default=None)
            said = "" if prompt is None else text[text.rfind(prompt) + len(prompt) :]
            rest = "" if prompt is None else self.script[prompt][len(said) :]
            token = self.tokenizer(rest[0], add_special_tokens=False)["input_ids"][0] if rest else END
            logits[row, -1, token] = 9.0
        return Output(logits)


class Output(dict[str, Any]):
    """What a transformers model returns, as far as generation reads it."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits=logits)
        self.logits = logits


def scripted(script: dict[str, str], context: int = 4096, name: str = "scripted") -> Model:
    """A model that answers by ``script``: what it says after each prompt."""
    tokenizer = characters()
    return Model(Scripted(script, tokenizer, context), tokenizer, name)
