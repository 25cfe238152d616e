"""What was lost: perplexity, divergence from the original, tasks, bytes, speed, and the report of a run."""

from tersor.evaluation.disagreement import Disagreement, disagreement
from tersor.evaluation.evaluate import Evaluation, difference, evaluate
from tersor.evaluation.perplexity import perplexity
from tersor.evaluation.report import write_report
from tersor.evaluation.run_report import LayerRow, ReportRow, RunReport
from tersor.evaluation.size import Size, size_of
from tersor.evaluation.speed import Load, Speed, measure_load, measure_speed
from tersor.evaluation.statistics import Estimate
from tersor.evaluation.tasks import TaskResult, run_tasks

__all__ = [
    "Disagreement", "Estimate", "Evaluation", "LayerRow", "Load", "ReportRow", "RunReport", "Size", "Speed", "TaskResult", "difference",
    "disagreement", "evaluate", "measure_load", "measure_speed", "perplexity", "run_tasks", "size_of", "write_report",
]  # fmt: skip
