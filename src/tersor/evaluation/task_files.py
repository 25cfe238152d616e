"""Reading tasks from local files: multiple choice, the choice of a context, and the last word of a passage."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from tersor.errors import CorruptFile, InvalidArgument

Kind = Literal["choices", "contexts", "last word"]
TASKS = {
    "arc_easy": "arc_easy.jsonl", "arc_challenge": "arc_challenge.jsonl", "piqa": "piqa.jsonl", "boolq": "boolq.jsonl",
    "openbook_qa": "openbook_qa.jsonl", "winogrande": "winogrande.jsonl", "hellaswag": "hellaswag_val.jsonl.bz2",
    "lambada_openai": "lambada_openai.jsonl", "mmlu": "mmlu/mmlu.tar.bz2",
}  # fmt: skip
LETTERS = "ABCD"


@dataclass(frozen=True)
class Question:
    """What is asked once.

    Attributes:
        pairs: A context and a continuation for each answer; a blank goes between them.
        gold: Index of the right one.
    """

    pairs: tuple[tuple[str, str], ...]
    gold: int = 0


@dataclass(frozen=True)
class Task:
    """A named list of questions.

    Attributes:
        name: What the user typed.
        kind: ``"choices"``: continuations of one context; ``"contexts"``: one continuation of several contexts;
            ``"last word"``: one continuation that must be the likeliest, word for word.
        questions: In the order of the file; those of MMLU take turns over its subjects, so that any number is a fair sample.
    """

    name: str
    kind: Kind
    questions: tuple[Question, ...]


def load_task(name: str | Path, folder: str | Path | None = None) -> Task:
    """Read a task.

    Args:
        name: One of :data:`TASKS`, ``mmlu:SUBJECT``, or a ``.jsonl`` file (also ``.gz`` or ``.bz2``) whose rows all hold
            ``query, choices, gold``, or ``context_options, continuation, gold``, or ``context, continuation``.
        folder: Where the files of the named tasks are; ``$TERSOR_DATA/tasks`` without it.

    Raises:
        InvalidArgument: If there is no such task; those that there are are listed.
        CorruptFile: If a row is damaged; it is named.
    """
    label, _, subject = str(name).partition(":")
    if label not in TASKS:
        path = Path(name).expanduser()
        if path.is_file():
            return _from_rows(str(name), path, task_rows(path))
        raise InvalidArgument(f"no task {str(name)!r}: there is no such file, and the named tasks are {', '.join(TASKS)} and mmlu:SUBJECT")
    if subject and label != "mmlu":
        raise InvalidArgument(f"task {label} has no subjects; ask for {label}")
    path = task_folder(folder) / TASKS[label]
    if not path.is_file():
        raise InvalidArgument(f"task {label} needs the file {path}, which does not exist; name the folder of the task files")
    if label == "mmlu":
        return _mmlu(str(name), path, subject)
    return _from_rows(label, path, task_rows(path))


def task_folder(folder: str | Path | None) -> Path:
    """``folder``, or ``$TERSOR_DATA/tasks`` without it.

    Raises:
        InvalidArgument: If neither is given.
    """
    if folder is not None:
        return Path(folder).expanduser()
    data = os.environ.get("TERSOR_DATA")
    if not data:
        raise InvalidArgument(
            "named tasks are looked up in $TERSOR_DATA/tasks but TERSOR_DATA is not set; set it, or give the path of a .jsonl file"
        )
    return Path(data) / "tasks"


def task_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Every line of a ``.jsonl`` file, also ``.gz`` or ``.bz2``, as JSON, with its place.

    Raises:
        CorruptFile: If it cannot be read.
    """
    opener: Any = {".bz2": bz2.open, ".gz": gzip.open}.get(path.suffix, open)
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path.name} line {number}", json.loads(line)
    except (OSError, EOFError, ValueError) as error:
        raise CorruptFile(f"the task file {path} cannot be read: {error}") from None


def _from_rows(name: str, path: Path, rows: Iterator[tuple[str, Any]]) -> Task:
    parsed = [_question(where, row) for where, row in rows]
    kinds = {kind for kind, _ in parsed}
    if len(kinds) != 1:
        raise CorruptFile(f"the task file {path} " + ("mixes rows of different kinds" if parsed else "holds no questions"))
    return Task(name, kinds.pop(), tuple(question for _, question in parsed))


def _question(where: str, row: Any) -> tuple[Kind, Question]:
    kind: Kind
    keys = set(row) if isinstance(row, dict) else set()
    if {"query", "choices", "gold"} <= keys:
        texts, kind = row["choices"], "choices"
        pairs = [(row["query"], choice) for choice in texts] if isinstance(texts, list) else []
    elif {"context_options", "continuation", "gold"} <= keys:
        texts, kind = row["context_options"], "contexts"
        pairs = [(context, row["continuation"]) for context in texts] if isinstance(texts, list) else []
    elif {"context", "continuation"} <= keys:
        return "last word", _checked(where, [(row["context"], row["continuation"])], 0, 1)
    else:
        kinds = "query, choices and gold, or context_options, continuation and gold, or context and continuation"
        raise CorruptFile(f"{where}: a row needs {kinds}; it has {sorted(keys)}")
    return kind, _checked(where, pairs, row["gold"], 2)


def _checked(where: str, pairs: list[tuple[Any, Any]], gold: Any, least: int) -> Question:
    strings = all(isinstance(text, str) for pair in pairs for text in pair)
    if len(pairs) < least or not strings or not all(continuation.strip() for _, continuation in pairs):
        raise CorruptFile(f"{where}: needs at least {least} answers, all of them text that is not empty")
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(pairs):
        raise CorruptFile(f"{where}: gold must be from 0 to {len(pairs) - 1}, got {gold!r}")
    return Question(tuple(pairs), gold)


def _mmlu(name: str, path: Path, subject: str) -> Task:
    tables: dict[str, list[Question]] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.name.startswith("test/") and member.name.endswith("_test.csv"):
                    key = Path(member.name).name.removesuffix("_test.csv")
                    if subject in ("", key) and (file := archive.extractfile(member)) is not None:
                        tables[key] = _mmlu_subject(key, file.read().decode("utf-8"))
    except (tarfile.TarError, OSError, EOFError, UnicodeDecodeError) as error:
        raise CorruptFile(f"the task file {path} cannot be read: {error}") from None
    if not tables:
        raise InvalidArgument(f"mmlu has no subject {subject!r} in {path}")
    turns = zip_longest(*(tables[key] for key in sorted(tables)))
    return Task(name, "choices", tuple(question for turn in turns for question in turn if question is not None))


def _mmlu_subject(subject: str, content: str) -> list[Question]:
    head = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
    questions = []
    for number, row in enumerate(csv.reader(io.StringIO(content)), 1):
        if len(row) != 6 or row[5] not in LETTERS:
            raise CorruptFile(f"mmlu {subject} row {number}: needs a question, four choices and a letter from A to D")
        listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, row[1:5], strict=True))
        query = f"{head}{row[0].strip()}\n{listed}\nAnswer:"
        questions.append(Question(tuple((query, letter) for letter in LETTERS), LETTERS.index(row[5])))
    return questions
