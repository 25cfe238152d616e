"""Small RoBERTa classifiers of any shape with a vocabulary of their own: built, run, saved, loaded and exported."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import CorruptFile, InvalidArgument
from tersor.files import write_json
from tersor.training.architecture_cost import RobertaCost

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
PAD = 1
# 256 bytes and the special tokens.
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)


class SeededDropout(nn.Dropout):
    """Dropout that draws from a generator of its own while it has one, so that a training can be repeated and resumed."""

    generator: torch.Generator | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Drop and scale; nothing is done outside training."""
        if not self.training or self.p == 0 or self.generator is None:
            return super().forward(input)
        kept = torch.rand(input.shape, generator=self.generator) >= self.p
        return input * kept / (1 - self.p)


class PairHead(nn.Module):
    """Classifier of two inputs from the means of their tokens: from the difference, without its sign, and the product.

    The published one reads what the first tokens hold side by side. It has as many parameters, and must learn to gather and to compare
    first, for which a short training is too short.

    Args:
        width: Of either vector.
        classes: Outputs.
        dropout: Before either layer.
    """

    def __init__(self, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(2 * width, width)
        self.dropout = SeededDropout(dropout)
        self.out_proj = nn.Linear(width, classes)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Scores ``[n, classes]`` of vectors ``[n, width]``."""
        compared = torch.cat([(first - second).abs(), first * second], -1)
        hidden = torch.tanh(self.dense(self.dropout(compared)))
        scores: Tensor = self.out_proj(self.dropout(hidden))
        return scores


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer in lower case with white space collapsed, as ``transformers`` loads it.

    Args:
        texts: What to learn it from.
        vocabulary: Tokens, the 256 bytes and the four special ones included; little text may give fewer.

    Raises:
        InvalidArgument: If the vocabulary has no room for the bytes, or there is no text.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if vocabulary < SMALLEST_VOCABULARY:
        raise InvalidArgument(f"a byte-level vocabulary has {SMALLEST_VOCABULARY} tokens at least, got {vocabulary}")
    lines = [text for text in texts if text.strip()]
    if not lines:
        raise InvalidArgument("a tokenizer is learned from texts, and there is none that is not blank")
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Lowercase(),
    ])  # fmt: skip
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", cls_token="<s>", eos_token="</s>", sep_token="</s>", pad_token="<pad>",
        unk_token="<unk>",
    )  # fmt: skip


def encode(tokenizer: Any, texts: Sequence[str], length: int) -> Tensor:
    """Token ids ``[len(texts), length]``, cut and padded with 1.

    Args:
        tokenizer: Of :func:`train_tokenizer`.
        texts: Any.
        length: Tokens, the first and the last included.
    """
    ids: Tensor = tokenizer(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")["input_ids"]
    return ids


def build_student(architecture: Mapping[str, int], cost: RobertaCost, *, dropout: float = 0.1, seed: int = 0) -> Any:
    """An untrained ``RobertaForSequenceClassification`` of the given shape.

    Args:
        architecture: Values of ``transformers.RobertaConfig`` by name, as a search over ``ROBERTA_SPACE`` finds them.
        cost: Length, classes and whether pairs are compared; its counts are those of what is built.
        dropout: Of embeddings, blocks and classifier; attention has none.
        seed: Of the weights.

    Raises:
        InvalidArgument: If heads do not divide the width, the vocabulary has no room for the bytes or a name is missing.
    """
    from transformers import RobertaConfig, RobertaForSequenceClassification

    _check(architecture)
    config = RobertaConfig(
        **architecture, max_position_embeddings=cost.length + 2, type_vocab_size=1, pad_token_id=PAD, bos_token_id=0, eos_token_id=2,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=0.0, num_labels=cost.classes,
    )  # fmt: skip
    with torch.random.fork_rng():  # what transformers draws is drawn again below, from a seed
        student = RobertaForSequenceClassification(config)
        if cost.pair:
            student.classifier = PairHead(config.hidden_size, cost.classes, dropout)
    _seed_dropouts(student)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in student.named_parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0.0, 0.02 if "embeddings" in name else parameter.shape[1] ** -0.5, generator=generator)
        elif name.endswith("bias"):
            parameter.data.zero_()
    with torch.no_grad():
        student.roberta.embeddings.word_embeddings.weight[PAD] = 0
    return student


def logits(student: Any, ids: Tensor) -> Tensor:
    """Scores ``[n, classes]``.

    Args:
        student: Of :func:`build_student` or :func:`load_student`.
        ids: Token ids ``[n, length]``, or ``[n, 2, length]`` for a classifier of pairs.
    """
    if isinstance(student.classifier, PairHead):
        encoded = _mean_tokens(student, ids.flatten(0, 1)).unflatten(0, (-1, 2))
        scores: Tensor = student.classifier(encoded[:, 0], encoded[:, 1])
    else:
        scores = student(input_ids=ids, attention_mask=ids.ne(PAD).long()).logits
    return scores


def save_student(student: Any, tokenizer: Any, folder: str | Path) -> int:
    """Write a folder that ``transformers`` loads: as a sequence classifier, or for pairs as an encoder without the classifier.

    Args:
        student: Of :func:`build_student`.
        tokenizer: Of :func:`train_tokenizer`.
        folder: Made if need be.

    Returns:
        Bytes of ``model.safetensors``.
    """
    target = Path(folder)
    pair = isinstance(student.classifier, PairHead)
    student.config.architectures = ["RobertaModel" if pair else "RobertaForSequenceClassification"]
    student.save_pretrained(target)
    if pair:
        config = json.loads((target / "config.json").read_text(encoding="utf-8"))
        write_json(target / "config.json", {**config, "architectures": ["RobertaModel"], "compares_pairs": True})
    tokenizer.save_pretrained(target)
    return (target / "model.safetensors").stat().st_size


def load_student(folder: str | Path) -> tuple[Any, Any]:
    """The student and the tokenizer of a folder that :func:`save_student` wrote.

    Raises:
        InvalidArgument: If it is no such folder.
        CorruptFile: If its files contradict each other.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import PreTrainedTokenizerFast

    source = Path(folder)
    names = ("config.json", "model.safetensors", "tokenizer.json")
    if missing := [name for name in names if not (source / name).is_file()]:
        raise InvalidArgument(f"{source} holds no {missing[0]}; give a folder that a shrunk classifier was saved in")
    try:
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        architecture = {name: int(config[name]) for name in ARCHITECTURE_NAMES}
        pair, classes = bool(config.get("compares_pairs")), len(config.get("id2label", "01"))
        student = build_student(architecture, RobertaCost(int(config["max_position_embeddings"]) - 2, classes, pair))
        student.load_state_dict(load_file(source / "model.safetensors"))
        tokenizer = PreTrainedTokenizerFast.from_pretrained(source)
    except (SafetensorError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise CorruptFile(f"{source} holds no student that can be read: {str(error).splitlines()[0]}") from None
    return student.eval(), tokenizer


ARCHITECTURE_NAMES = ("num_attention_heads", "hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")


def _check(architecture: Mapping[str, int]) -> None:
    if missing := set(ARCHITECTURE_NAMES) ^ set(architecture):
        raise InvalidArgument(f"a RoBERTa's shape is given by {', '.join(ARCHITECTURE_NAMES)}; {min(missing)} is missing or unknown")
    width, heads = architecture["hidden_size"], architecture["num_attention_heads"]
    if min(architecture.values()) < 1 or width % heads:
        raise InvalidArgument(f"{heads} heads must divide a width of {width}, and every size must be positive")
    if architecture["vocab_size"] < SMALLEST_VOCABULARY:
        raise InvalidArgument(f"a byte-level vocabulary has {SMALLEST_VOCABULARY} tokens at least, got {architecture['vocab_size']}")


def _mean_tokens(student: Any, ids: Tensor) -> Tensor:
    mask = ids.ne(PAD)
    hidden: Tensor = student.roberta(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    kept = mask[..., None].to(hidden.dtype)
    return (hidden * kept).sum(1) / kept.sum(1)


def _seed_dropouts(module: nn.Module) -> None:
    for name, child in module.named_children():
        if type(child) is nn.Dropout:
            setattr(module, name, SeededDropout(child.p))
        else:
            _seed_dropouts(child)
