"""The update rules on problems whose answers are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tersor.distributed import MODES, ErrorFeedbackState, Logistic, Quadratics, RandK, Simulator, TopK, rate_bound
from tersor.errors import InvalidArgument


def simulated(problem: Any, mode: str, compressor: Any = "topk:0.1", start: torch.Tensor | None = None, **options: Any) -> Simulator:
    state = ErrorFeedbackState(mode, compressor, min_numel=1, vectors=True, **options)
    dimension = problem.gradients({"x": torch.zeros(1, dtype=torch.float64)}, 0)["x"].shape[1] if start is None else len(start)
    return Simulator(state, torch.zeros(dimension, dtype=torch.float64) if start is None else start, problem.gradients)


def quadratics(seed: int = 0, **options: Any) -> Quadratics:
    return Quadratics.random(5, 30, eigenvalues=(1.0, 20.0), seed=seed, **options)


def zeros(problem: Quadratics) -> torch.Tensor:
    return torch.zeros_like(problem.solution)


def test_compressed_sgd_diverges_by_the_known_factor_where_memories_converge():
    problem, ones = Quadratics.diverging(), torch.ones(3, dtype=torch.float64)
    csgd = simulated(problem, "csgd", TopK(k=1), ones).run(50, 0.01)["x"]
    torch.testing.assert_close(csgd, ones * (1 + 11 * 0.01 / 6) ** 50)
    for mode in ("ef", "ef21", "ef21_sgdm", "econtrol"):
        assert float(simulated(problem, mode, TopK(k=1), ones, init="zero").run(1500, 0.01)["x"].abs().max()) < 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_error_feedback_stalls_on_heterogeneous_data_where_control_does_not(seed: int):
    problem = quadratics(seed)
    distance = {}
    for mode in MODES:
        simulator = simulated(problem, mode, start=zeros(problem))
        simulator.run(1200, 0.01)
        distance[mode] = problem.distance(simulator.parameters)
    assert max(distance["econtrol"], distance["ef21"], distance["ef21_sgdm"]) < 1e-10
    assert distance["ef"] > 1e-4
    assert distance["csgd"] > distance["ef"]


@pytest.mark.parametrize("seed", range(3))
def test_control_does_without_knowing_them_what_the_gradients_at_the_solution_would_do(seed: int):
    """The ideal that EControl is derived from: error feedback on what is left of each gradient once its value at the solution is known."""
    problem = quadratics(seed)
    known = problem.gradients({"x": problem.solution}, 0)["x"]
    assert float(known.mean(0).norm()) < 1e-9  # so that the mean of the messages needs no correction
    ideal = Simulator(
        simulated(problem, "ef", start=zeros(problem)).state, zeros(problem),
        lambda parameters, step: {"x": problem.gradients(parameters, step)["x"] - known},
    )  # fmt: skip
    ideal.run(1200, 0.01)
    control = simulated(problem, "econtrol", start=zeros(problem))
    control.run(1200, 0.01)
    assert problem.distance(ideal.parameters) < 1e-10
    assert problem.distance(control.parameters) < 1e-10


@pytest.mark.parametrize("seed", range(3))
def test_logistic_regression_likewise(seed: int):
    problem = Logistic.random(4, 40, 12, seed=seed)
    start = torch.zeros(12, dtype=torch.float64)
    distance = {}
    for mode in ("csgd", "ef", "econtrol"):
        simulator = simulated(problem, mode, TopK(k=2), start)
        simulator.run(1500, 1.0)
        distance[mode] = problem.distance(simulator.parameters)
    assert distance["econtrol"] < 1e-3 * min(distance["ef"], distance["csgd"])


def test_without_feedback_it_is_ef21_bit_for_bit():
    problem = quadratics(noise=1.0)
    control, ef21 = (simulated(problem, mode, start=zeros(problem), eta=0.0) for mode in ("econtrol", "ef21"))
    assert torch.equal(control.run(60, 0.01)["x"], ef21.run(60, 0.01)["x"])


@pytest.mark.parametrize("mode", ["csgd", "ef", "ef21", "econtrol"])
@pytest.mark.parametrize("init", ["dense", "zero", "compressed"])
def test_without_compression_every_rule_is_plain_descent(mode: str, init: str):
    problem = quadratics(noise=1.0)
    x = zeros(problem)
    for step in range(40):
        x = x - 0.01 * problem.gradients({"x": x}, step)["x"].mean(0)
    torch.testing.assert_close(simulated(problem, mode, "identity", zeros(problem), init=init).run(40, 0.01)["x"], x)


def test_momentum_without_compression_is_momentum():
    problem = quadratics(noise=1.0)
    x, average = zeros(problem), None
    for step in range(40):
        gradient = problem.gradients({"x": x}, step)["x"].mean(0)
        average = gradient if average is None else 0.7 * average + 0.3 * gradient
        x = x - 0.01 * average
    torch.testing.assert_close(simulated(problem, "ef21_sgdm", "identity", zeros(problem), beta=0.3).run(40, 0.01)["x"], x)


@pytest.mark.parametrize("mode", ["ef", "econtrol"])
@pytest.mark.parametrize("compressor", ["topk:0.1", "sign", "quant:2", "randk:0.2"])
def test_the_virtual_iterate_does_uncompressed_descent(mode: str, compressor: str):
    problem, rate = quadratics(noise=1.0), 0.003
    simulator = simulated(problem, mode, compressor, zeros(problem), init="zero")
    for step in range(30):
        expected = simulator.virtual(rate)["x"] - rate * problem.gradients(simulator.parameters, step)["x"].mean(0)
        simulator.run(1, rate)
        torch.testing.assert_close(simulator.virtual(rate)["x"], expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("mode", ["ef21", "ef21_sgdm", "econtrol"])
@pytest.mark.parametrize("init", ["dense", "zero", "compressed"])
def test_the_server_has_the_mean_of_what_is_tracked(mode: str, init: str):
    problem = quadratics(noise=1.0)
    simulator = simulated(problem, mode, start=zeros(problem), init=init)
    for _ in range(20):
        simulator.run(1, 0.01)
        tracked = simulator.state.local["x"]["tracked"].mean(0)
        torch.testing.assert_close(simulator.state.shared["x"]["server"], tracked, rtol=1e-12, atol=1e-9)


def test_matrices_of_low_rank_are_tracked_too():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(4, 12, 9, generator=generator, dtype=torch.float64)
    state = ErrorFeedbackState("econtrol", "lowrank:2", min_numel=1)
    simulator = Simulator(state, {"w": torch.zeros(12, 9, dtype=torch.float64)}, lambda p, step: {"w": p["w"] - targets})
    simulator.run(600, 0.05)
    torch.testing.assert_close(simulator.parameters["w"], targets.mean(0), rtol=1e-6, atol=1e-6)
    assert state.shared["w"]["warm"].shape == (9, 2)


def noisy_floor(mode: str, workers: int, compressor: str = "topk:0.1") -> float:
    """Mean squared distance over the last half of a run under noise, near the solution."""
    problem = Quadratics.random(workers, 20, eigenvalues=(1.0, 20.0), offset=1.0, noise=5.0, seed=1)
    simulator = simulated(problem, mode, compressor, problem.solution.clone())
    seen: list[float] = []
    solution = problem.solution
    simulator.run(1500, 0.001, lambda step, parameters: seen.append(float((parameters["x"] - solution).square().sum())))
    return sum(seen[500:]) / 1000


def test_more_workers_average_the_noise_away():
    four = noisy_floor("econtrol", 4)
    assert 2.5 < four / noisy_floor("econtrol", 16) < 6.5  # 4 if the speed-up is linear
    assert noisy_floor("ef21", 4) > 2 * four


def test_bytes_are_counted():
    problem = quadratics()
    simulator = simulated(problem, "ef", start=zeros(problem))
    simulator.run(10, 0.01)
    assert simulator.state.traffic()["ideal_bits"] == 10 * 3 * (32 + 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "sgd"}, "unknown mode 'sgd'; choose one of csgd, ef, ef21, ef21_sgdm, econtrol"),
        ({"compressor": "topk:2"}, "above 0 and at most 1"), ({"eta": 2}, "eta must be 'auto' or a number from 0 to 1"),
        ({"eta": "best"}, "eta must be"), ({"beta": 0}, "beta must be above 0"), ({"init": "warm"}, "init must be one of dense, zero"),
        ({"min_numel": 0}, "min_numel must be"), ({"compressor": RandK(rescale=True)}, "needs a compressor that contracts"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(InvalidArgument, match=message):
        ErrorFeedbackState(**options)


def test_a_gradient_that_is_not_finite_is_named():
    state = ErrorFeedbackState("ef", "topk:0.1", min_numel=1, vectors=True)
    with pytest.raises(InvalidArgument, match="the gradient of x holds NaN or Inf"):
        Simulator(state, torch.zeros(10), lambda p, step: {"x": torch.full((2, 10), float("nan"))}).run(1, 0.1)


def test_small_tensors_and_vectors_travel_dense():
    state = ErrorFeedbackState("econtrol", "topk:0.01")
    assert state.compressor_of("bias", (5000,)) is None
    assert state.compressor_of("small", (10, 10)) is None
    assert state.compressor_of("large", (100, 100)) == TopK(ratio=0.01)
    assert ErrorFeedbackState("ef", "lowrank:60").compressor_of("large", (100, 100)) is None  # would be larger than the matrix


def test_rate_bounds_fall_with_workers_and_know_their_arguments():
    common = {"delta": 0.01, "noise": 1.0, "smoothness": 10.0}
    for function in ("strongly_convex", "convex", "nonconvex"):
        one, four = (rate_bound(function, 1e-14, workers=workers, **common) for workers in (1, 4))
        assert 3 < one / four <= 4  # the leading term prevails at high accuracy
    with pytest.raises(InvalidArgument, match="function must be one of"):
        rate_bound("linear", 0.1, workers=1, **common)
    with pytest.raises(InvalidArgument, match="must be positive"):
        rate_bound("convex", 0.0, workers=1, **common)
