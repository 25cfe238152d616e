"""How right a written answer is: normalised matches, overlap with a reference, and how much a text repeats itself."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from tersor.errors import InvalidArgument

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation + "\u2018\u2019\u201c\u201d\u00b4")
_WORD = re.compile(r"\w+")


def normalised(text: str) -> str:
    """``text`` in lower case without punctuation and articles, its words one blank apart."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def contains(prediction: str, aliases: Sequence[str]) -> bool:
    """Whether some alias is in the prediction, as whole words and after normalisation.

    Never the other way round: a prediction that is part of an alias, above all an empty one, is no answer. An alias of which
    normalisation leaves nothing matches nothing.

    Args:
        prediction: What the model wrote, the prompt not included.
        aliases: Ways to write the right answer.
    """
    said = f" {normalised(prediction)} "
    return any(f" {alias} " in said for alias in map(normalised, aliases) if alias)


def contains_squeezed(prediction: str, aliases: Sequence[str]) -> bool:
    """The match of the benchmark's own script: in lower case, all blanks removed, inside words too, so ``"art"`` is in ``"a party"``."""
    said = "".join(prediction.lower().split())
    return any(alias in said for alias in ("".join(alias.lower().split()) for alias in aliases) if alias)


def exact(prediction: str, aliases: Sequence[str]) -> bool:
    """Whether the prediction is one of the aliases, both normalised and neither empty."""
    said = normalised(prediction)
    return bool(said) and any(said == normalised(alias) for alias in aliases)


def word_f1(prediction: str, aliases: Sequence[str]) -> float:
    """Best F1 over ``aliases`` of the words that prediction and alias share, from 0 to 1."""
    said = normalised(prediction).split()
    return max((_overlap(said, normalised(alias).split()) for alias in aliases), default=0.0)


def rouge_n(text: str, reference: str, n: int = 1) -> float:
    """F1 of the ``n``-grams that ``text`` shares with ``reference``, words in lower case and not stemmed, from 0 to 1.

    Reference:
        Lin, "ROUGE: a package for automatic evaluation of summaries" (2004).
    """
    if n < 1:
        raise InvalidArgument(f"n-grams need n of at least 1, got {n}")
    return _overlap(_grams(words(text), n), _grams(words(reference), n))


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words, from 0 to 1; sentences are not told apart.

    Reference:
        Lin, "ROUGE: a package for automatic evaluation of summaries" (2004).
    """
    first, second = words(text), words(reference)
    row = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for index, other in enumerate(second, 1):
            above = row[index]
            row[index] = before + 1 if word == other else max(above, row[index - 1])
            before = above
    return _f1(row[-1], len(first), len(second))


def repetition(text: str, n: int = 3) -> float:
    """Share of the ``n``-grams of words that were there before, from 0 to 1; 0 for a text too short to have two.

    Reference:
        Welleck et al., "Neural text generation with unlikelihood training" (2020), as seq-rep-n.
    """
    if n < 1:
        raise InvalidArgument(f"n-grams need n of at least 1, got {n}")
    grams = _grams(words(text), n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return _WORD.findall(text.lower())


def _grams(items: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(items[start:] for start in range(n)), strict=False))


def _overlap(first: Sequence[object], second: Sequence[object]) -> float:
    return _f1(sum((Counter(first) & Counter(second)).values()), len(first), len(second))


def _f1(common: int, first: int, second: int) -> float:
    return 2 * common / (first + second) if common else 0.0
