"""Choices for each layer: error tables against the compressors themselves, and the choice against its bounds."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from tersor.distributed import Accordion, AccordionState, Context, LGreCoState, LowRank, Simulator, TopK, UniformQuant
from tersor.distributed.error_tables import candidates, errors, with_knob
from tersor.errors import InvalidArgument


def matrix(rows: int, columns: int, decay: float, seed: int = 0) -> torch.Tensor:
    """A matrix whose singular values fall by ``decay`` each."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(n, min(rows, columns), generator=generator)).Q for n in (rows, columns))
    return (left * decay ** torch.arange(min(rows, columns))) @ right.T


@pytest.mark.parametrize("family", [TopK(ratio=0.1), UniformQuant(bits=3, bucket=50)], ids=repr)
def test_tables_say_what_the_compressor_loses(family: Any):
    x, shape = matrix(20, 15, 0.9).flatten(), (20, 15)
    knobs = candidates(family, shape, 0.5, 2.0)
    table = errors(family, knobs, x, shape)
    assert len(knobs) >= 3
    for knob, error in zip(knobs, table.tolist(), strict=True):
        turned, context = with_knob(family, knob), Context("", shape)
        sent = turned.decompress(turned.compress(x[None], context), context)
        assert float((sent - x).norm()) == pytest.approx(error, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(errors(family, knobs, x, shape, "l2sq"), table.square())


@pytest.mark.parametrize("shape", [(20, 15), (15, 20), (6, 5, 4)], ids=str)
def test_tables_of_ranks_are_tails_of_the_spectrum(shape: tuple[int, ...]):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(x.reshape(shape[0], -1).double())
    expected = [float(values[rank:].square().sum().sqrt()) for rank in (1, 2, 4)]
    assert errors(LowRank(rank=2), [1, 2, 4], x.flatten(), shape).tolist() == pytest.approx(expected, rel=1e-6)


def test_candidates_stay_in_range_and_never_exceed_the_dense_tensor():
    assert candidates(LowRank(rank=4), (100, 80), 0.5, 2.0) == list(range(2, 9))
    assert candidates(LowRank(rank=1), (100, 80), 0.5, 2.0) == [1, 2]
    assert candidates(LowRank(rank=4), (5, 80), 0.5, 2.0) == [2, 3, 4]
    assert candidates(UniformQuant(bits=6), (100, 80), 0.5, 2.0) == list(range(3, 9))
    assert candidates(UniformQuant(bits=3), (100, 80), 0.1, 1.0) == [2, 3]
    assert candidates(UniformQuant(bits=1), (100, 80), 0.5, 2.0) == [1, 2]
    densities = candidates(TopK(ratio=0.3), (10, 10), 0.25, 4.0)
    assert densities[0] == 7
    assert 30 in densities
    assert all(8 * k <= 400 for k in densities)


def adjusted(layers: dict[str, torch.Tensor], compressor: str = "lowrank:4", mode: str = "ef", **options: Any) -> LGreCoState:
    """A state after its first choice, on gradients that stay the same."""
    options = {"adjust_every": 3, "accumulate": 2, **options}
    state = LGreCoState(mode, compressor, min_numel=1, **options)
    rows = {name: layer[None] for name, layer in layers.items()}
    Simulator(state, {name: torch.zeros_like(layer) for name, layer in layers.items()}, lambda p, step: rows).run(4, 0.0)
    return state


def test_ranks_move_to_where_they_are_needed_and_bytes_drop():
    layers = {"flat": matrix(40, 40, 0.99), "steep": matrix(40, 40, 0.2, seed=1)}
    state = adjusted(layers)
    assert state.knobs["steep"] < 4 <= state.knobs["flat"]
    row = state.history[-1]
    assert row["nbytes"] < row["uniform_nbytes"]
    assert row["error"] <= row["uniform_error"]


def test_equal_layers_keep_the_uniform_setting():
    layer = matrix(40, 40, 0.9)
    row = adjusted({"a": layer, "b": layer.clone(), "c": layer.clone()}).history[-1]
    assert row["nbytes"] == row["uniform_nbytes"]


@pytest.mark.parametrize("compressor", ["lowrank:3", "topk:0.05", "quant:3"])
@pytest.mark.parametrize("seed", range(3))
def test_the_choice_is_the_cheapest_within_the_error(compressor: str, seed: int):
    sizes = ((30, 20), (12, 40), (25, 25))
    layers = {str(i): matrix(*size, 0.6 + 0.12 * ((i + seed) % 3), seed=seed) for i, size in enumerate(sizes)}
    state = adjusted(layers, compressor, mode="csgd", high=1.4, low=0.7)  # without memory the target is the gradient itself
    menus = {name: candidates(state.compressor, tuple(layer.shape), 0.7, 1.4) for name, layer in layers.items()}
    tables = {name: errors(state.compressor, menus[name], layer.flatten(), tuple(layer.shape)) for name, layer in layers.items()}
    costs = {name: [with_knob(state.compressor, k).nbytes(tuple(layer.shape)) for k in menus[name]] for name, layer in layers.items()}
    allowed = state.history[-1]["uniform_error"]
    best = min(
        sum(costs[name][i] for name, i in zip(layers, picks, strict=True))
        for picks in product(*(range(len(menus[name])) for name in layers))
        if sum(float(tables[name][i]) for name, i in zip(layers, picks, strict=True)) <= allowed * (1 + 1e-9)
    )
    row = state.history[-1]
    assert row["error"] <= allowed * (1 + 1e-9)
    assert best <= row["nbytes"] <= best * 1.02  # what rounding to ten thousand steps of error may cost


def test_more_error_costs_fewer_bytes():
    layers = {"a": matrix(40, 40, 0.8), "b": matrix(30, 50, 0.7, seed=1)}
    spent = [adjusted(layers, alpha=alpha, low=0.25).history[-1]["nbytes"] for alpha in (1.0, 1.2, 1.6)]
    assert spent[0] > spent[1] > spent[2]


def test_an_error_that_cannot_be_reached_takes_the_largest_settings():
    state = adjusted({"a": matrix(40, 40, 0.99), "b": matrix(40, 40, 0.99, seed=1)}, alpha=0.01)
    assert state.knobs == {"a": 8, "b": 8}


def test_zero_gradients_keep_the_uniform_setting():
    assert adjusted({"a": torch.zeros(40, 40), "b": torch.zeros(40, 40)}).knobs == {"a": 4, "b": 4}


def test_the_warm_up_is_dense_and_choices_compose_with_error_control():
    layers = {"flat": matrix(40, 40, 0.99), "steep": matrix(40, 40, 0.2, seed=1), "bias": torch.ones(40)}
    state = LGreCoState("econtrol", "topk:0.05", min_numel=1, adjust_every=4, accumulate=2, warmup=3)
    rows = {name: torch.stack([layer, 2 * layer]) for name, layer in layers.items()}
    simulator = Simulator(state, {name: torch.zeros_like(layer) for name, layer in layers.items()}, lambda p, step: rows)
    for _ in range(3):
        for name, direction in simulator.directions().items():
            torch.testing.assert_close(direction, 1.5 * layers[name])
    assert not state.local
    simulator.run(6, 0.0)
    assert set(state.knobs) == {"flat", "steep"}
    shapes = (40, 40)
    for name in state.knobs:
        chosen = state.compressor_of(name, shapes)
        assert chosen is not None
        assert state.eta_of(chosen, shapes) == min(state.knobs[name] / 1600, 0.3)


def calming(name: str, step: int) -> float:
    """How large the gradient of a layer is: one stays, one halves with every choice, one halves once."""
    return {"calm": 1.0, "falling": 0.5 ** (step // 3), "settling": 1.0 if step < 3 else 0.5}[name]


def after(state: LGreCoState, steps: int) -> LGreCoState:
    """``state`` after ``steps`` on three layers of one spectrum, whose gradients change as :func:`calming` says."""
    layers = {name: matrix(40, 40, 0.9, seed) for seed, name in enumerate(("calm", "falling", "settling"))}
    gradients = lambda p, step: {name: calming(name, step) * layer[None] for name, layer in layers.items()}  # noqa: E731
    Simulator(state, {name: torch.zeros_like(layer) for name, layer in layers.items()}, gradients).run(steps, 0.0)
    return state


def test_accordion_sends_more_of_layers_whose_gradient_changes():
    def made() -> AccordionState:
        return AccordionState("ef", "lowrank:8", min_numel=1, adjust_every=3, accumulate=2)

    assert after(made(), 4).knobs == {"calm": 12, "falling": 12, "settling": 12}
    state = after(made(), 7)
    assert state.knobs == {"calm": 5, "falling": 12, "settling": 12}
    again = made()
    again.load_state_dict(state.state_dict())
    assert after(again, 3).knobs == {"calm": 5, "falling": 12, "settling": 5}


def test_choices_within_the_error_of_accordion_take_no_more_bytes_than_it():
    options: dict[str, Any] = {"min_numel": 1, "adjust_every": 3, "accumulate": 2}
    baseline = after(AccordionState("csgd", "lowrank:8", **options), 7).history
    chosen = after(LGreCoState("csgd", "lowrank:8", accordion=Accordion(), **options), 7).history
    for ours, theirs in zip(chosen, baseline, strict=True):
        assert ours["allowed_error"] == pytest.approx(theirs["error"])
        assert ours["error"] <= ours["allowed_error"] * (1 + 1e-9)
        assert ours["nbytes"] <= theirs["nbytes"]
    assert chosen[-1]["nbytes"] < baseline[-1]["nbytes"]


@pytest.mark.parametrize(
    ("options", "message"), [({"calm": 2.0}, "calm must be above 0"), ({"threshold": 0.0}, "threshold must be positive")]
)
def test_settings_of_accordion_are_checked(options: dict[str, float], message: str):
    with pytest.raises(InvalidArgument, match=message):
        Accordion(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compressor": "sign"}, "need a compressor with a knob"), ({"low": 0.0}, "low must be above 0"),
        ({"high": 0.5}, "high at least 1"),
        ({"alpha": 0.0}, "alpha must be positive"), ({"accumulate": 1000}, "accumulate must be at least 1 and less than adjust_every"),
        ({"warmup": -1}, "warmup not negative"), ({"metric": "l1"}, "metric must be one of l2, l2sq"), ({"mode": "sgd"}, "unknown mode"),
    ],
)  # fmt: skip
def test_bad_options_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(InvalidArgument, match=message):
        LGreCoState(**options)
