"""Answering questions by likelihood: accuracy on local task files, and how answers flip against the original."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from tersor.errors import InvalidArgument
from tersor.evaluation.divergence import Progress
from tersor.evaluation.logits import check_predicts
from tersor.evaluation.scoring import Likelihood, Request, likelihoods, requests_of
from tersor.evaluation.statistics import Estimate, cluster_mean, exponential, finite, proportion
from tersor.evaluation.task_files import Question, Task, load_task
from tersor.models import Model


@dataclass(frozen=True)
class TaskResult:
    """What a model scored on a task; what compares with an original is ``None`` where none was given.

    Attributes:
        task: Name of the task.
        model: Name of the model.
        questions: How many were asked.
        acc: Share whose likeliest answer is right; for a last word, share whose every token is the likeliest.
        acc_stderr: Its standard error.
        acc_norm: Share right when log-likelihoods are divided by the characters of the answer; ``None`` where answers do not differ.
        acc_norm_stderr: Its standard error.
        chance: What guessing scores; 0 for a last word.
        perplexity: Of the last words, a word; ``None`` for a choice.
        perplexity_stderr: Its standard error.
        reference_acc: ``acc`` of the original.
        difference: ``acc - reference_acc``.
        difference_stderr: Its standard error, paired by question.
        lost: Share that the original answers right and the model wrong.
        gained: The reverse.
        truncated: Questions cut off on the left because they exceed the context.
        backend: ``"tersor"`` or ``"lm-eval"``.
        seconds: Time it took, the original included.
        right: For each question whether the model was right.
    """

    task: str
    model: str
    questions: int
    acc: float
    acc_stderr: float | None
    acc_norm: float | None = None
    acc_norm_stderr: float | None = None
    chance: float = 0.0
    perplexity: float | None = None
    perplexity_stderr: float | None = None
    reference_acc: float | None = None
    difference: float | None = None
    difference_stderr: float | None = None
    lost: float | None = None
    gained: float | None = None
    truncated: int = 0
    backend: str = "tersor"
    seconds: float = 0.0
    right: tuple[bool, ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the single answers; numbers that are not finite become ``None``."""
        plain = {key: finite(value) if isinstance(value, float) else value for key, value in asdict(self).items()}
        plain.pop("right")
        return plain

    def __str__(self) -> str:
        parts = [f"{self.task:<16} acc {Estimate(self.acc, self.acc_stderr)}"]
        if self.acc_norm is not None:
            parts.append(f"acc_norm {Estimate(self.acc_norm, self.acc_norm_stderr)}")
        if self.perplexity is not None:
            parts.append(f"perplexity {Estimate(self.perplexity, self.perplexity_stderr)}")
        if self.chance:
            parts.append(f"chance {self.chance:.3g}")
        if self.difference is not None:
            change = Estimate(self.difference, self.difference_stderr)
            parts.append(f"against the original {change} (lost {self.lost:.2%}, gained {self.gained:.2%})")
        parts.append(f"{self.questions} questions" + (f", {self.truncated} cut" if self.truncated else ""))
        return ", ".join(parts)


def run_tasks(
    model: Model,
    tasks: Sequence[str | Path],
    *,
    reference: Model | None = None,
    limit: int | None = None,
    folder: str | Path | None = None,
    backend: Literal["tersor", "lm-eval"] = "tersor",
    progress: Progress | None = None,
) -> list[TaskResult]:
    """Ask a model the questions of local task files, without a hub.

    An answer's score is the log-likelihood of a blank and the answer after the question, without examples. These files word their
    questions in their own way, so compare models with each other on them, not with published numbers; for those use ``lm-eval``.

    Args:
        model: A decoder with a tokenizer.
        tasks: Names of :data:`tersor.evaluation.task_files.TASKS`, ``mmlu:SUBJECT``, or ``.jsonl`` files.
        reference: The original, for differences and flips.
        limit: Ask the first so many questions of each task; all without it.
        folder: Where the files of named tasks are, ``$TERSOR_DATA/tasks`` without it; for ``lm-eval``, a folder of further task files.
        backend: ``"lm-eval"`` hands the names to that harness where it is installed; it fetches its own data.
        progress: Told of every scored answer.

    Raises:
        InvalidArgument: On an unknown task, a model without a tokenizer or that is no decoder, or a missing harness.
        CorruptFile: If a task file is damaged.
    """
    if backend not in ("tersor", "lm-eval"):
        raise InvalidArgument(f"backend must be tersor or lm-eval, got {backend!r}")
    if not tasks:
        raise InvalidArgument("name at least one task")
    if limit is not None and limit < 1:
        raise InvalidArgument(f"limit must be at least 1, got {limit}")
    for part in (model, reference):
        if part is not None:
            check_predicts(part)
            if part.tokenizer is None:
                raise InvalidArgument(f"model {part.name} has no tokenizer, and questions are text; put one into its folder")
    if backend == "lm-eval":
        from tersor.evaluation.lm_eval_backend import run_lm_eval

        return run_lm_eval(model, [str(task) for task in tasks], reference, limit, folder)
    loaded = [load_task(str(task).strip() if isinstance(task, str) else task, folder) for task in tasks]
    return [_run(model, Task(task.name, task.kind, task.questions[:limit]), reference, progress) for task in loaded]


@dataclass(frozen=True)
class _Answers:
    """Answers of one model to one task, a row a question."""

    right: torch.Tensor
    right_norm: torch.Tensor | None
    log_probability: torch.Tensor
    truncated: int


def _run(model: Model, task: Task, reference: Model | None, progress: Progress | None) -> TaskResult:
    began = time.perf_counter()
    own = _answers(model, task, progress)
    acc, questions = proportion(own.right), len(task.questions)
    details: dict[str, Any] = {} if reference is None else compared(own.right, _answers(reference, task, progress).right)
    if task.kind == "last word":
        word = exponential(cluster_mean(-own.log_probability, torch.ones(questions)))
        details |= {"perplexity": word.value, "perplexity_stderr": word.stderr}
    else:
        details["chance"] = sum(1 / len(question.pairs) for question in task.questions) / questions
    if own.right_norm is not None:
        norm = proportion(own.right_norm)
        details |= {"acc_norm": norm.value, "acc_norm_stderr": norm.stderr}
    return TaskResult(
        task.name, model.name, questions, acc.value, acc.stderr, **details, truncated=own.truncated, seconds=time.perf_counter() - began,
        right=tuple(own.right.tolist()),
    )  # fmt: skip


def compared(right: torch.Tensor, reference: torch.Tensor) -> dict[str, Any]:
    """The fields of :class:`TaskResult` that compare ``right`` ``[n]`` with the original's ``reference`` ``[n]``."""
    paired = cluster_mean(right.double() - reference.double(), torch.ones(right.shape[0]))
    return {
        "reference_acc": float(reference.double().mean()), "difference": paired.value, "difference_stderr": paired.stderr,
        "lost": float((reference & ~right).double().mean()), "gained": float((~reference & right).double().mean()),
    }  # fmt: skip


def _answers(model: Model, task: Task, progress: Progress | None) -> _Answers:
    grouped: list[list[Request]] = [requests_of(model, question.pairs, task.kind == "choices") for question in task.questions]
    flat = [request for requests in grouped for request in requests]
    if progress is not None:
        progress.start(f"{task.name} with {model.name}", len(flat))
    scored = iter(likelihoods(model, flat, progress))
    found = [[next(scored) for _ in requests] for requests in grouped]
    truncated = sum(any(len(request.tokens) - 1 > model.max_context for request in requests) for requests in grouped)
    gold = [scores[question.gold].log_probability for question, scores in zip(task.questions, found, strict=True)]
    if task.kind == "last word":
        return _Answers(torch.tensor([scores[0].greedy for scores in found]), None, torch.tensor(gold), truncated)
    pairs = list(zip(task.questions, found, strict=True))
    right = torch.tensor([_best(question, scores, False) == question.gold for question, scores in pairs])
    norm = torch.tensor([_best(question, scores, True) == question.gold for question, scores in pairs]) if task.kind == "choices" else None
    return _Answers(right, norm, torch.tensor(gold), truncated)


def _best(question: Question, scores: list[Likelihood], normalised: bool) -> int:
    lengths = [len(continuation) if normalised else 1 for _, continuation in question.pairs]
    values = [score.log_probability / length for score, length in zip(scores, lengths, strict=True)]
    return max(range(len(values)), key=values.__getitem__)
