from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from tersor.errors import InvalidArgument
from tersor.models.export import export_model
from tersor.models.export.gguf_tokenizer import vocabulary_of
from tersor.models.model import Model

TEXT = ["the cat sat on the mat and it's been 12345 days", "that hat  is  where the rat is, isn't it?\n\nyes"] * 4
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)  # fmt: skip


def byte_level(*steps: Any) -> Any:
    """A byte-level BPE tokenizer trained on a few words."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(steps)) if len(steps) > 1 else steps[0]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, special_tokens=["<|end|>"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", bos_token="<|end|>")


STEPS = {
    "gpt-2": (pre_tokenizers.ByteLevel(add_prefix_space=False),),
    "smollm": (pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "qwen2": (pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
}


def with_tokenizer(tokenizer: Any, rows: int = 330) -> Model:
    import transformers

    config = transformers.LlamaConfig(vocab_size=rows, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    return Model(transformers.LlamaForCausalLM(config), tokenizer)


@pytest.mark.parametrize("name", STEPS)
def test_byte_level_tokenizers_are_named_by_how_they_cut(name: str) -> None:
    model = with_tokenizer(byte_level(*STEPS[name]))
    vocabulary = vocabulary_of(model)
    assert (vocabulary.model, vocabulary.pre) == ("gpt2", name)
    assert len(vocabulary.tokens) == 330
    assert vocabulary.tokens[-1] == "[PAD329]"
    assert vocabulary.types[0] == 3
    assert vocabulary.special["eos"] == 0
    assert vocabulary.merges[0].count(" ") == 1


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama_cpp is not installed")
@pytest.mark.parametrize("name", STEPS)
def test_llama_cpp_cuts_text_the_same_way(name: str, tmp_path: Path) -> None:
    report = export_model(with_tokenizer(byte_level(*STEPS[name])), tmp_path / "out.gguf")
    assert report.verified is not None
    assert report.verified["tokenizer"] == "the same tokens for 2 texts"


def test_sentencepiece_tokenizers_keep_order_bytes_and_space(stories: Model) -> None:
    vocabulary = vocabulary_of(stories)
    assert vocabulary.model == "llama"
    assert vocabulary.flags == {"add_bos_token": True, "add_eos_token": False, "add_space_prefix": True}
    assert [vocabulary.types[i] for i in (0, 1, 2, 3)] == [2, 3, 3, 6]
    score = dict(zip(vocabulary.tokens, vocabulary.scores, strict=True))
    assert score["▁t"] > score["he"] > score["▁a"]


def test_a_model_without_tokenizer_has_no_vocabulary(random_model: Callable[..., Model]) -> None:
    assert vocabulary_of(random_model("llama")).model == "no_vocab"


def test_other_kinds_are_refused() -> None:
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")))
    with pytest.raises(InvalidArgument, match="a tokenizer of the type WordLevel cannot be written to GGUF"):
        vocabulary_of(with_tokenizer(words))


def test_unknown_cuts_are_refused() -> None:
    tokenizer = byte_level(pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    with pytest.raises(InvalidArgument, match=r"cuts text by Whitespace .* then bytes, for which tersor knows no name"):
        vocabulary_of(with_tokenizer(tokenizer))


def test_unknown_normalisers_are_refused() -> None:
    tokenizer = byte_level(*STEPS["gpt-2"])
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(InvalidArgument, match="the normaliser Lowercase"):
        vocabulary_of(with_tokenizer(tokenizer))


def test_more_tokens_than_rows_are_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"token ids up to 3.., the embedding 300 rows"):
        vocabulary_of(with_tokenizer(byte_level(*STEPS["gpt-2"]), rows=300))
