"""Gradual pruning: the schedule, exact counts, masks that only shrink, zeros that no optimizer moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tersor.errors import InvalidArgument, TersorError
from tersor.training import Compression, GradualPruning, equal_nonzero_width, magnitude_mask
from tersor.training.masks import global_masks, removed_of

SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])


def _linear(rows: int = 12, columns: int = 16, seed: int = 0) -> nn.Linear:
    layer = nn.Linear(columns, rows)
    layer.weight.data = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    layer.bias.data.zero_()
    return layer


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-2)


def _run(
    model: nn.Module, method: GradualPruning, steps: int, inputs: Callable[[int], Tensor],
    optimizer_of: Callable[[nn.Module], torch.optim.Optimizer] = _sgd, watch: Callable[[int], Any] = lambda step: None,
) -> Compression:  # fmt: skip
    compression = Compression(model, [method], total_steps=steps)
    optimizer = optimizer_of(model)
    compression.attach(optimizer)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        out = model(inputs(step))
        (out[0] if isinstance(out, tuple) else out).sub(1).square().mean().backward()
        optimizer.step()
        watch(step)
    return compression


def _noise(*shape: int) -> Callable[[int], Tensor]:
    return lambda step: torch.randn(*shape, generator=torch.Generator().manual_seed(step))


# The schedule


def test_schedule_has_the_values_of_the_cubic() -> None:
    method = GradualPruning(0.8, initial_sparsity=0.2, begin=100, end=500, frequency=100)
    Compression(_linear(), [method])
    # s_f + (s_i - s_f) (1 - t)^3 at t = 0, 1/4, 1/2, 3/4, 1.
    known = {99: 0.0, 100: 0.2, 200: 0.8 - 0.6 * 27 / 64, 300: 0.8 - 0.6 / 8, 400: 0.8 - 0.6 / 64, 500: 0.8, 501: 0.8, 10**9: 0.8}
    for step, expected in known.items():
        assert method.sparsity_at(step) == pytest.approx(expected, abs=1e-12), step
    assert method.sparsity_at(500) == 0.8


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_schedule_rises_ever_more_slowly(power: float) -> None:
    method = GradualPruning(0.95, begin=10, end=137, power=power)
    Compression(_linear(), [method])
    values = torch.tensor([method.sparsity_at(step) for step in range(10, 200)], dtype=torch.float64)
    rises = values.diff()
    assert bool((rises >= 0).all())
    assert bool((rises.diff() <= 1e-12).all())


def test_shares_are_shares_of_the_training() -> None:
    method = GradualPruning(0.9, begin=0.25, end=0.5)
    Compression(_linear(), [method], total_steps=40)
    assert (method.sparsity_at(9), method.sparsity_at(10), method.sparsity_at(20)) == (0.0, 0.0, 0.9)
    assert 0 < method.sparsity_at(11) < 0.9


def test_a_schedule_of_one_moment_prunes_at_once() -> None:
    model = _linear()
    removed: dict[int, int] = {}
    method = GradualPruning(0.75, begin=3, end=3)
    _run(model, method, 5, _noise(8, 16), watch=lambda step: removed.update({step: int((model.weight == 0).sum())}))
    assert removed == {1: 0, 2: 0, 3: 144, 4: 144, 5: 144}


def test_the_last_removal_is_at_the_end_whatever_the_frequency() -> None:
    model = _linear()
    compression = _run(model, GradualPruning(0.75, begin=2, end=9, frequency=4), 9, _noise(8, 16))
    assert int((model.weight == 0).sum()) == 144
    assert compression.report()["gradual_pruning"]["sparsity"] == 0.75


# Counts


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 1 / 3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("make", [torch.randn, torch.ones, torch.zeros], ids=["random", "equal", "zero"])
def test_counts_are_exact_whatever_the_ties(sparsity: float, make: Callable[..., Tensor]) -> None:
    weight = make(7, 9, 3)
    mask = magnitude_mask(weight, sparsity)
    assert int(mask.sum()) == max(round(189 * (1 - sparsity)), 1)
    kept, gone = weight[mask].abs(), weight[~mask].abs()
    if len(gone):
        assert float(kept.min()) >= float(gone.max())


@SEEDS
def test_sparsity_is_exact_after_every_removal_and_in_every_layer(seed: int) -> None:
    model = nn.Sequential(_linear(9, 16, seed), nn.ReLU(), _linear(5, 9, seed))
    method = GradualPruning(0.9, begin=1, end=9, frequency=2)

    def watch(step: int) -> None:
        if step % 2:
            for layer in (model[0], model[2]):
                assert int((layer.weight == 0).sum()) == removed_of(layer.weight.numel(), method.sparsity_at(step))

    report = _run(model, method, 12, _noise(8, 16), watch=watch).report()["gradual_pruning"]
    assert report["nonzero"] == round(144 * 0.1) + round(45 * 0.1) == int((model[0].weight != 0).sum() + (model[2].weight != 0).sum())
    assert report["layers"]["2.weight"] == 1 - round(45 * 0.1) / 45


def test_one_weight_is_always_left() -> None:
    model = _linear(1, 3)
    _run(model, GradualPruning(0.99, begin=1, end=2, frequency=1), 4, _noise(8, 3))
    assert int((model.weight != 0).sum()) == 1


def test_the_global_scope_removes_the_smallest_of_all() -> None:
    weights = {"large": 10 + torch.rand(4, 5), "small": torch.rand(6, 10), "middle": 5 + torch.rand(2, 10)}
    masks = global_masks(weights, 0.7)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"large": 20, "small": 0, "middle": 10}
    assert bool((weights["middle"][masks["middle"]].min() >= weights["middle"][~masks["middle"]].max()).all())


@SEEDS
def test_patterns_keep_the_largest_of_every_group(seed: int) -> None:
    model = _linear(seed=seed)
    expected = torch.zeros(12, 4, 4, dtype=torch.bool)
    groups = model.weight.detach().abs().reshape(12, 4, 4)
    for row in range(12):
        for group in range(4):
            for column in sorted(range(4), key=lambda index: float(groups[row, group, index]))[2:]:
                expected[row, group, column] = True
    assert torch.equal(magnitude_mask(model.weight, 0.5, pattern=(2, 4)), expected.reshape(12, 16))
    _run(model, GradualPruning(0.5, begin=1, end=5, frequency=1, pattern=(2, 4)), 8, _noise(8, 16))
    assert bool(((model.weight.reshape(-1, 4) != 0).sum(1) == 2).all())


def test_a_convolution_follows_a_pattern_along_its_inputs() -> None:
    layer = nn.Conv2d(4, 3, 3)
    _run(layer, GradualPruning(0.75, begin=1, end=1, pattern=(1, 4)), 2, _noise(2, 4, 5, 5))
    assert bool(((layer.weight.flatten(1).reshape(-1, 4) != 0).sum(1) == 1).all())


@SEEDS
def test_blocks_go_whole_and_the_weakest_first(seed: int) -> None:
    model = _linear(seed=seed)
    mask = magnitude_mask(model.weight, 0.75, block=(3, 4))
    tiles, kept = (values.reshape(4, 3, 4, 4) for values in (model.weight.detach().abs(), mask.float()))
    share = kept.mean((1, 3))
    assert bool(((share == 0) | (share == 1)).all())
    assert int(share.sum()) == 4
    means = tiles.mean((1, 3))
    assert float(means[share == 1].min()) >= float(means[share == 0].max())
    _run(model, GradualPruning(0.75, begin=1, end=4, frequency=1, block=(3, 4)), 6, _noise(8, 16))
    assert int((model.weight != 0).sum()) == 48


# What stays removed, and what may return


def _adamw(**options: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1, **options)


OPTIMIZERS = {
    "sgd": _sgd, "adamw": _adamw(foreach=False), "adamw-foreach": _adamw(foreach=True), "adamw-fused": _adamw(fused=True),
    "adamw-amsgrad": _adamw(amsgrad=True), "rmsprop": lambda model: torch.optim.RMSprop(model.parameters(), lr=0.01, momentum=0.9),
}  # fmt: skip


@pytest.mark.parametrize("optimizer_of", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_removed_weights_are_zero_after_any_step(optimizer_of: Callable[[nn.Module], torch.optim.Optimizer], scope: Any) -> None:
    model = nn.Sequential(_linear(9, 16), nn.Tanh(), _linear(5, 9, 1))
    gone = [torch.zeros_like(layer.weight, dtype=torch.bool) for layer in (model[0], model[2])]

    def watch(step: int) -> None:
        for removed, layer in zip(gone, (model[0], model[2]), strict=True):
            zero = layer.weight == 0
            assert bool((zero | ~removed).all()), f"a removed weight moved in step {step}"
            removed |= zero

    compression = _run(model, GradualPruning(0.8, begin=2, end=12, frequency=2, scope=scope), 25, _noise(8, 16), optimizer_of, watch)
    assert sum(int(removed.sum()) for removed in gone) >= 0.79 * (144 + 45)
    compression.finalize()
    # No negative zero is left for a bit mask or a file to tell from a positive one.
    assert not any(bool(torch.signbit(layer.weight[layer.weight == 0]).any()) for layer in (model[0], model[2]))


def test_weights_that_start_at_zero_do_not_bring_removed_ones_back() -> None:
    # The kept ones tie with the removed ones until the first gradient that reaches them.
    method = GradualPruning(0.9, begin=1, end=5, frequency=1)
    model = _linear()
    with torch.no_grad():
        model.weight.zero_()
    compression = Compression(model, [method])
    before = torch.ones(12, 16, dtype=torch.bool)
    for step in range(1, 6):
        with torch.no_grad():
            # What is late in the order of ties stays zero, and half of what is early is large.
            model.weight[:6] = torch.randn(6, 16, generator=torch.Generator().manual_seed(step)) * before[:6]
        compression.after_step()
        mask = method.state_dict()["weight"]
        assert bool((mask <= before).all())
        assert int(mask.sum()) == 192 - removed_of(192, method.sparsity_at(step))
        before = mask.clone()


def test_zeros_among_the_kept_stay_kept_rather_than_removed_ones() -> None:
    mask = torch.tensor([[False, True, True, True]])
    weight = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    for options in ({}, {"pattern": (3, 4)}):
        assert torch.equal(magnitude_mask(weight, 0.25, within=mask, **options), mask), options


@pytest.mark.parametrize(("regrow", "expected"), [(False, [2.0, 0.0]), (True, [0.0, 1.0])])
def test_a_removed_weight_returns_with_regrow_alone(regrow: bool, expected: list[float]) -> None:
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[2.0, 1.0]])
    method = GradualPruning(0.5, initial_sparsity=0.5, begin=1, end=3, frequency=2, regrow=regrow)
    compression = Compression(layer, [method])
    compression.after_step()
    assert layer.weight.tolist() == [[2.0, 0.0]]
    if regrow:
        # The survivor falls below what is hidden.
        with torch.no_grad():
            layer.parametrizations["weight"].original.copy_(torch.tensor([[0.5, 1.0]]))
    compression.after_step()
    compression.after_step()
    assert compression.finalize().weight.tolist() == [expected]


@SEEDS
def test_hidden_weights_get_no_gradient_and_decay(seed: int) -> None:
    model = _linear(seed=seed)
    start = model.weight.detach().clone()
    compression = Compression(model, [GradualPruning(0.5, begin=1, end=1, regrow=True)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    compression.attach(optimizer)
    with torch.no_grad():
        compression.after_step()
    hidden = model.weight == 0
    model(torch.ones(1, 16)).sum().backward()
    optimizer.step()
    original = model.parametrizations["weight"].original
    torch.testing.assert_close(original[hidden], 0.95 * start[hidden])


# Layers


@pytest.mark.parametrize("regrow", [False, True])
def test_a_recurrent_net_computes_with_the_masked_weights(regrow: bool) -> None:
    model = nn.LSTM(6, 8, num_layers=2)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    compression = _run(model, GradualPruning(0.75, begin=1, end=6, frequency=1, regrow=regrow), 8, _noise(5, 3, 6))
    inputs = _noise(5, 3, 6)(0)
    before = model(inputs)[0]
    assert isinstance(compression.finalize(), nn.LSTM)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            assert int((parameter != 0).sum()) == parameter.numel() // 4, name
    fresh = nn.LSTM(6, 8, num_layers=2)
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(inputs)[0], before)
    assert torch.equal(fresh(inputs)[0], model(inputs)[0])


def test_embeddings_and_tied_heads_are_left_alone_unless_named() -> None:
    def model() -> nn.Module:
        made = nn.ModuleDict({"table": nn.Embedding(6, 4), "body": nn.Linear(4, 4), "head": nn.Linear(4, 6, bias=False)})
        made["head"].weight = made["table"].weight
        return made

    for targets, expected in ((None, {"body.weight"}), (["table"], {"table.weight"}), (["*"], {"table.weight", "body.weight"})):
        method = GradualPruning(0.5, targets=targets)
        Compression(model(), [method])
        assert method.rewrites() == expected


def test_nothing_beside_the_targets_is_touched() -> None:
    model = nn.Sequential(_linear(9, 16), nn.Tanh(), _linear(5, 9, 1))
    plain = nn.Sequential(_linear(9, 16), nn.Tanh(), _linear(5, 9, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    compression = Compression(model, [GradualPruning(0.5, begin=1, end=1, targets=["0"])]).attach(optimizer)
    model(torch.ones(1, 16)).sum().backward()
    optimizer.step()
    assert compression.step == 1
    changed = {name for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True) if not torch.equal(one, other)}
    assert changed == {"0.weight"}


def test_no_sparsity_changes_nothing() -> None:
    model, plain = _linear(), _linear()
    _run(model, GradualPruning(0.0, begin=1, end=5, frequency=1), 8, _noise(8, 16)).finalize()
    optimizer = _sgd(plain)
    for step in range(1, 9):
        optimizer.zero_grad()
        plain(_noise(8, 16)(step)).sub(1).square().mean().backward()
        optimizer.step()
    assert torch.equal(model.weight, plain.weight)


def test_an_earlier_checkpoint_loaded_at_the_end_is_pruned_again() -> None:
    # As load_best_model_at_end of transformers does.
    model = _linear()
    early = {key: value.clone() for key, value in model.state_dict().items()}
    compression = _run(model, GradualPruning(0.75, begin=1, end=4, frequency=1), 6, _noise(8, 16))
    model.load_state_dict(early)
    assert int((compression.finalize().weight == 0).sum()) == 144


# Bad input


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"sparsity": 1.0}, "sparsity must be a number of at least 0 and below 1"),
        ({"sparsity": -0.1}, "sparsity"),
        ({"sparsity": float("nan")}, "sparsity"),
        ({"sparsity": "much"}, "sparsity"),
        ({"initial_sparsity": 1.5}, "initial_sparsity"),
        ({"sparsity": 0.5, "initial_sparsity": 0.6}, "above sparsity"),
        ({"frequency": 0}, "frequency"),
        ({"power": -1.0}, "power"),
        ({"scope": "model"}, "scope"),
        ({"begin": -1}, "begin"),
        ({"begin": 1.5}, "begin"),
        ({"begin": 50, "end": 20}, "before begin"),
        ({"sparsity": 0.5, "pattern": (4, 4)}, "keep_n of pattern"),
        ({"sparsity": 0.6, "pattern": (2, 4)}, "has sparsity 0.5, not 0.6"),
        ({"sparsity": 0.5, "pattern": (2, 4), "block": (2, 2)}, "exclude each other"),
        ({"block": (2, 2), "scope": "global"}, "exclude each other"),
        ({"block": (0, 2)}, "block"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        GradualPruning(**options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"targets": ["missing"]}, "no weight that 'missing' names"),
        ({"ignore": ["missing"]}, "no weight that 'missing' names"),
        ({"ignore": ["*"]}, "no layer to compress"),
        ({"sparsity": 0.8, "pattern": (1, 5)}, "groups of 5 do not divide"),
        ({"block": (5, 4)}, "does not divide into blocks of 5 x 4"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        Compression(nn.Sequential(_linear()), [GradualPruning(**options)])


@pytest.mark.parametrize(("begin", "end", "named"), [(150, 0.5, "before begin"), (10, 300, "after the training")])
def test_a_schedule_that_would_never_end_is_refused(begin: int, end: int | float, named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        Compression(_linear(), [GradualPruning(0.5, begin=begin, end=end)], total_steps=200)


def test_a_share_of_an_unknown_length_is_refused() -> None:
    compression = Compression(_linear(), [GradualPruning(0.5)])
    with pytest.raises(InvalidArgument, match="pass total_steps"):
        compression.after_step()


def test_a_weight_that_is_not_finite_is_refused_by_name() -> None:
    model = _linear()
    compression = Compression(model, [GradualPruning(0.5, begin=1, end=1)])
    model.weight.data[3, 4] = float("nan")
    with pytest.raises(TersorError, match="weight is not finite after step 1"):
        compression.after_step()


# What it is compared with


def test_the_dense_rival_has_at_least_as_many_weights_and_one_width_less_has_fewer() -> None:
    def factory(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(20, width), nn.Linear(width, 3))

    for nonzero in range(1, 400, 7):
        width = equal_nonzero_width(factory, nonzero)
        assert 24 * width + 3 >= nonzero
        assert width == 1 or 24 * (width - 1) + 3 < nonzero
    with pytest.raises(InvalidArgument, match="raise largest"):
        equal_nonzero_width(factory, 1000, largest=10)
