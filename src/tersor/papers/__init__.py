"""The forty papers: each one's claim, a real experiment that fits a laptop, and a table."""

from tersor.papers.catalogue import Entry, catalogue
from tersor.papers.frame import Paper, Reproduction, Result, find_paper, reproduce

__all__ = ["Entry", "Paper", "Reproduction", "Result", "catalogue", "find_paper", "reproduce"]
