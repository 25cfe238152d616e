"""How many words attention must move between a slow and a fast memory: schedules that are counted while they run, and the bound."""

from tersor.attention.io.bounds import (
    LIMITS,
    Recommendation,
    compression_game_words,
    law,
    lower_bound,
    recommend,
    sweep,
)
from tersor.attention.io.chart import chart, write_chart
from tersor.attention.io.machine import Block, CacheOverflow, IOMachine
from tersor.attention.io.pebbling import attention_trace, misses, optimal_pebbling
from tersor.attention.io.schedules import IOReport, simulate
from tersor.attention.io.tiles import SCHEDULES, Count, Schedule, Tiles, choose_tiles, count

__all__ = [
    "LIMITS",
    "SCHEDULES",
    "Block",
    "CacheOverflow",
    "Count",
    "IOMachine",
    "IOReport",
    "Recommendation",
    "Schedule",
    "Tiles",
    "attention_trace",
    "chart",
    "choose_tiles",
    "compression_game_words",
    "count",
    "law",
    "lower_bound",
    "misses",
    "optimal_pebbling",
    "recommend",
    "simulate",
    "sweep",
    "write_chart",
]
