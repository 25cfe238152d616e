"""Small models whose every probability can be computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tersor.models import Model, load

LETTERS = "abcdefghijklmnop .?"


def llama(vocabulary: int = 32, seed: int = 0, tied: bool = True, context: int = 64, tokenizer: Any = None, name: str = "tiny") -> Model:
    """A Llama with random weights, wide enough apart that its predictions differ; the global generator is left alone."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, tie_word_embeddings=tied,
        max_position_embeddings=context, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        module = transformers.LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return Model(module, tokenizer, name)


def letters() -> Any:
    """A tokenizer of letters in which a blank merges with an ``a`` or ``b`` after it, and ``c`` with ``d``; it adds no tokens."""
    import tokenizers
    import transformers

    merges = [(" ", "a"), (" ", "b"), ("c", "d")]
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *LETTERS, *("".join(pair) for pair in merges)])}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    inner.decoder = tokenizers.decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def tokens(n: int, vocabulary: int = 32, seed: int = 0) -> torch.Tensor:
    """Random token ids."""
    return torch.randint(vocabulary, (n,), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def log_probabilities(model: Model, sequence: torch.Tensor) -> torch.Tensor:
    """``[n - 1, vocabulary]`` log-probabilities of what follows each token but the last, in float64 from plain forward passes."""
    logits = model.module(sequence[None]).logits[0, :-1]
    return logits.double().log_softmax(-1)


@pytest.fixture(scope="session")
def stories(stories_path: Path) -> Model:
    return load(stories_path)


@pytest.fixture(scope="session")
def forty(data_dir: Path) -> list[str]:
    """The first forty stories."""
    text = (data_dir / "text" / "tinystories.txt").read_text(encoding="utf-8")
    return [story.strip() for story in text.split("<|endoftext|>") if story.strip()][:40]
