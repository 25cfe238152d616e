"""Finding the best of many actions whose rewards are nearly a sparse linear function, and what that must cost."""

from tersor.allocation import configuration_search
from tersor.limits.bandits.bounds import design_gap_bound, gap_bound, needle_bound, query_bound
from tersor.limits.bandits.design import optimal_design
from tersor.limits.bandits.instances import BanditInstance, needle_instance, sparse_instance
from tersor.limits.bandits.recovery import recover
from tersor.limits.bandits.search import Found, SparseMisspecifiedSearch, Strategy
from tersor.limits.bandits.statements import LIMITS

__all__ = [
    "LIMITS", "BanditInstance", "Found", "SparseMisspecifiedSearch", "Strategy", "configuration_search", "design_gap_bound", "gap_bound",
    "needle_bound", "needle_instance", "optimal_design", "query_bound", "recover", "sparse_instance",
]  # fmt: skip
