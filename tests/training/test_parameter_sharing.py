"""Parameter sharing is dense training where nothing is shared, and moves shared weights by the mean of their steps elsewhere."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import training_cases as cases
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.errors import InvalidArgument
from tersor.training import Compression, ParameterSharing, load_module, save_module, stored_bytes
from tersor.training.shared_layer import SharedLayer
from tersor.weights import CompressedConv2d, HashedWeight

SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])


def _perceptron(seed: int, inputs: int = 12, hidden: int = 16) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, 4)).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / parameter.shape[-1] ** 0.5
    return model


def _train(model: nn.Module, seed: int, steps: int = 100, rate: float = 0.1) -> nn.Module:
    generator = torch.Generator().manual_seed(seed + 50)
    inputs = torch.randn(64, 12, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (64,), generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model


def _difference(first: nn.Module, second: nn.Module) -> float:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs)


@SEEDS
@pytest.mark.parametrize("scope", ["model", "layer"])
@pytest.mark.parametrize("deviation", [1e-3, 1e-2, 1.0, None])
def test_at_compression_one_it_is_dense_training(seed: int, scope: str, deviation: float | None) -> None:
    dense = _train(_perceptron(seed), seed)
    shared = _perceptron(seed)
    compression = Compression(shared, [ParameterSharing(1.0, scope=scope, deviation=deviation, finish="dense", seed=seed)])
    _train(shared, seed)
    assert _difference(compression.finalize(), dense) < 1e-12
    assert _difference(dense, _perceptron(seed)) > 0.1


def test_without_scaled_gradients_the_memory_decides_how_training_goes() -> None:
    dense = _train(_perceptron(0), 0)
    shared = _perceptron(0)
    compression = Compression(shared, [ParameterSharing(1.0, deviation=0.01, scale_gradient=False, finish="dense")])
    _train(shared, 0, rate=1e-3)
    assert _difference(compression.finalize(), dense) > 0.1


@SEEDS
@pytest.mark.parametrize(("mapping", "tile"), [("fold", None), ("hash", None), ("tile", (2, 3))], ids=["fold", "hash", "tile"])
def test_a_step_moves_weights_by_the_mean_of_their_steps(seed: int, mapping: str, tile: tuple[int, int] | None) -> None:
    # Layers of one scale: there the divisor makes it the mean exactly.
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)).double()
    generator = torch.Generator().manual_seed(seed)
    for layer in model:
        values = torch.randn(8, 8, generator=generator, dtype=torch.float64)
        layer.weight.data = (values - values.mean()) / values.std(correction=0)
    method = ParameterSharing(4.0, mapping, tile=tile, seed=seed)
    Compression(model, [method])
    inputs = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    weights = [layer.weight.detach().requires_grad_() for layer in model]
    (inputs @ weights[0].T @ weights[1].T).square().sum().backward()
    model(inputs).square().sum().backward()
    before = torch.cat([weight.detach().flatten() for weight in weights])
    with torch.no_grad():
        model.shared_memory -= 0.01 * model.shared_memory.grad
    after = torch.cat([layer.weight.detach().flatten() for layer in model])
    codes = torch.cat([layer.codes.flatten() for layer in model])
    places, signs = torch.where(codes < 0, ~codes, codes), torch.where(codes < 0, -1.0, 1.0).double()
    steps = torch.cat([weight.grad.flatten() for weight in weights])
    for place in places.unique():
        own = places == place
        expected = -0.01 * signs[own] * (signs[own] * steps[own]).mean()
        torch.testing.assert_close((after - before)[own], expected)


@SEEDS
def test_gradients_are_those_of_reading_by_index(seed: int) -> None:
    model = _perceptron(seed)
    Compression(model, [ParameterSharing(3.0, "hash", scale_gradient=False, seed=seed)])
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(6, 12, generator=generator, dtype=torch.float64)
    model(inputs).square().sum().backward()
    memory = model.shared_memory.detach().requires_grad_()

    def weight(layer: SharedLayer) -> Tensor:
        codes = layer.codes.long()
        return layer.scale * torch.where(codes < 0, -1.0, 1.0).double() * memory[torch.where(codes < 0, ~codes, codes)]

    hidden = torch.tanh(F.linear(inputs, weight(model[0]), model[0].layer.bias))
    F.linear(hidden, weight(model[2]), model[2].layer.bias).square().sum().backward()
    torch.testing.assert_close(model.shared_memory.grad, memory.grad)


@SEEDS
@pytest.mark.parametrize("mapping", ["fold", "hash"])
def test_the_nearest_memory_is_the_least_squares_solution(seed: int, mapping: str) -> None:
    model = _perceptron(seed)
    dense = torch.cat([model[index].weight.detach().flatten() for index in (0, 2)])
    Compression(model, [ParameterSharing(3.0, mapping, start="nearest", seed=seed)])
    numel, size = dense.numel(), model.shared_memory.numel()
    reads = torch.zeros(numel, size, dtype=torch.float64)
    row = 0
    for index in (0, 2):
        for code in model[index].codes.flatten().tolist():
            reads[row, code if code >= 0 else ~code] = model[index].scale * (1 if code >= 0 else -1)
            row += 1
    expected = torch.linalg.lstsq(reads, dense.unsqueeze(1), driver="gelsd").solution.squeeze(1)
    torch.testing.assert_close(model.shared_memory.detach(), expected)
    found = torch.cat([model[index].weight.detach().flatten() for index in (0, 2)])
    torch.testing.assert_close(found, reads @ expected)


@SEEDS
def test_sharing_at_random_keeps_one_part_in_compression_of_the_energy(seed: int) -> None:
    model = _perceptron(seed, 100, 200)
    dense = model[0].weight.detach().clone()
    Compression(model, [ParameterSharing(10.0, targets=["0"], start="nearest", seed=seed)])
    lost = float((model[0].weight - dense).detach().square().sum() / dense.square().sum())
    assert abs(lost - 0.9) < 0.02


@SEEDS
def test_the_spread_start_keeps_the_deviation_of_every_layer(seed: int) -> None:
    model = _perceptron(seed, 100, 200)
    model[2].weight.data *= 5
    before = [float(model[index].weight.detach().std()) for index in (0, 2)]
    Compression(model, [ParameterSharing(10.0, seed=seed)])
    after = [float(model[index].weight.detach().std()) for index in (0, 2)]
    # The standard error of a deviation over 1,400 values in 20,000 places.
    assert after == pytest.approx(before, rel=0.12)


def test_the_file_holds_the_memory_once(tmp_path: Path) -> None:
    model = cases.SmallNet()
    rest = stored_bytes(model) - 4 * sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)
    compression = Compression(model, [ParameterSharing(4.0)])
    size = compression.report()["parameter_sharing"]["values"]
    assert size == round((8 * 9 + 16 * 72 + 64) / 4)
    compression.finalize()
    assert isinstance(model.conv2, CompressedConv2d)
    assert isinstance(model.conv2.weight, HashedWeight)
    assert stored_bytes(model) == rest + 4 * size + 3 * (16 + 4)
    assert save_module(model, tmp_path / "model.safetensors") < stored_bytes(model) + 6000
    loaded = load_module(cases.SmallNet(seed=1), tmp_path / "model.safetensors")
    assert stored_bytes(loaded) == stored_bytes(model)
    pixels = cases.batch()[0]
    assert torch.equal(loaded.eval()(pixels), model.eval()(pixels))


def test_hashed_and_dense_finishes_compute_the_same() -> None:
    pixels = cases.batch()[0]
    outputs = []
    for finish in ("hashed", "dense"):
        model = cases.SmallNet().eval()
        Compression(model, [ParameterSharing(5.0, finish=finish)]).finalize()
        outputs.append(model(pixels))
    assert torch.equal(*outputs)


def test_a_fresh_model_of_other_weights_goes_on_with_the_scales_of_the_first(tmp_path: Path) -> None:
    first = Compression(cases.SmallNet(seed=0), [ParameterSharing(3.0)])
    first.save(tmp_path / "state.safetensors")
    second = Compression(cases.SmallNet(seed=1), [ParameterSharing(3.0)])
    assert second.load(tmp_path / "state.safetensors")
    pixels, labels = cases.batch()
    for compression in (first, second):
        F.cross_entropy(compression.model.eval()(pixels), labels).backward()
    torch.testing.assert_close(second.model.shared_memory.grad, first.model.shared_memory.grad, rtol=0, atol=0)


def test_the_optimizer_sees_one_memory_and_copies_have_their_own() -> None:
    model = cases.SmallNet()
    Compression(model, [ParameterSharing(3.0)])
    assert [name for name, parameter in model.named_parameters() if "memory" in name] == ["shared_memory"]
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.shared_memory.zero_()
    assert not bool(twin.conv1.weight.any())
    assert bool(model.conv1.weight.any())


def test_a_layer_used_twice_and_two_memories_in_one_model() -> None:
    layer = nn.Linear(6, 6)
    model = nn.Sequential(layer, nn.Linear(6, 6), layer)
    compression = Compression(model, [ParameterSharing(2.0, targets=["0"]), ParameterSharing(3.0, targets=["1"])])
    assert model[0] is model[2]
    assert model.shared_memory.numel() == 18
    assert model.shared_memory_2.numel() == 12
    model(torch.ones(1, 6)).sum().backward()
    compression.finalize()
    assert model[0] is model[2]
    assert not any("memory" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ParameterSharing(0.5), "compression must be a number of at least 1"),
        (lambda: ParameterSharing(mapping="fold "), "mapping must be one of"),  # type: ignore[arg-type]
        (lambda: ParameterSharing(deviation=0.0), "deviation must be above 0"),
        (lambda: ParameterSharing(seed=-1), "seed must be an integer"),
        (lambda: Compression(cases.SmallNet(), [ParameterSharing(tile=(2, 2))]), "takes no tile"),
        (lambda: Compression(cases.SmallNet(), [ParameterSharing(200.0, "tile")]), "a tile of 4 x 8 does not fit into a memory of 6"),
        (lambda: Compression(cases.SmallNet(), [ParameterSharing(targets=["norm1.weight"])]), "no weight that 'norm1.weight' names"),
        (lambda: Compression(nn.Linear(3, 3), [ParameterSharing()]), "wrap it in torch.nn.Sequential"),
    ],
    ids=["compression", "mapping", "deviation", "seed", "tile", "large-tile", "name", "root"],
)
def test_bad_input_is_one_sentence(make: object, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        make()  # type: ignore[operator]


def test_weights_without_a_scale_are_refused() -> None:
    for value, words in ((0.0, "1 starts as a constant"), (torch.nan, "1.weight holds NaN or Inf")):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        nn.init.constant_(model[1].weight, value)
        with pytest.raises(InvalidArgument, match=words):
            Compression(model, [ParameterSharing(2.0)])
