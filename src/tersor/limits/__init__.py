"""What cannot be beaten: provable bounds as calculators, the instances that prove them, and harnesses that confront systems with them."""

from tersor.limits import bandits, bandlimited, generalization, stationary_points
from tersor.limits.registry import Bound, Statement, collect, find_bound, parse_arguments, state

LIMITS = (*stationary_points.LIMITS, *bandlimited.LIMITS, *bandits.LIMITS, *generalization.LIMITS)
BOUNDS = collect(LIMITS)

__all__ = [
    "BOUNDS",
    "LIMITS",
    "Bound",
    "Statement",
    "bandits",
    "bandlimited",
    "collect",
    "find_bound",
    "generalization",
    "parse_arguments",
    "state",
    "stationary_points",
]
