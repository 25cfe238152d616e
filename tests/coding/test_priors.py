"""Learned priors: densities that are densities, streams that come back, sizes against the likelihood."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tersor.coding.entropy import EntropyBottleneck, GaussianConditional
from tersor.coding.errors import CorruptStream
from tersor.errors import InvalidArgument, TersorError


def trained(channels: int = 3, steps: int = 300, seed: int = 0) -> tuple[EntropyBottleneck, torch.Tensor]:
    """A bottleneck fitted to Laplacians of different widths, and a latent drawn from them."""
    random = torch.Generator().manual_seed(seed)

    def draw(batch: int) -> torch.Tensor:
        uniform = torch.rand(batch, channels, 8, 8, generator=random) - 0.5
        widths = torch.tensor([0.3, 2.0, 9.0][:channels]).reshape(1, -1, 1, 1)
        return -widths * uniform.sign() * (1 - 2 * uniform.abs()).clamp(min=1e-6).log() + torch.arange(channels).reshape(1, -1, 1, 1) * 3.3

    prior = EntropyBottleneck(channels, seed=seed).train()
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.02)
    for _ in range(steps):
        _, likelihood = prior(draw(16), random)
        loss = -likelihood.log2().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    prior.eval().requires_grad_(False).update()
    return prior, draw(32)


@pytest.fixture(scope="module")
def fitted() -> tuple[EntropyBottleneck, torch.Tensor]:
    """A trained bottleneck and a latent."""
    return trained()


def test_the_rounded_latent_comes_back(fitted):
    prior, latent = fitted
    rounded, _ = prior(latent)
    assert torch.equal(prior.decompress(prior.compress(latent), latent.shape), rounded)


def test_the_stream_costs_what_the_likelihoods_say(fitted):
    prior, latent = fitted
    _, likelihood = prior(latent)
    ideal = float(-likelihood.double().log2().sum())
    assert 0.99 * ideal - 64 < 8 * len(prior.compress(latent)) <= 1.01 * ideal + 64


def test_training_finds_the_entropy(fitted):
    prior, latent = fitted
    _, likelihood = prior(latent)
    rounded = torch.round(latent - prior.medians.reshape(1, -1, 1, 1)).long()
    for channel in range(3):
        _, counts = rounded[:, channel].unique(return_counts=True)
        frequency = counts / counts.sum()
        entropy = float(-(frequency * frequency.log2()).sum())
        assert float(-likelihood[:, channel].log2().mean()) < entropy + 0.15


def test_likelihoods_of_a_channel_sum_to_one(fitted):
    prior, _ = fitted
    whole = torch.arange(-20_000, 20_001, dtype=torch.float64) + prior.medians.double().unsqueeze(1)
    torch.testing.assert_close(prior.likelihood(whole).sum(1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-5)


def test_quantiles_are_where_the_distribution_reaches_them(fitted):
    prior, _ = fitted
    for probability in (1e-6, 0.1, 0.5, 0.9):
        reached = torch.sigmoid(prior.logits(prior.quantiles(probability).unsqueeze(1))).squeeze(1)
        torch.testing.assert_close(reached, torch.full((3,), probability, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [1e4, -1e4, 2**29])
def test_values_far_outside_are_escaped(fitted, value):
    prior, latent = fitted
    odd = latent.clone()
    odd[0, 1, 2, 3], odd[5, 0, 0, 0] = value, -value
    rounded, _ = prior(odd)
    assert torch.equal(prior.decompress(prior.compress(odd), odd.shape), rounded)


def test_a_loaded_prior_writes_the_same_bytes(fitted):
    prior, latent = fitted
    other = EntropyBottleneck(3, seed=9)
    other.load_state_dict(prior.state_dict())
    assert other.compress(latent) == prior.compress(latent)


def test_tables_sum_to_their_total(fitted):
    prior, _ = fitted
    assert [int(table.weights.sum()) for table in prior.tables.as_tables()] == [1 << 16] * 3


def test_the_bound_lets_values_climb_back():
    from tersor.coding.entropy.factorised import lower_bound

    x = torch.tensor([0.5, 2.0, 0.5], requires_grad=True)
    (lower_bound(x, 1.0) * torch.tensor([-1.0, 3.0, 1.0])).sum().backward()
    assert x.grad.tolist() == [-1.0, 3.0, 0.0]


@pytest.mark.parametrize("seed", range(3))
def test_gaussians_of_given_scales(seed):
    random = torch.Generator().manual_seed(seed)
    scales = torch.exp(4 * torch.rand(4, 5, 100, generator=random) - 1)
    means = 10 * torch.randn(4, 5, 100, generator=random)
    latent = means + scales * torch.randn(4, 5, 100, generator=random)
    prior = GaussianConditional().eval()
    prior.update()
    data = prior.compress(latent, scales, means)
    rounded, likelihood = prior(latent, scales, means)
    torch.testing.assert_close(prior.decompress(data, scales, means), rounded, rtol=0, atol=0)
    # Tables are a little wider than the scales: an eighth of a step of the logarithm on average.
    ideal = float(-likelihood.double().log2().sum())
    assert 8 * len(data) <= 1.01 * ideal + 64


def test_indexes_are_the_first_scale_that_is_wide_enough():
    prior = GaussianConditional()
    table = prior.scale_table()
    assert torch.equal(prior.indexes(table), torch.arange(64))
    assert torch.equal(prior.indexes(table * (1 + 1e-7)), torch.arange(64))
    middle = (table[1:] * table[:-1]).sqrt()
    assert torch.equal(prior.indexes(middle), torch.arange(1, 64))
    assert prior.indexes(torch.tensor([0.0, 1e9])).tolist() == [0, 63]


def test_gaussian_likelihoods_sum_to_one():
    prior = GaussianConditional()
    values = torch.arange(-2000, 2001, dtype=torch.float64)
    for scale in (0.11, 1.0, 17.0, 200.0):
        assert float(prior.likelihood(values, torch.tensor(scale, dtype=torch.float64)).sum()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("seed", range(2))
def test_damaged_latents_decode_or_are_refused(fitted, seed):
    prior, latent = fitted
    random = np.random.default_rng(seed)
    part = latent[:1, :, :2]
    data = prior.compress(part)
    for _ in range(1500):
        damaged = bytearray(data)
        damaged[random.integers(len(data))] = random.integers(256)
        try:
            decoded = prior.decompress(bytes(damaged[: random.integers(len(data) + 1)]), part.shape)
        except CorruptStream:
            continue
        assert decoded.shape == part.shape


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: EntropyBottleneck(0), "a channel or more"),
        (lambda: EntropyBottleneck(2).compress(torch.zeros(1, 2, 3)), r"call update\(\)"),
        (lambda: EntropyBottleneck(2)(torch.zeros(1, 3, 3)), r"shape \[batch, 2, ...\]"),
        (lambda: trained(1, 0)[0].compress(torch.tensor([[[float("nan")]]])), "NaN, Inf"),
        (lambda: GaussianConditional(0.7), "tail_mass"),
        (lambda: GaussianConditional().compress(torch.zeros(2), torch.ones(3)), "share a shape"),
    ],
)  # fmt: skip
def test_errors_name_the_rule(call, sentence):
    with pytest.raises(InvalidArgument, match=sentence):
        call()
    assert issubclass(InvalidArgument, TersorError)
