"""What was lost: perplexity, divergence, tasks, bytes, speed, and the report of a run."""

from tersor.evaluation.evaluate import Evaluation, evaluate, size_by_class
from tersor.evaluation.run_report import LayerRow, ReportRow, RunReport
from tersor.evaluation.speed import Speed, measure_speed

__all__ = ["Evaluation", "LayerRow", "ReportRow", "RunReport", "Speed", "evaluate", "measure_speed", "size_by_class"]
