"""What every method of compression during training keeps: four loops agree, a kill loses nothing, plain modules are left."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import training_cases as cases
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.errors import CorruptFile, InvalidArgument
from tersor.training import Compression, GradualPruning, export_onnx, load_module, save_module, stored_bytes
from tersor.training.method import is_plain

EVERY = pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.id)
STEPS = 12


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def _adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, compression: Compression, parts: int = 1) -> None:
    pixels, labels = cases.batch()
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        for own, wanted in zip(pixels.chunk(parts), labels.chunk(parts), strict=True):
            (F.cross_entropy(model(own), wanted) / parts).backward()
        optimizer.step()
        if compression.step % 4 == 0:
            compression.epoch_end({"accuracy": 0.5})


def _values(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def _start(case: cases.Case, optimizer_of: Callable[[nn.Module], torch.optim.Optimizer]) -> tuple[Compression, torch.optim.Optimizer]:
    compression = Compression(case.model(), case.methods(), total_steps=20, example_inputs=(cases.batch()[0][:2],))
    optimizer = optimizer_of(compression.model)
    compression.attach(optimizer)
    return compression, optimizer


@EVERY
@pytest.mark.parametrize("optimizer_of", [_sgd, _adam], ids=["sgd", "adamw"])
def test_resumes_to_the_same_bits(case: cases.Case, optimizer_of: Callable[[nn.Module], torch.optim.Optimizer], tmp_path: Path) -> None:
    whole, optimizer = _start(case, optimizer_of)
    _train(whole.model, optimizer, 20, whole)
    half, optimizer = _start(case, optimizer_of)
    _train(half.model, optimizer, 10, half)
    half.save(tmp_path / "half.safetensors")
    resumed, optimizer = _start(case, optimizer_of)
    assert resumed.load(tmp_path / "half.safetensors")
    assert resumed.step == 10
    _train(resumed.model, optimizer, 10, resumed)
    expected, found = _values(whole.finalize()), _values(resumed.finalize())
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert whole.report() == resumed.report()


@EVERY
def test_a_method_does_something(case: cases.Case) -> None:
    compression, optimizer = _start(case, _sgd)
    _train(compression.model, optimizer, 20, compression)
    plain = case.model()
    _train(plain, _sgd(plain), 20, compression)
    expected, found = _values(plain), _values(compression.finalize())
    assert expected.keys() != found.keys() or any(
        expected[key].shape != found[key].shape or not torch.equal(expected[key], found[key]) for key in expected
    )


@EVERY
def test_a_copy_of_the_model_computes_the_same(case: cases.Case) -> None:
    # As averages of weights and evaluations on the side need it, in the middle of a training.
    compression, optimizer = _start(case, _sgd)
    _train(compression.model, optimizer, 6, compression)
    twin, pixels = copy.deepcopy(compression.model).eval(), cases.batch()[0]
    assert torch.equal(twin(pixels), compression.model.eval()(pixels))


@EVERY
def test_finalize_leaves_plain_modules(case: cases.Case) -> None:
    compression, optimizer = _start(case, _sgd)
    _train(compression.model, optimizer, 20, compression)
    pixels = cases.batch()[0]
    compression.model.eval()
    before = compression.model(pixels)
    model = compression.finalize()
    assert is_plain(model)
    if case.exact:
        torch.testing.assert_close(model(pixels), before, rtol=1e-5, atol=1e-5)
    # The hooks are off: another step is not counted.
    step = compression.step
    optimizer.step()
    assert compression.step == step


@EVERY
def test_saves_loads_and_exports(case: cases.Case, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    compression, optimizer = _start(case, _sgd)
    _train(compression.model, optimizer, 20, compression)
    model = compression.finalize().eval()
    size = save_module(model, tmp_path / "model.safetensors")
    assert size == (tmp_path / "model.safetensors").stat().st_size
    assert stored_bytes(model) < size
    loaded = load_module(case.model(), tmp_path / "model.safetensors").eval()
    pixels = cases.batch()[0]
    assert torch.equal(loaded(pixels), model(pixels))
    assert export_onnx(model, (pixels,), tmp_path / "model.onnx") == (tmp_path / "model.onnx").stat().st_size


@EVERY
def test_damaged_files_are_refused(case: cases.Case, tmp_path: Path) -> None:
    compression, optimizer = _start(case, _sgd)
    _train(compression.model, optimizer, 4, compression)
    path = tmp_path / "training.safetensors"
    compression.save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    fresh, _ = _start(case, _sgd)
    with pytest.raises(CorruptFile):
        fresh.load(path)
    save_module(fresh.finalize(), path)
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(CorruptFile):
        load_module(case.model(), path)


@EVERY
def test_accumulated_gradients_change_nothing(case: cases.Case) -> None:
    # In evaluation mode, where a norm does not see how a batch is cut.
    def run(parts: int) -> dict[str, Tensor]:
        compression, optimizer = _start(case, _sgd)
        for module in compression.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train = lambda mode=True, own=module: own  # type: ignore[method-assign]
                module.training = False
        _train(compression.model, optimizer, STEPS, compression, parts)
        return _values(compression.finalize())

    whole, parts = run(1), run(2)
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=0, atol=1e-6)


@EVERY
def test_the_four_loops_agree(case: cases.Case, tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    import training_loops as loops

    compression, optimizer = _start(case, _sgd)
    pixels, labels = cases.batch()
    for _ in range(STEPS):
        optimizer.zero_grad()
        for own, wanted in zip(pixels.chunk(2), labels.chunk(2), strict=True):
            (F.cross_entropy(compression.model.train()(own), wanted) / 2).backward()
        optimizer.step()
        compression.epoch_end({})
    expected = _values(compression.finalize())
    for loop in (loops.transformers_trainer, loops.lightning_trainer, loops.accelerate_loop):
        other = Compression(case.model(), case.methods(), total_steps=20, example_inputs=(pixels[:2],))
        loop(other, _sgd, STEPS, tmp_path)
        assert other.step == STEPS, loop.__name__
        found = _values(other.finalize())
        for key, value in expected.items():
            named = f"{loop.__name__}, {key}"
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6, msg=lambda text, named=named: f"{named}: {text}")


@EVERY
def test_an_optimizer_that_stepped_is_refused(case: cases.Case) -> None:
    model = case.model()
    pixels, labels = cases.batch()
    compression = Compression(model, case.methods(), total_steps=20, example_inputs=(pixels[:2],))
    optimizer = _adam(model)
    F.cross_entropy(model(pixels), labels).backward()
    optimizer.step()
    with pytest.raises(InvalidArgument, match="before the first step"):
        compression.attach(optimizer)


@EVERY
def test_a_model_with_nothing_to_compress_is_refused(case: cases.Case) -> None:
    with pytest.raises(InvalidArgument):
        Compression(nn.Sequential(nn.ReLU(), nn.LayerNorm(4)), case.methods(), total_steps=20, example_inputs=(torch.zeros(1, 4),))


@EVERY
def test_bfloat16_autocast_trains(case: cases.Case) -> None:
    compression, optimizer = _start(case, _sgd)
    pixels, labels = cases.batch()
    for _ in range(4):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(compression.model(pixels).float(), labels)
        loss.backward()
        optimizer.step()
    assert all(bool(value.isfinite().all()) for value in _values(compression.finalize()).values() if value.is_floating_point())


# One of each method: the graph is traced anew for each.
COMPILED = {"gradual-regrow", "sap", "one-way", "sharing", "maestro", "lapp", "lapp-no-bypass", "trained-rank", "class-aware"}


@pytest.mark.parametrize("case", [case for case in cases.CASES if case.id in COMPILED], ids=lambda case: case.id)
def test_a_compiled_model_trains_alike(case: cases.Case) -> None:
    def run(compiled: bool) -> dict[str, Tensor]:
        compression, optimizer = _start(case, _sgd)
        torch.compiler.reset()
        model: Any = torch.compile(compression.model, backend="eager") if compiled else compression.model
        pixels, labels = cases.batch()
        model.train()
        for _ in range(9):
            optimizer.zero_grad()
            F.cross_entropy(model(pixels), labels).backward()
            optimizer.step()
            if compression.step % 4 == 0:
                compression.epoch_end({"accuracy": 0.5})
        return _values(compression.finalize())

    plain, compiled = run(False), run(True)
    assert plain.keys() == compiled.keys()
    for key, value in plain.items():
        torch.testing.assert_close(compiled[key], value, rtol=0, atol=1e-6)


def test_two_methods_may_not_overwrite_the_same_weight() -> None:
    with pytest.raises(InvalidArgument, match="both gradual_pruning and gradual_pruning overwrite"):
        Compression(cases.SmallNet(), [GradualPruning(0.5), GradualPruning(0.6)])
    Compression(cases.SmallNet(), [GradualPruning(0.5, targets=["conv1"]), GradualPruning(0.6, targets=["conv2"])])


def test_a_state_of_other_methods_is_refused(tmp_path: Path) -> None:
    compression = Compression(cases.SmallNet(), [GradualPruning(0.5)])
    compression.save(tmp_path / "state.safetensors")
    other = Compression(cases.SmallNet(), [GradualPruning(0.6)])
    with pytest.raises(InvalidArgument, match="another job"):
        other.load(tmp_path / "state.safetensors")


def test_an_optimizer_built_too_early_is_refused() -> None:
    model = cases.SmallNet()
    optimizer = _sgd(model)
    compression = Compression(model, [GradualPruning(0.5)])
    new = nn.Parameter(model.head.weight.detach().clone())
    compression.replace_parameter(model.head.weight, new, lambda values: values)
    with pytest.raises(InvalidArgument, match="no longer in the model"):
        compression.attach(optimizer)
