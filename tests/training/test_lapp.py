"""LAPP: learned thresholds, a budget that is kept, and cuts that change no output."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import training_cases as cases
from residual_net import ResidualNet
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tersor.errors import InvalidArgument
from tersor.training import LAPP, Compression, load_module, save_module
from tersor.training.bypass import BypassConv2d, GatedConv2d

BYPASS = pytest.mark.parametrize("bypass", [True, False], ids=["bypass", "plain"])


class _Chain(nn.Module):
    """Four convolutions of one width; the second has no norm and a bias."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.conv3, self.norm3 = nn.Conv2d(16, 16, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(16)
        self.conv4, self.norm4 = nn.Conv2d(16, 16, (3, 1), padding=(1, 0), bias=False), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 4)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            values = torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
            parameter.data = values.abs() + 0.5 if parameter.ndim == 1 else values

    def forward(self, pixels: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.norm1(self.conv1(pixels)))))
        return self.head(torch.relu(self.norm4(self.conv4(torch.relu(self.norm3(self.conv3(x)))))).mean((2, 3)))


def _products(model: nn.Module, pixels: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(pixels)
    return int(counter.get_total_flops()) // 2 // len(pixels)


def _train(method: LAPP, steps: int, model: nn.Module | None = None) -> tuple[Compression, list[float]]:
    pixels, labels = cases.batch()
    compression = Compression(model or _Chain(), [method], total_steps=60, example_inputs=(pixels[:2],))
    optimizer = torch.optim.SGD(compression.model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3)
    compression.attach(optimizer)
    shares = []
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(compression.model.train()(pixels), labels).backward()
        optimizer.step()
        shares.append(method.report()["products"])
    return compression, shares


@BYPASS
@pytest.mark.parametrize("importance", ["l1", "taylor"])
def test_the_cut_network_computes_what_the_masked_one_did(bypass: bool, importance: str) -> None:
    pixels = cases.batch()[0]
    method = LAPP(0.5, importance, bypass=bypass, end=1000, frequency=3)  # type: ignore[arg-type]
    compression, _ = _train(method, 12)
    generator = torch.Generator().manual_seed(1)
    for gate in method._gates.values():
        gate.threshold.data.copy_(0.4 + 0.5 * torch.rand((), generator=generator))
    model = compression.model.eval()
    masked = model(pixels)
    compression.finalize()
    assert len({len(kept) for kept in method._kept.values()}) > 1
    torch.testing.assert_close(model(pixels), masked, rtol=0, atol=1e-5)
    assert any(isinstance(layer, BypassConv2d) for layer in model.modules()) == bypass
    assert not any(isinstance(layer, GatedConv2d) for layer in model.modules())


@BYPASS
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_the_budget_is_kept_and_is_what_torchs_counter_says(bypass: bool, share: float) -> None:
    pixels = cases.batch()[0][:2]
    dense = _products(_Chain(), pixels)
    method = LAPP(share, bypass=bypass, end=30, frequency=5)
    compression, shares = _train(method, 40)
    measured = _products(compression.finalize(), pixels) / dense
    assert measured <= share
    # One filter more would be too many: the smallest step of a layer is a sixteenth of its products.
    assert measured > share - 0.15
    assert method.report()["products"] == pytest.approx(measured, abs=1e-6)
    # Down bit by bit, from all products and those of the bypasses.
    assert shares[0] >= 0.95
    assert max(before - after for before, after in pairwise(shares)) < 0.2


def test_a_threshold_learns_from_the_filters_in_its_window_alone() -> None:
    gate = GatedConv2d(nn.Conv2d(2, 8, 1), None, None, 0.25)
    gate.rank(torch.tensor([3.0, 1, 2, 7, 5, 4, 6, 0]))
    assert torch.equal(gate.scores, (torch.tensor([3.0, 1, 2, 7, 5, 4, 6, 0]) + 0.5) / 8)
    gate.threshold.data.fill_(0.5)
    weights = torch.arange(1.0, 9.0)
    (gate.mask() * weights).sum().backward()
    assert torch.equal(gate.mask(), torch.tensor([0.0, 0, 0, 1, 1, 1, 1, 0]))
    inside = (gate.scores - 0.5).abs() < 0.25
    assert float(gate.threshold.grad) == -float(weights[inside].sum()) / 0.5
    assert gate.conv.weight.grad is None


def test_without_a_bypass_nothing_is_changed_before_a_threshold_moves() -> None:
    pixels = cases.batch()[0]
    plain = _Chain().eval()
    gated = Compression(_Chain(), [LAPP(bypass=False, end=10)], example_inputs=(pixels[:2],)).model.eval()
    assert torch.equal(gated(pixels), plain(pixels))


def test_a_layer_may_lose_all_filters_of_its_own(tmp_path: Path) -> None:
    pixels = cases.batch()[0]
    model = _Chain()
    compression = Compression(model, [method := LAPP(0.9, end=1000, targets=["conv2", "conv3"])], example_inputs=(pixels[:2],))
    method._gates["conv2"].threshold.data.fill_(1.0)
    model.eval()
    masked = model(pixels)
    compression.finalize()
    assert method.report()["kept"] == {"conv2": 0, "conv3": 16}
    torch.testing.assert_close(model(pixels), masked, rtol=0, atol=1e-5)
    save_module(model, tmp_path / "model.safetensors")
    loaded = load_module(_Chain(1), tmp_path / "model.safetensors").eval()
    assert torch.equal(loaded(pixels), model(pixels))


@BYPASS
def test_residual_blocks_lose_inner_filters_alone(bypass: bool) -> None:
    pixels = cases.batch()[0]
    method = LAPP(0.7, bypass=bypass, end=10, frequency=2)
    compression, _ = _train(method, 12, ResidualNet())
    assert set(method.report()["kept"]) == {"block1.conv1", "block2.conv1", "block3.conv1"}
    model = compression.finalize()
    assert _products(model, pixels[:2]) <= 0.7 * _products(ResidualNet(), pixels[:2])
    assert model.block3.shortcut.weight.shape == (24, 16, 1, 1)
    with pytest.raises(InvalidArgument, match=r"block3\.conv2 shares its filters with block3\.shortcut"):
        Compression(ResidualNet(), [LAPP(0.7, bypass=bypass, targets=["block3.conv2"])], example_inputs=(pixels[:2],))


@BYPASS
def test_momentum_of_the_filters_that_stay_is_kept(bypass: bool) -> None:
    pixels, labels = cases.batch()
    method = LAPP(0.6, bypass=bypass, end=1000)
    compression = Compression(_Chain(), [method], example_inputs=(pixels[:2],))
    optimizer = torch.optim.SGD(compression.model.parameters(), lr=0.01, momentum=0.9)
    compression.attach(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(compression.model(pixels), labels).backward()
        optimizer.step()
    conv = method._gates["conv3"].conv
    before = optimizer.state[conv.weight]["momentum_buffer"].clone()
    with torch.no_grad():
        method._cut(method._chosen())
    layer = compression.model.conv3
    own = layer.conv if bypass else layer
    kept = before[method._kept["conv3"]]
    after = optimizer.state[own.weight]["momentum_buffer"]
    assert torch.equal(after, kept if bypass else kept[:, method._kept["conv2"]])
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in compression.model.parameters()}


def test_bad_options_are_refused() -> None:
    pixels = (cases.batch()[0][:2],)
    for options, words in [
        ({"products": 0.0}, "products must be above 0"), ({"products": 1.0}, "products"), ({"importance": "l2"}, "importance"),
        ({"end": 1.5}, "end"), ({"frequency": 0}, "frequency"), ({"window": 0.0}, "window"), ({"rate": -1.0}, "rate"),
    ]:  # fmt: skip
        with pytest.raises(InvalidArgument, match=words):
            LAPP(**options)
    for method, words in [
        (LAPP(0.05), "cannot be reached"), (LAPP(targets=["head"]), "convolutions that run once"), (LAPP(targets=["conv9"]), "conv9"),
    ]:  # fmt: skip
        with pytest.raises(InvalidArgument, match=words):
            Compression(_Chain(), [method], example_inputs=pixels)
    with pytest.raises(InvalidArgument, match="example_inputs"):
        Compression(_Chain(), [LAPP()])
    with pytest.raises(InvalidArgument, match="no convolution after the first"):
        Compression(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 2)), [LAPP()], example_inputs=pixels)


def test_frameworks_with_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    compression = Compression(_Chain(), [LAPP()], total_steps=9, example_inputs=(cases.batch()[0][:2],))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(InvalidArgument, match="LAPP changes shapes in the middle"):
        compression.trainer_callback().on_train_begin(None, None, None)
