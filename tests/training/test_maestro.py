"""Maestro finds the singular value decomposition and the principal components, and what it cuts is what it computed."""

from __future__ import annotations

import copy

import pytest
import torch
import training_cases as cases
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.errors import InvalidArgument
from tersor.training import Compression, Maestro, OrderedLayer, cut_ranks, ordered_layers, ranks_within
from tersor.training.method import is_plain

SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])


def _linear(inputs: int, outputs: int, seed: int) -> nn.Sequential:
    layer = nn.Linear(inputs, outputs, bias=False)
    generator = torch.Generator().manual_seed(seed)
    layer.weight.data = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
    return nn.Sequential(layer)


def _recovered(target: Tensor, sampler: str, steps: int, seed: int) -> OrderedLayer:
    """The factors after gradient descent on ``||W - target||``, which uniform inputs of a linear map amount to."""
    model = _linear(target.shape[1], target.shape[0], seed + 100)
    compression = Compression(model, [Maestro(sampler, group_lasso=0.0)], seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    compression.attach(optimizer)
    inputs = torch.eye(target.shape[1])
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(model(inputs), target.T).backward()
        optimizer.step()
    layer = model[0]
    assert isinstance(layer, OrderedLayer)
    return layer


def _prefix_errors(layer: OrderedLayer, target: Tensor) -> list[float]:
    """Distance of each prefix from the best matrix of its rank, which is unique, by the largest singular value."""
    u, s, vh = torch.linalg.svd(target, full_matrices=False)
    best = [u[:, :k] * s[:k] @ vh[:k] for k in range(1, len(s) + 1)]
    return [float(torch.linalg.matrix_norm(layer.matrix(k).detach() - best[k - 1], 2) / s[0]) for k in range(1, len(s) + 1)]


def _rank_three(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(size, 3, generator=generator)).Q for size in (6, 9))
    return left @ torch.diag(torch.tensor([9.5, 6.9, 3.7])) @ right.T


@SEEDS
def test_every_prefix_is_the_truncated_svd(seed: int) -> None:
    target = _rank_three(seed)
    layer = _recovered(target, "one_layer", 2000, seed)
    assert max(_prefix_errors(layer, target)) < 0.03
    # Balanced factors share singular values evenly, so that a tail's importance is the sum of those from there on.
    sums = torch.tensor([9.5 + 6.9 + 3.7, 6.9 + 3.7, 3.7])
    torch.testing.assert_close(layer.importance()[:3], sums, rtol=0.1, atol=0)
    first, second = layer.column_norms()
    torch.testing.assert_close((first * second)[:3].detach(), torch.linalg.svdvals(target)[:3], rtol=0.03, atol=0)
    assert float((first * second)[3:].detach().max()) < 0.15


@SEEDS
def test_without_sampled_ranks_no_prefix_is(seed: int) -> None:
    target = _rank_three(seed)
    errors = _prefix_errors(_recovered(target, "none", 2000, seed), target)
    # It fits as a whole, and only so.
    assert errors[-1] < 0.03
    assert min(errors[:2]) > 0.1


@SEEDS
def test_a_linear_autoencoder_projects_on_principal_components(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rotation, axes = (torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q for _ in range(2))
    points = rotation @ torch.diag(torch.tensor([1.5, 1.2, 1.0, 0.8, 0.6, 0.5])) @ axes.T
    model = _linear(6, 6, seed + 100)
    compression = Compression(model, [Maestro(group_lasso=0.0)], seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    compression.attach(optimizer)
    for _ in range(3000):
        optimizer.zero_grad()
        (model(points) - points).square().sum().backward()
        optimizer.step()
    for rank in range(1, 7):
        found, expected = model[0].matrix(rank).detach(), axes[:, :rank] @ axes[:, :rank].T
        assert float(torch.linalg.matrix_norm((found - expected) @ points.T, 2)) < 0.03 * 1.5


@SEEDS
def test_the_lasso_leaves_as_many_coordinates_as_there_are_components(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.linalg.qr(torch.randn(10, 3, generator=generator)).Q.T * torch.tensor([[1.2], [1.0], [0.8]])
    model = _linear(10, 10, seed + 100)
    maestro = Maestro(group_lasso=1e-2, threshold=1e-3)
    compression = Compression(model, [maestro], seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compression.attach(optimizer)

    def train(data: Tensor, steps: int) -> Tensor:
        for _ in range(steps):
            optimizer.zero_grad()
            (model(data) - data).square().sum().backward()
            optimizer.step()
        return maestro.importance["0"]

    found = train(points, 2500)
    assert float(found[3:].max()) < 1e-3
    assert float(found[2]) > 0.3
    # The data lose a dimension: the third coordinate goes, and an epoch's end drops it.
    found = train(points[:2], 2500)
    assert float(found[2]) < 1e-3
    compression.epoch_end()
    assert maestro.ranks == {"0": 2}


@SEEDS
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1, "dilation": 2}], ids=["plain", "strided"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_at_full_rank_is_unchanged_and_at_any_rank_is_its_matrix(seed: int, options: dict, bias: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    conv = nn.Conv2d(3, 8, 3, bias=bias, **options).double()
    for parameter in conv.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    layer = OrderedLayer(conv)
    pixels = torch.randn(2, 3, 9, 9, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(layer(pixels), conv(pixels))
    for rank in range(9):
        kernel = layer.matrix(rank).reshape(conv.weight.shape)
        expected = F.conv2d(pixels, kernel, conv.bias, conv.stride, conv.padding, conv.dilation)
        torch.testing.assert_close(layer.forward_rank(pixels, rank), expected)
        for merge in (True, False):
            torch.testing.assert_close(layer.plain(rank, merge=merge)(pixels), expected)


@SEEDS
def test_fresh_factors_are_cut_to_the_truncated_svd(seed: int) -> None:
    model = _linear(9, 6, seed)
    weight = model[0].weight.detach().clone()
    Compression(model, [Maestro()])
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    for rank in range(1, 7):
        torch.testing.assert_close(model[0].matrix(rank).detach(), u[:, :rank] * s[:rank] @ vh[:rank])


def test_cuts_are_what_was_computed_and_never_hold_more_than_dense_layers() -> None:
    model = cases.SmallNet()
    compression = Compression(model, [Maestro()])
    pixels = cases.batch()[0]
    layers = ordered_layers(model)
    model.eval()
    for fraction in (0.1, 0.34, 0.6, 1.0):
        ranks = {name: -int(-fraction * layer.rank // 1) for name, layer in layers.items()}
        cut = cut_ranks(copy.deepcopy(model), fraction)
        for name, layer in layers.items():
            held = sum(parameter.numel() for key, parameter in cut.get_submodule(name).named_parameters() if key.endswith("weight"))
            assert held == layer.parameters_at(ranks[name]) <= layer.shape[0] * layer.shape[1]
            layer.rank = ranks[name]
        assert is_plain(cut)
        torch.testing.assert_close(cut(pixels), model(pixels), rtol=1e-5, atol=1e-5)
        for layer in layers.values():
            layer.rank = min(layer.shape)
    assert isinstance(compression.finalize().conv2, nn.Conv2d)


def test_a_fraction_of_a_rank_is_not_rounded_up_by_floating_point() -> None:
    model = nn.Sequential(nn.Linear(25, 25))
    Compression(model, [Maestro(merge=False)])
    assert cut_ranks(model, 0.28, merge=False)[0][0].out_features == 7


def test_ranks_within_keep_a_budget_and_what_is_important() -> None:
    model = nn.Sequential(nn.Linear(20, 20, bias=False), nn.Linear(20, 20, bias=False))
    model[0].weight.data = torch.diag(torch.cat([torch.full((4,), 1.0), torch.full((16,), 1e-3)]))
    model[1].weight.data = torch.diag(torch.cat([torch.full((2,), 1.0), torch.full((18,), 1e-3)]))
    Compression(model, [Maestro()])
    assert ranks_within(model, 6 * 40) == {"0": 4, "1": 2}
    assert sum(layer.parameters_at(ranks_within(model, 500)[name]) for name, layer in ordered_layers(model).items()) <= 500
    with pytest.raises(InvalidArgument, match="holds 80 weights"):
        ranks_within(model, 79)


@SEEDS
def test_a_sweep_draws_every_pair_once(seed: int) -> None:
    model = cases.SmallNet()
    maestro = Maestro()
    Compression(model, [maestro], seed=seed)
    seen = []
    for step in range(sum(maestro.ranks.values())):
        if step:
            maestro.after_step(step)
        below = [(name, layer.sampled) for name, layer in ordered_layers(model).items() if layer.sampled < layer.rank]
        assert len(below) <= 1
        seen += below
    assert sorted(seen) == sorted((name, rank) for name, full in maestro.ranks.items() for rank in range(1, full))


def test_the_penalty_is_the_sum_of_tails() -> None:
    model = _linear(5, 4, 0)
    maestro = Maestro(group_lasso=0.5)
    Compression(model, [maestro])
    u, v = model[0].outer.weight.detach(), model[0].inner.weight.detach().T
    expected = 0.5 * sum(u[:, b:].norm() + v[:, b:].norm() for b in range(4))
    torch.testing.assert_close(maestro.penalty(), expected, rtol=1e-5, atol=0)
    with torch.no_grad():
        model[0].outer.weight[:, 2:] = 0
        model[0].inner.weight[2:] = 0
    maestro.penalty().backward()
    assert bool(model[0].inner.weight.grad.isfinite().all())
    assert float(model[0].inner.weight.grad[2:].abs().max()) == 0


def test_full_rank_is_for_the_passes_inside() -> None:
    model = _linear(8, 8, 0)
    maestro = Maestro("every_layer")
    Compression(model, [maestro])
    layer = model[0]
    layer.sampled = 3
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    with maestro.full_rank():
        torch.testing.assert_close(model(x), x @ layer.matrix(8).T)
    torch.testing.assert_close(model(x), x @ layer.matrix(3).T)
    torch.testing.assert_close(model.eval()(x), x @ layer.matrix(8).T)


def test_a_layer_used_twice_stays_one() -> None:
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    compression = Compression(model, [Maestro()])
    assert model[0] is model[2]
    assert isinstance(model[0], OrderedLayer)
    compression.finalize()
    assert model[0] is model[2]
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Maestro("uniform"), "sampler must be one of"),  # type: ignore[arg-type]
        (lambda: Maestro(group_lasso=-1.0), "group_lasso must be a number of at least 0"),
        (lambda: Maestro(least_rank=-1), "least_rank must be an integer"),
        (lambda: Compression(cases.SmallNet(), [Maestro(targets=["conv3"])]), "no weight that 'conv3' names"),
        (lambda: Compression(nn.Linear(3, 3), [Maestro()]), "wrap it in torch.nn.Sequential"),
        (lambda: Compression(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), [Maestro(targets=["0"])]), "in 2 groups"),
        (lambda: Compression(nn.Sequential(nn.Embedding(4, 4)), [Maestro(targets=["0"])]), "0 is a Embedding, neither"),
        (lambda: cut_ranks(cases.SmallNet()), "no ordered layer"),
    ],
    ids=["sampler", "lasso", "least", "name", "root", "groups", "embedding", "cut"],
)
def test_bad_input_is_one_sentence(make: object, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        make()  # type: ignore[operator]


def test_ranks_out_of_range_are_refused() -> None:
    model = _linear(4, 4, 0)
    Compression(model, [Maestro()])
    for ranks, words in (({"1": 2}, "no ordered layer"), ({"0": 5}, "from 0 to 4"), (0.0, "above 0"), (1.5, "at most 1")):
        with pytest.raises(InvalidArgument, match=words):
            cut_ranks(model, ranks)


def test_tied_weights_are_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    with pytest.raises(InvalidArgument, match="0 shares its weight with 1"):
        Compression(model, [Maestro()])


def test_a_mask_on_factors_is_refused() -> None:
    from tersor.training import GradualPruning

    for methods in ([Maestro(), GradualPruning()], [GradualPruning(), Maestro()]):
        with pytest.raises(InvalidArgument, match=r"both \w+ and \w+ overwrite"):
            Compression(cases.SmallNet(), methods)


def test_a_step_with_a_closure_is_refused_where_a_penalty_would_come_too_early() -> None:
    model = _linear(4, 4, 0)
    compression = Compression(model, [Maestro()])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compression.attach(optimizer)
    with pytest.raises(InvalidArgument, match="with a closure"):
        optimizer.step(lambda: model(torch.ones(1, 4)).sum())
