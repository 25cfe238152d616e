"""The corrected weight against least squares, and what it does to the outputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.layerwise import Lag, corrected


def drawn(seed: int, tokens: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, inputs of the original and those of a compressed model, which lose some of them and gain noise."""
    generator = torch.Generator().manual_seed(seed)
    weight, mixing, inputs, noise = (torch.randn(n, 12, generator=generator, dtype=torch.float64) for n in (7, 12, tokens, tokens))
    return weight, inputs @ mixing, 0.8 * inputs @ mixing + noise


def lag_of(weight: Tensor, inputs: Tensor, compressed: Tensor, damping: float = 0.0) -> Lag:
    cross = compressed.T @ ((inputs - compressed) @ weight.T)
    return Lag.solved(compressed.T @ compressed, [cross], len(inputs), damping)[0]


@pytest.mark.parametrize("seed", range(3))
def test_all_of_the_change_is_the_least_squares_solution_less_the_discount(seed: int):
    weight, inputs, compressed = drawn(seed)
    got = corrected(weight, lag_of(weight, inputs, compressed), share=1.0)
    best = torch.linalg.lstsq(compressed, inputs @ weight.T).solution.T
    assert torch.allclose(got, weight + (1 - 12 / 200) * (best - weight), rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_every_share_comes_nearer_to_the_outputs_of_the_original(seed: int):
    weight, inputs, compressed = drawn(seed)
    lag = lag_of(weight, inputs, compressed)
    losses = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        outputs = compressed @ corrected(weight, lag, share).T
        losses.append(float((outputs - inputs @ weight.T).square().sum()))
    assert losses == sorted(losses, reverse=True)
    assert losses[1] < 0.9 * losses[0]


def test_nothing_lost_changes_nothing():
    weight, _, compressed = drawn(0)
    lag = lag_of(weight, compressed, compressed)
    assert torch.equal(corrected(weight, lag), weight)
    assert corrected(weight, lag, share=0.0) is weight


def test_fewer_tokens_than_inputs_change_nothing():
    weight, inputs, compressed = drawn(0, tokens=12)
    assert corrected(weight, lag_of(weight, inputs, compressed)) is weight


def test_layers_with_one_input_are_solved_as_each_alone():
    weight, inputs, compressed = drawn(0)
    gram, crosses = compressed.T @ compressed, [compressed.T @ ((inputs - compressed) @ weight.T * factor) for factor in (1, 3)]
    together = Lag.solved(gram.clone(), crosses, 200)
    for lag, cross in zip(together, crosses, strict=True):
        assert torch.equal(lag.change, Lag.solved(gram.clone(), [cross], 200)[0].change)


@pytest.mark.parametrize("damping", [0.01, 1.0])
def test_damping_is_ridge_regression(damping: float):
    weight, inputs, compressed = drawn(0)
    ridge = (damping * compressed.square().sum() / 12) ** 0.5 * torch.eye(12, dtype=torch.float64)
    lag = (inputs - compressed) @ weight.T
    best = torch.linalg.lstsq(torch.cat([compressed, ridge]), torch.cat([lag, torch.zeros(12, 7, dtype=torch.float64)])).solution.T
    assert torch.allclose(lag_of(weight, inputs, compressed, damping).change.double(), best, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "value", "share", "message"),
    [
        ((12, 7), 0.0, 1.5, "from 0 to 1, got 1.5"),
        ((12, 7), 0.0, -0.1, "from 0 to 1"),
        ((12, 8), 0.0, 0.5, r"does not fit the weight \(7, 12\)"),
        ((7, 12), 0.0, 0.5, "do not belong together"),
        ((12, 7), torch.nan, 0.5, "NaN or Inf"),
    ],
)
def test_bad_arguments_are_one_sentence(shape: tuple[int, int], value: float, share: float, message: str):
    weight, _, compressed = drawn(0)
    with pytest.raises(InvalidArgument, match=message):
        corrected(weight, Lag.solved(compressed.T @ compressed, [torch.full(shape, value)], 200)[0], share)
