"""The five families from local files, and the comparison that the command line prints."""

from __future__ import annotations

from pathlib import Path

from tersor.errors import InvalidArgument
from tersor.evaluation.divergence import Progress
from tersor.evaluation.kick.bench import KickBench, KickReport
from tersor.evaluation.kick.items import choice_items, factoid_items, instruction_items, retrieval_items, summary_items
from tersor.evaluation.kick.judges import Judge, likelihood_judge, repetition_judge, rouge_judge
from tersor.evaluation.kick.tasks import FactoidQA, Instructions, KickTask, MultipleChoice, RetrievalQA, Summarization
from tersor.evaluation.kick.turns import second_turn_items
from tersor.models import Model

DEFAULT_ITEMS = 300  # of a family whose files have as many


def kick_tasks(dense: Model, *, folder: str | Path | None = None, limit: int = DEFAULT_ITEMS, judge: Judge | None = None) -> list[KickTask]:
    """Seven tasks of the five families; the second turns follow on the original's own first answers.

    Args:
        dense: The original, whose likelihood is one of the judges.
        folder: Of the task files; ``$TERSOR_DATA/tasks`` without it.
        limit: Items of each task at most.
        judge: A judge of your own for summaries and instructions, listed first.

    Raises:
        InvalidArgument: If a file is missing or the limit is below 1.
    """
    if limit < 1:
        raise InvalidArgument(f"limit must be at least 1, got {limit}")
    own: dict[str, Judge] = {} if judge is None else {"judge": judge}
    offline: dict[str, Judge] = {"likelihood": likelihood_judge(dense), "no_repetition": repetition_judge()}
    return [
        FactoidQA(tuple(factoid_items(folder, limit))),
        MultipleChoice(tuple(choice_items(folder, limit))),
        RetrievalQA(tuple(retrieval_items(False, folder, limit)), name="closed book"),
        RetrievalQA(tuple(retrieval_items(True, folder, limit)), name="open book"),
        Summarization(tuple(summary_items(folder, limit)), judges={**own, "rouge_l": rouge_judge("L"), **offline}),
        Instructions(tuple(instruction_items(folder, limit)), judges={**own, **offline}),
        Instructions(tuple(second_turn_items(dense, folder, limit)), name="second turn", judges={**own, **offline}),
    ]


def run_kick(
    model: Model, reference: Model | None, *, limit: int | None = None, folder: str | Path | None = None, text: str | None = None,
    tokens: int = 8192, progress: Progress | None = None,
) -> KickReport:  # fmt: skip
    """LLM-KICK of one model against its original, with the perplexity of both beside it; the original's own rows come first.

    Args:
        model: The compressed one.
        reference: The original; the benchmark is a comparison and cannot do without.
        limit: Items of each task at most, 300 without it.
        folder: Of the task files; ``$TERSOR_DATA/tasks`` without it.
        text: For perplexity, as for :func:`tersor.evaluation.perplexity`.
        tokens: Of that text.
        progress: Told of every answered item.

    Raises:
        InvalidArgument: Without a reference, or if a file is missing.
    """
    from tersor.evaluation.perplexity import perplexity

    if reference is None:
        raise InvalidArgument("the kick tasks compare a model with its original; name it with --reference")
    bench = KickBench(kick_tasks(reference, folder=folder, limit=DEFAULT_ITEMS if limit is None else limit))
    known = bench.ask(reference, progress)

    def measured(each: Model) -> float:
        return perplexity(each, text, max_tokens=tokens).value

    rows = bench.compare("original", known, known, measured(reference))
    return KickReport((*rows, *bench.judge(model.name, model, known, measured(model), progress)))
