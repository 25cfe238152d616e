"""LLM-KICK: what compression loses that perplexity does not show, in five families of tasks compared with the original.

Reference:
    Jaiswal et al., "Compressing LLMs: the truth is rarely pure and never simple" (2024).
"""

from tersor.evaluation.kick.bench import KickBench, KickReport, KickRow, Misleading, misleading
from tersor.evaluation.kick.defaults import kick_tasks, run_kick
from tersor.evaluation.kick.facts import country_items
from tersor.evaluation.kick.items import (
    Choice,
    Item,
    choice_items,
    factoid_items,
    instruction_items,
    open_domain_items,
    retrieval_items,
    summary_item,
    summary_items,
)
from tersor.evaluation.kick.judges import Judge, SingleJudge, compare, likelihood_judge, repetition_judge, rouge_judge
from tersor.evaluation.kick.measures import contains, exact, normalised, repetition, rouge_l, rouge_n, word_f1
from tersor.evaluation.kick.resampling import Interval, Paired, bootstrap
from tersor.evaluation.kick.tasks import Answers, FactoidQA, Instructions, KickTask, MultipleChoice, RetrievalQA, Summarization
from tersor.evaluation.kick.turns import second_turn_items

__all__ = [
    "Answers", "Choice", "FactoidQA", "Instructions", "Interval", "Item", "Judge", "KickBench", "KickReport", "KickRow", "KickTask",
    "Misleading", "MultipleChoice", "Paired", "RetrievalQA", "SingleJudge", "Summarization", "bootstrap", "choice_items", "compare",
    "contains", "country_items", "exact", "factoid_items", "instruction_items", "kick_tasks", "likelihood_judge", "misleading",
    "normalised", "open_domain_items", "repetition", "repetition_judge", "retrieval_items", "rouge_judge", "rouge_l", "rouge_n",
    "run_kick", "second_turn_items", "summary_item", "summary_items", "word_f1",
]  # fmt: skip
