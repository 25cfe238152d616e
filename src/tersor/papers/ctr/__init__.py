"""Click-through rate prediction, small: data, four models, their training and compression; material of an experiment, not the library."""

from tersor.papers.ctr.compression import Ranks, compress, pack
from tersor.papers.ctr.data import ClickData, Clicks, load_clicks
from tersor.papers.ctr.models import KINDS, CTRModel, build
from tersor.papers.ctr.training import Score, latency, score, train

__all__ = [
    "KINDS",
    "CTRModel",
    "ClickData",
    "Clicks",
    "Ranks",
    "Score",
    "build",
    "compress",
    "latency",
    "load_clicks",
    "pack",
    "score",
    "train",
]
