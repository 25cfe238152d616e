"""What is asked: items with their right answers, read from local files."""

from __future__ import annotations

import bz2
import csv
import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tersor.errors import CorruptFile, InvalidArgument
from tersor.evaluation.kick.measures import contains, words
from tersor.evaluation.task_files import LETTERS, task_folder, task_rows

CONTEXT_CHARACTERS = 3072  # of a passage in an open book, as in the paper's script
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'A-Z0-9])")
GENERAL_KINDS = frozenset({"writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"})  # of MT-Bench
_HIGHLIGHT = re.compile(r"^\s*@highlight\b.*", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Item:
    """What is asked once.

    Attributes:
        prompt: What the model reads, word for word.
        aliases: Ways to write the right answer; for a multiple choice the right letter alone.
        reference: A text that a judge may compare with; empty where there is none.
        group: What it is about, such as a subject; empty where all are alike.
        weight: How many items of the pool it stands for.
    """

    prompt: str
    aliases: tuple[str, ...] = ()
    reference: str = ""
    group: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class Choice:
    """A question of a multiple choice, before examples are put in front of it.

    Attributes:
        subject: As MMLU names it.
        text: The question and its four options, ending in ``Answer:``.
        letter: The right one.
        shots: Solved examples of the subject, in their order.
    """

    subject: str
    text: str
    letter: str
    shots: tuple[str, ...]


def factoid_items(folder: str | Path | None = None, limit: int | None = None, longest: int = 3) -> list[Item]:
    """Questions of TriviaQA and Natural Questions, taking turns, whose answers are short.

    Args:
        folder: Of the files ``triviaqa_sm_sub.jsonl`` and ``nq_open.jsonl``; ``$TERSOR_DATA/tasks`` without it.
        limit: The first so many; all without it.
        longest: Words in the shortest alias at most.

    Raises:
        InvalidArgument: If a file is missing.
        CorruptFile: If a row is damaged.
    """
    trivia = (_factoid(row["context"].partition("Question: ")[2].partition("\n")[0], [row["answer"], *row["aliases"]])
              for row in _checked(folder, "triviaqa_sm_sub.jsonl", context=str, answer=str, aliases=list))  # fmt: skip
    natural = (_factoid(row["question"], row["answer"]) for row in _checked(folder, "nq_open.jsonl", question=str, answer=list))
    turns = (item for turn in zip_longest(trivia, natural) for item in turn if item is not None)
    short = [item for item in turns if item.aliases and min(len(words(alias)) for alias in item.aliases) <= longest]
    return short[:limit]


def _factoid(question: str, aliases: list[str]) -> Item:
    asked = question.strip().rstrip("?")
    prompt = f"Please give answer to this question: {asked[:1].upper()}{asked[1:]}?\nThe answer is"
    return Item(prompt, tuple(dict.fromkeys(alias for alias in aliases if words(alias))))


def retrieval_items(
    open_book: bool, folder: str | Path | None = None, limit: int | None = None, characters: int = CONTEXT_CHARACTERS
) -> list[Item]:
    """Questions of SQuAD 2.0 that can be answered, with the passage or without it; one a passage, articles taking turns.

    A question is left out where the passage, cut to ``characters``, has lost its answer, and where the question gives it away. Both
    books ask the same questions in the same order.

    Args:
        open_book: Whether the passage stands before the question.
        folder: Of ``squad2_dev.json.bz2``; ``$TERSOR_DATA/tasks`` without it.
        limit: The first so many; all without it.
        characters: Of a passage.

    Raises:
        InvalidArgument: If the file is missing.
        CorruptFile: If it is damaged.
    """
    path = _existing(folder, "squad2_dev.json.bz2")
    try:
        articles = json.loads(bz2.decompress(path.read_bytes()))["data"]
        found = [list(_asked(article, characters)) for article in articles]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CorruptFile(f"the task file {path} cannot be read: {error!r}") from None
    chosen = [entry for turn in zip_longest(*found) for entry in turn if entry is not None][:limit]
    return [
        Item(f"{f'{passage}' + chr(10) if open_book else ''}Question: {question}\nAnswer:", aliases, group=title)
        for title, passage, question, aliases in chosen
    ]


def _asked(article: dict[str, Any], characters: int) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    for paragraph in article["paragraphs"]:
        passage = paragraph["context"][:characters].strip()
        for row in paragraph["qas"]:
            aliases = tuple(dict.fromkeys(answer["text"] for answer in row["answers"] if words(answer["text"])))
            question = row["question"].strip()
            if not row["is_impossible"] and aliases and contains(passage, aliases) and not contains(question, aliases):
                yield article["title"].replace("_", " "), passage, question, aliases
                break


def open_domain_items(folder: str | Path | None = None, limit: int | None = None) -> list[Item]:
    """All of Natural Questions' short answers, closed book, in the words of :func:`retrieval_items`."""
    rows = _checked(folder, "nq_open.jsonl", question=str, answer=list)
    asked = ((row["question"].strip().rstrip("?"), tuple(alias for alias in row["answer"] if words(alias))) for row in rows)
    return [Item(f"Question: {text[:1].upper()}{text[1:]}?\nAnswer:", aliases) for text, aliases in asked if aliases][:limit]


def summary_items(folder: str | Path | None = None, limit: int | None = None, longest: int = 1500) -> list[Item]:
    """News stories to summarise; the reference of a story without highlights is its first three sentences.

    The stories must not hold their own summary: lines that begin with ``@highlight`` are taken out of the prompt and become the
    reference.

    Args:
        folder: Of ``spec_bench.jsonl``; ``$TERSOR_DATA/tasks`` without it.
        limit: The first so many; all without it.
        longest: Characters of a story; what exceeds them is cut at the end of a sentence.
    """
    rows = spec_bench_rows(folder)
    stories = [row["turns"][0].removeprefix("Summarize:").strip() for row in rows if row["category"] == "summarization"]
    return [summary_item(story, longest) for story in stories[:limit]]


def summary_item(story: str, longest: int = 1500) -> Item:
    """One story as an item; see :func:`summary_items`."""
    tail = _HIGHLIGHT.search(story)
    body = " ".join((story[: tail.start()] if tail else story).split())
    highlights = " ".join(tail.group().replace("@highlight", " ").split()) if tail else ""
    sentences, kept = _SENTENCE_END.split(body), ""
    for sentence in sentences:
        if kept and len(kept) + len(sentence) >= longest:
            break
        kept = f"{kept} {sentence}".strip()
    kept = kept[:longest]
    head = "Summarize the story in less than 150 words. Be coherent, consistent, fluent and relevant.\nStory: "
    return Item(f"{head}{kept}\nSummary:", reference=highlights or " ".join(sentences[:3]))


def instruction_items(folder: str | Path | None = None, limit: int | None = None) -> list[Item]:
    """Open instructions: those of LLM-KICK, and the first turns of Spec-Bench's general ones; kinds take turns."""
    own = [(row["category"], row["text"]) for row in _checked(folder, "kick_instructions.jsonl", category=str, text=str)]
    rows = own + [(row["category"], row["turns"][0]) for row in spec_bench_rows(folder) if row["category"] in GENERAL_KINDS]
    kinds: dict[str, list[Item]] = {}
    for kind, text in rows:
        kinds.setdefault(kind, []).append(Item(instruction_prompt(text), group=kind))
    return [item for turn in zip_longest(*kinds.values()) for item in turn if item is not None][:limit]


def instruction_prompt(text: str) -> str:
    """What a model reads of an instruction."""
    return f"Instruction: {text.strip()}\nResponse:"


def spec_bench_rows(folder: str | Path | None = None) -> Iterator[dict[str, Any]]:
    """The rows of ``spec_bench.jsonl``, with ``category`` and ``turns``."""
    return _checked(folder, "spec_bench.jsonl", category=str, turns=list)


def choice_items(folder: str | Path | None = None, limit: int | None = None, subjects: tuple[str, ...] = ()) -> list[Choice]:
    """Questions of MMLU with the five solved examples of their subject; subjects take turns.

    Args:
        folder: Of ``mmlu/mmlu.tar.bz2``; ``$TERSOR_DATA/tasks`` without it.
        limit: The first so many; all without it.
        subjects: Only these; all without any.

    Raises:
        InvalidArgument: If a subject is unknown or the file is missing.
        CorruptFile: If the file is damaged.
    """
    path = _existing(folder, "mmlu/mmlu.tar.bz2")
    solved: dict[str, list[tuple[str, str]]] = {}
    asked: dict[str, list[tuple[str, str]]] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                part, _, file_name = member.name.partition("/")
                subject = file_name.removesuffix(f"_{part}.csv")
                if part in ("dev", "test") and file_name.endswith(".csv") and (not subjects or subject in subjects):
                    file = archive.extractfile(member)
                    rows = list(_choices(subject, file.read().decode("utf-8"))) if file is not None else []
                    (solved if part == "dev" else asked)[subject] = rows
    except (tarfile.TarError, OSError, EOFError, UnicodeDecodeError) as error:
        raise CorruptFile(f"the task file {path} cannot be read: {error}") from None
    if missing := sorted(set(subjects) - set(asked)):
        raise InvalidArgument(f"mmlu has no subject {missing[0]!r} in {path}")
    shots = {subject: tuple(f"{text} {letter}\n\n" for text, letter in rows[:5]) for subject, rows in solved.items()}
    made = ([Choice(subject, text, letter, shots.get(subject, ())) for text, letter in asked[subject]] for subject in sorted(asked))
    return [choice for turn in zip_longest(*made) for choice in turn if choice is not None][:limit]


def _choices(subject: str, content: str) -> Iterator[tuple[str, str]]:
    for number, row in enumerate(csv.reader(io.StringIO(content)), 1):
        if len(row) != 6 or row[5] not in tuple(LETTERS):
            raise CorruptFile(f"mmlu {subject} row {number}: needs a question, four choices and a letter from A to D")
        listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, row[1:5], strict=True))
        yield f"{row[0].strip()}\n{listed}\nAnswer:", row[5]


def _existing(folder: str | Path | None, name: str) -> Path:
    path = task_folder(folder) / name
    if not path.is_file():
        raise InvalidArgument(f"the kick tasks need the file {path}, which does not exist; name the folder of the task files")
    return path


def _checked(folder: str | Path | None, name: str, **kinds: type) -> Iterator[dict[str, Any]]:
    for where, row in task_rows(_existing(folder, name)):
        for key, kind in kinds.items():
            if not isinstance(row, dict) or not isinstance(row.get(key), kind):
                raise CorruptFile(f"{where}: needs {key!r}, a {kind.__name__}")
            if kind is list and not all(isinstance(entry, str) for entry in row[key]):
                raise CorruptFile(f"{where}: {key!r} must hold texts alone")
        yield row
