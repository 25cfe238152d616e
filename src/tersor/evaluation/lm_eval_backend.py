"""Tasks through the LM Evaluation Harness, where it is installed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from tersor.errors import InvalidArgument, TersorError
from tersor.evaluation.tasks import TaskResult, compared
from tersor.models import Model


def run_lm_eval(
    model: Model, tasks: list[str], reference: Model | None, limit: int | None, folder: str | Path | None = None
) -> list[TaskResult]:
    """Run the harness's own definitions of ``tasks``; see :func:`tersor.evaluation.run_tasks`.

    Raises:
        InvalidArgument: If the harness is not installed or does not know a task.
        TersorError: If it fails, for instance because it cannot fetch its data.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise InvalidArgument("backend lm-eval needs the package lm-eval, which is not installed; run pip install 'tersor[eval]'") from None
    manager = TaskManager(include_path=None if folder is None else str(folder))
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        raise InvalidArgument(f"lm-eval does not know the task {unknown[0]!r}; its own list is printed by 'lm-eval ls tasks'")

    def run(subject: Model) -> Any:
        options = {"backend": "causal", "batch_size": 8, "max_length": subject.max_context}
        wrapped = HFLM(pretrained=subject.module, tokenizer=subject.tokenizer, **options)
        # Seeds of None: the harness would otherwise reseed the global generators of the caller's process.
        seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"))
        try:
            return lm_eval.simple_evaluate(wrapped, tasks=tasks, limit=limit, task_manager=manager, bootstrap_iters=0, **seeds)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise TersorError(f"lm-eval failed on {', '.join(tasks)}: {reason}") from None

    began = time.perf_counter()
    own = run(model)
    other = None if reference is None else run(reference)
    seconds = (time.perf_counter() - began) / max(1, len(own["results"]))
    return [_result(model, name, own, other, seconds) for name in own["samples"]]


def _result(model: Model, name: str, own: Any, other: Any, seconds: float) -> TaskResult:
    metrics = own["results"][name]
    right = _right(own["samples"][name])
    versus = {} if other is None or right is None else compared(right, _right(other["samples"][name]))
    return TaskResult(
        name, model.name, len(own["samples"][name]), _metric(metrics, "acc") or 0.0, _metric(metrics, "acc_stderr"),
        _metric(metrics, "acc_norm"), _metric(metrics, "acc_norm_stderr"), perplexity=_metric(metrics, "perplexity"),
        perplexity_stderr=_metric(metrics, "perplexity_stderr"), **versus, backend="lm-eval", seconds=seconds,
        right=() if right is None else tuple(right.tolist()),
    )  # fmt: skip


def _metric(metrics: dict[str, Any], name: str) -> float | None:
    value = next((value for key, value in metrics.items() if key.partition(",")[0] == name), None)
    return float(value) if isinstance(value, (int, float)) else None


def _right(samples: list[dict[str, Any]]) -> Any:
    if not all("acc" in sample for sample in samples):
        return None
    return torch.tensor([bool(sample["acc"]) for sample in sorted(samples, key=lambda sample: int(sample["doc_id"]))])
