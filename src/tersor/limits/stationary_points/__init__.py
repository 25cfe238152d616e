"""Functions on which finding a stationary point takes many oracle calls, the bounds, and a harness for any optimiser."""

from tersor.limits.stationary_points.bench import (
    Instance,
    Minimiser,
    OptimizerFactory,
    Oracle,
    Run,
    bench_optimizer,
    count_calls,
    gradient_descent,
    scipy_minimiser,
)
from tersor.limits.stationary_points.bounds import (
    mean_squared_lower_bound,
    query_lower_bound,
    required_dimension,
    stochastic_lower_bound,
)
from tersor.limits.stationary_points.chain import ChainFunction, chain_gradient, chain_value, progress
from tersor.limits.stationary_points.constants import smoothness_constant
from tersor.limits.stationary_points.resisting import ResistingOracle
from tersor.limits.stationary_points.statements import LIMITS
from tersor.limits.stationary_points.stochastic import StochasticChain, chain_variance

__all__ = [
    "LIMITS",
    "ChainFunction",
    "Instance",
    "Minimiser",
    "OptimizerFactory",
    "Oracle",
    "ResistingOracle",
    "Run",
    "StochasticChain",
    "bench_optimizer",
    "chain_gradient",
    "chain_value",
    "chain_variance",
    "count_calls",
    "gradient_descent",
    "mean_squared_lower_bound",
    "progress",
    "query_lower_bound",
    "required_dimension",
    "scipy_minimiser",
    "smoothness_constant",
    "stochastic_lower_bound",
]
