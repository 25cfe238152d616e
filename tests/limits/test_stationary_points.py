"""Hard functions for finding stationary points: their constants, their chain, and what optimisers need on them."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.errors import InvalidArgument
from tersor.limits import stationary_points as sp
from tersor.limits.stationary_points import constants
from tersor.limits.stationary_points.chain import ramp, step
from tersor.limits.stationary_points.stochastic import switch


def points(seed: int, n: int, length: int, spread: float = 2.0) -> torch.Tensor:
    return spread * torch.randn(n, length, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_gradient_is_that_of_autograd_and_of_differences():
    x = points(0, 200, 7).requires_grad_()
    (expected,) = torch.autograd.grad(sp.chain_value(x).sum(), x)
    torch.testing.assert_close(sp.chain_gradient(x.detach()), expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(sp.chain_value, points(1, 20, 5).requires_grad_(), atol=1e-7)
    # Near 1/2 the derivatives of the step are 0 times infinity unless the argument is masked.
    edge = torch.full((1, 3), 0.5 + 1e-9, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(sp.chain_value(edge).sum(), edge)
    assert torch.isfinite(slope).all()


@pytest.mark.parametrize("order", range(5))
def test_suprema_in_closed_form_are_those_of_a_grid(order):
    x = torch.linspace(-6, 6, 4001, dtype=torch.float64, requires_grad=True)
    for function, supremum in ((step, constants.step_supremum), (ramp, constants.ramp_supremum)):
        value = function(x)
        for _ in range(order):
            (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        largest = float(value.abs().max())
        # The step reaches its supremum, e, only at infinity, the ramp too.
        assert largest <= supremum(order) * (1 + 1e-12)
        assert largest > supremum(order) * (0.97 if order == 0 else 0.999)


def test_the_papers_constants_follow():
    assert 151 < constants.derivative_bound(2) < sp.smoothness_constant(1) == 152
    assert constants.step_supremum(0) * constants.ramp_supremum(0) < constants.GAP
    largest = constants.step_supremum(0) * constants.ramp_supremum(1) + constants.step_supremum(1) * constants.ramp_supremum(0)
    assert 22.8 < largest < constants.LARGEST_PARTIAL
    assert constants.step_supremum(1) == pytest.approx(math.sqrt(54 / math.e))


@pytest.mark.parametrize("spread", [0.5, 1.0, 3.0])
def test_no_point_in_thousands_violates_a_constant(spread):
    x = points(2, 20000, 8, spread)
    gradient = sp.chain_gradient(x)
    assert float(gradient.abs().max()) <= constants.LARGEST_PARTIAL
    assert float((sp.chain_value(torch.zeros(8, dtype=torch.float64)) - sp.chain_value(x)).max()) <= constants.GAP * 8
    unfinished = x.abs().amin(-1) < 1
    assert unfinished.sum() > 1000
    assert float(gradient[unfinished].norm(dim=-1).min()) > 1
    y = x + 0.05 * points(3, 20000, 8)
    ratio = (gradient - sp.chain_gradient(y)).norm(dim=-1) / (x - y).norm(dim=-1)
    assert 20 < float(ratio.max()) <= constants.SMOOTHNESS


@pytest.mark.parametrize("order", [2, 3])
def test_higher_derivatives_respect_their_constant(order):
    x, v = points(4, 1000, 6, 1.2), points(5, 1000, 6)
    v = v / v.norm(dim=-1, keepdim=True)
    t = torch.zeros(1000, 1, dtype=torch.float64, requires_grad=True)
    value = sp.chain_value(x + t * v)
    for _ in range(order + 1):
        (value,) = torch.autograd.grad(value.sum(), t, create_graph=True)
    assert float(value.abs().max()) <= sp.smoothness_constant(order)


def test_the_height_of_the_chain_is_almost_that_of_the_bound():
    x = torch.full((40,), 30.0, dtype=torch.float64)
    dropped = float(sp.chain_value(torch.zeros(40, dtype=torch.float64)) - sp.chain_value(x))
    assert 10.5 * 40 < dropped <= constants.GAP * 40


@given(st.integers(0, 7), st.integers(0, 2**20))
@settings(max_examples=30, deadline=None)
def test_a_gradient_shows_one_coordinate_more(found, seed):
    x = points(seed, 1, 8)[0]
    x[found:] = 0.49 * torch.tanh(x[found:])
    gradient = sp.chain_gradient(x)
    assert not gradient[found + 1 :].any()
    assert float(gradient.norm()) > 1
    # Nor does it depend on what is still hidden, so long as that stays below one half.
    other = x.clone()
    other[found + 1 :] = 0
    assert torch.equal(sp.chain_gradient(other), gradient)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_exponent_of_the_bound(order):
    eps = np.logspace(-6, -9, 7)
    bounds = [sp.query_lower_bound(order=order, gap=10.0, eps=float(e)) for e in eps]
    slope = np.polyfit(np.log(eps), np.log(bounds), 1)[0]
    assert slope == pytest.approx(-(1 + order) / order, rel=1e-3)


def test_exponents_of_the_stochastic_bounds():
    eps = np.logspace(-6, -8, 5)
    for bound, expected in ((sp.stochastic_lower_bound, -4), (sp.mean_squared_lower_bound, -3)):
        slope = np.polyfit(np.log(eps), np.log([bound(eps=float(e), gap=100.0)["bound"] for e in eps]), 1)[0]
        assert slope == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(("order", "smoothness", "eps"), [(1, 0.5, 0.0117), (1, 20.0, 0.074), (2, 0.5, 0.0075), (2, 20.0, 0.025)])
def test_the_hardest_chain_meets_what_the_bound_assumes(order, smoothness, eps):
    chain = sp.ChainFunction.hardest(order=order, smoothness=smoothness, gap=4.0, eps=eps)
    assert 7 <= chain.length <= 9
    x = chain.scale * points(6, 3000, chain.length, 1.5)
    assert chain.gap <= 4.0 * (1 + 1e-9)
    assert float((chain(torch.zeros(chain.length)) - chain(x)).max()) <= 4.0
    unfinished = (x / chain.scale).abs().amin(-1) < 1
    assert float(chain.gradient(x[unfinished]).norm(dim=-1).min()) > chain.eps
    if order == 1:
        y = x + 0.05 * chain.scale * points(7, 3000, chain.length)
        assert float(((chain.gradient(x) - chain.gradient(y)).norm(dim=-1) / (x - y).norm(dim=-1)).max()) <= smoothness


def test_hessian_products():
    chain, x, v = sp.ChainFunction(5, scale=0.3, height=2.0), points(8, 1, 5, 0.3)[0], points(9, 1, 5)[0]
    step_size = 1e-6
    expected = (chain.gradient(x + step_size * v) - chain.gradient(x - step_size * v)) / (2 * step_size)
    torch.testing.assert_close(chain.hvp(x, v), expected, rtol=1e-5, atol=1e-5)


def test_gradient_descent_takes_the_known_number_of_calls():
    assert [sp.count_calls(sp.gradient_descent(0.05), sp.ChainFunction(length)).calls for length in (10, 20)] == [85, 147]


OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.5),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.05),
    "lbfgs": lambda p: torch.optim.LBFGS(p, line_search_fn="strong_wolfe"),
}


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("length", [4, 9])
def test_no_optimiser_beats_the_resisting_oracle(name, length):
    run = sp.bench_optimizer(OPTIMISERS[name], sp.ResistingOracle(sp.ChainFunction(length)), budget=3000)
    assert run.calls > length
    assert run.reached
    assert run.progress == length


@pytest.mark.parametrize("method", ["CG", "BFGS", "L-BFGS-B", "SLSQP"])
def test_the_bound_is_nearly_tight(method):
    run = sp.count_calls(sp.scipy_minimiser(method), sp.ResistingOracle(sp.ChainFunction(8)))
    assert run.reached
    assert 8 < run.calls <= 12


@pytest.mark.parametrize("seed", range(3))
def test_random_queries_find_at_most_one_coordinate_each_and_answers_stay_true(seed):
    length, random = 6, torch.Generator().manual_seed(seed)
    oracle = sp.ResistingOracle(sp.ChainFunction(length), 15, seed=seed)
    asked, answers = [], []
    for t in range(length):
        # An adversary of the adversary, who even draws alike: far points, in the span of what was seen and outside of it.
        x = 5 * oracle.columns.sum(1) + 3 * torch.randn(15, dtype=torch.float64, generator=random)
        asked.append(x)
        answers.append(oracle.query(x))
        assert int(oracle.progress(x)) <= t
        assert float(answers[-1][1].norm()) > 1
    columns = oracle.columns
    torch.testing.assert_close(columns.T @ columns, torch.eye(length, dtype=torch.float64), rtol=0, atol=1e-12)
    for x, (value, gradient) in zip(asked, answers, strict=True):
        final_value, final_gradient = oracle.evaluate(x)
        torch.testing.assert_close(final_value, value, rtol=0, atol=1e-10)
        torch.testing.assert_close(final_gradient, gradient, rtol=0, atol=1e-9)


@pytest.mark.parametrize("smooth", [False, True], ids=["sharp", "smooth"])
@pytest.mark.parametrize("q", [1.0, 0.3, 0.05])
def test_stochastic_gradients_are_unbiased_and_of_bounded_variance(smooth, q):
    chain = sp.ChainFunction(6, scale=0.7, height=1.3)
    oracle = sp.StochasticChain(chain, q, smooth=smooth)
    x = points(10, 4000, 6, 0.5)
    hit, miss = (oracle.draw(x, torch.full((4000,), z)) for z in (1, 0))
    mean = q * hit + (1 - q) * miss
    torch.testing.assert_close(mean, chain.gradient(x), rtol=1e-9, atol=1e-9)
    variance = q * (hit - mean).square().sum(-1) + (1 - q) * (miss - mean).square().sum(-1)
    assert float(variance.max()) <= sp.chain_variance(chain, q) * (1 + 1e-9)
    # A miss shows nothing that lies beyond the progress made at 1/4.
    beyond = torch.arange(1, 7) > oracle.progress(x).unsqueeze(-1)
    assert not miss[beyond].abs().max() > 1e-9


def test_the_smooth_variant_is_mean_squared_smooth():
    q = 0.1
    oracle = sp.StochasticChain(sp.ChainFunction(6), q, smooth=True)
    x = points(11, 20000, 6, 0.6)
    y = x + 0.03 * points(12, 20000, 6)
    squares = sum(
        weight * (oracle.draw(x, torch.full((20000,), z)) - oracle.draw(y, torch.full((20000,), z))).square().sum(-1)
        for z, weight in ((1, q), (0, 1 - q))
    )
    ratio = (squares.sqrt() / (x - y).norm(dim=-1)).max()
    assert float(ratio) <= constants.MEAN_SQUARED_SMOOTHNESS / math.sqrt(q)


def test_the_switch_is_smooth_and_monotone():
    t = torch.linspace(0.2, 0.55, 5001, dtype=torch.float64)
    value = switch(t)
    assert float(value.diff().min()) > -1e-12
    assert float(value[0]) == 0.0
    assert float(value[-1]) == pytest.approx(1.0)
    assert float(switch(torch.tensor(0.375))) == pytest.approx(0.5)
    # The papers' bound on its slope is 6.
    assert float(value.diff().max() / t.diff()[0]) <= 6


def test_noise_multiplies_the_calls_by_one_over_q():
    def calls(q: float) -> float:
        """Median over 300 runs at once. Steps are so large that one sight of a coordinate is enough: what is counted is the wait for it."""
        oracle, random = sp.StochasticChain(sp.ChainFunction(15), q), torch.Generator().manual_seed(0)
        x, done = torch.zeros(300, 15, dtype=torch.float64), torch.zeros(300)
        for step_number in range(1, int(40 / q)):
            done[(done == 0) & (oracle.gradient(x).norm(dim=-1) <= 1)] = step_number
            x = x - q * oracle.draw(x, torch.rand(300, generator=random) < q)
        return statistics.median(done.tolist())

    slow, fast = calls(0.1), calls(0.2)
    assert fast >= 15
    assert slow / fast == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize("seed", range(5))
def test_stochastic_bound_holds_run_by_run(seed):
    length, q = 12, 0.1
    run = sp.count_calls(sp.gradient_descent(0.5 * q), sp.StochasticChain(sp.ChainFunction(length), q, seed=seed), budget=20000)
    assert run.calls >= (length - math.log(100)) / (2 * q)


def test_a_budget_stops_and_an_optimiser_may_give_up():
    run = sp.count_calls(sp.gradient_descent(0.05), sp.ChainFunction(10), budget=7)
    assert (run.calls, run.reached) == (7, False)
    assert run.smallest > 1
    assert sp.count_calls(lambda oracle, start: None, sp.ChainFunction(3)).calls == 0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: sp.ChainFunction(0), "length must be an integer of at least 1"),
        (lambda: sp.ChainFunction(3, scale=0.0), "scale must be a number"),
        (lambda: sp.ChainFunction(3, eps=math.nan), "eps must be a number"),
        (lambda: sp.ChainFunction.hardest(gap=1.0, eps=1.0), "too low for a chain"),
        (lambda: sp.ResistingOracle(sp.ChainFunction(5), 9), "at least twice the length of the chain, 10"),
        (lambda: sp.StochasticChain(sp.ChainFunction(5), 0.0), "q must be a probability"),
        (lambda: sp.query_lower_bound(order=0), "order must be an integer from 1 to 12"),
        (lambda: sp.query_lower_bound(eps=math.inf), "eps must be a number"),
        (lambda: sp.stochastic_lower_bound(failure=1.0), "failure must be a number"),
        (lambda: sp.scipy_minimiser("Nelder-Mead"), "method must be one of"),
        (lambda: sp.required_dimension(0), "length must be an integer"),
    ],
)
def test_bad_input_is_one_sentence(call, said):
    with pytest.raises(InvalidArgument, match=said):
        call()


def test_a_random_rotation_needs_far_more_dimensions_than_the_resisting_oracle():
    assert sp.required_dimension(10) > 1000 * 2 * 10
    assert sp.required_dimension(20) > 4 * sp.required_dimension(10)
