"""Removal of filters: the masked network is the smaller one, and the optimizer goes on."""

from __future__ import annotations

import pytest
import torch
import training_cases as cases
from residual_net import ResidualNet
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.errors import InvalidArgument
from tersor.training import Compression, GradualPruning, remove_filters
from tersor.training.structured import filter_links, layer_products

SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])
KEPT = {"conv1": [0, 2, 3, 6], "conv2": [1, 4, 5, 8, 9, 15]}


def _randomize(model: nn.Module, seed: int) -> nn.Module:
    """Small whole numbers and powers of two, in float64: every sum is exact, so the order in which a kernel adds cannot hide an error."""
    generator = torch.Generator().manual_seed(seed)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = 0.0
    model.double().eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(4.0 ** torch.randint(0, 2, tensor.shape, generator=generator))
        elif tensor.is_floating_point():
            tensor.copy_(torch.randint(-1, 2, tensor.shape, generator=generator))
    return model


def _pixels() -> Tensor:
    return cases.batch()[0].mul(2).round().double()


def _mask(norm: nn.Module, kept: list[int]) -> None:
    gone = torch.ones(len(norm.weight), dtype=torch.bool)
    gone[kept] = False
    norm.weight.data[gone] = 0
    norm.bias.data[gone] = 0


@SEEDS
def test_a_masked_network_is_the_sliced_one_bit_for_bit(seed: int) -> None:
    model = _randomize(cases.SmallNet(), seed)
    _mask(model.norm1, KEPT["conv1"])
    _mask(model.norm2, KEPT["conv2"])
    pixels = _pixels()
    masked = model(pixels)
    remove_filters(model, KEPT, (pixels[:2],))
    assert torch.equal(model(pixels), masked)
    assert bool(masked.std() > 0)
    assert model.conv2.weight.shape == (6, 4, 3, 3)
    assert model.head.in_features == model.norm2.num_features == 6


@SEEDS
def test_a_masked_residual_network_is_the_sliced_one_bit_for_bit(seed: int) -> None:
    model = _randomize(ResidualNet(), seed)
    kept = {f"block{index}.conv1": [0, 3, 4, 7] for index in (1, 2, 3)}
    for index in (1, 2, 3):
        _mask(model.get_submodule(f"block{index}.norm1"), [0, 3, 4, 7])
    pixels = _pixels()
    masked = model(pixels)
    remove_filters(model, kept, (pixels[:2],))
    assert torch.equal(model(pixels), masked)
    assert model.block2.conv2.weight.shape == (16, 4, 3, 3)


def test_a_stream_with_a_projection_is_sliced_with_all_that_is_added_to_it() -> None:
    model = _randomize(ResidualNet(), 0)
    kept = list(range(0, 24, 2))
    _mask(model.block3.norm2, kept)
    model.block3.shortcut.weight.data[1::2] = 0
    pixels = _pixels()
    masked = model(pixels)
    remove_filters(model, {"block3.conv2": kept}, (pixels[:2],))
    assert torch.equal(model(pixels), masked)
    assert model.block3.shortcut.out_channels == model.head.in_features == 12


def test_a_flattened_picture_loses_all_pixels_of_a_channel() -> None:
    model = _randomize(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)), 0)
    _mask(model[1], [1, 2])
    pixels = _pixels()
    masked = model(pixels)
    remove_filters(model, {"0": [1, 2]}, (pixels[:1],))
    assert torch.equal(model(pixels), masked)
    assert model[4].in_features == 72


@pytest.mark.parametrize("make", [
    lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), lambda model: torch.optim.AdamW(model.parameters(), lr=0.01),
], ids=["sgd", "adamw"])  # fmt: skip
def test_the_optimizer_goes_on_as_if_the_network_had_been_masked(make: object) -> None:
    # Channels that are zero after their norm get no gradient where they are read, so the rest must train alike with and without them.
    pixels, labels = cases.batch()

    def run(sliced: bool) -> Tensor:
        model = cases.SmallNet().eval()
        compression = Compression(model, [GradualPruning(0.5, begin=100, end=200)])
        optimizer = make(model)  # type: ignore[operator]
        compression.attach(optimizer)
        for step in range(6):
            if step == 3:
                _mask(model.norm1, KEPT["conv1"])
                if sliced:
                    remove_filters(model, {"conv1": KEPT["conv1"]}, (pixels[:2],), compression)
            optimizer.zero_grad()
            F.cross_entropy(model(pixels), labels).backward()
            optimizer.step()
            if step >= 3 and not sliced:
                _mask(model.norm1, KEPT["conv1"])
        weight = model.conv2.weight.detach()
        return weight if sliced else weight[:, KEPT["conv1"]]

    torch.testing.assert_close(run(True), run(False), rtol=1e-5, atol=1e-6)


def test_links_tell_who_shares_and_who_reads() -> None:
    links = filter_links(_randomize(ResidualNet(), 0), (_pixels(),))
    assert links["block2.conv1"].outputs == ()
    assert links["block2.conv1"].readers == {"block2.conv2": 16}
    assert set(links["block3.conv2"].outputs) == {"block3.shortcut"}
    assert "block1.conv2" in links["stem"].outputs
    assert links["head"].readers == {}


def test_products_are_those_of_torchs_counter() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model, pixels = _randomize(ResidualNet(), 0), torch.zeros(2, 1, 8, 8).double()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(pixels)
    model.norm.train()
    assert sum(layer_products(model, (pixels,)).values()) == counter.get_total_flops() // 2 // 2
    assert model.norm.training
    assert not model.training


def test_nothing_is_changed_where_a_removal_is_refused() -> None:
    model, pixels = _randomize(ResidualNet(), 0), torch.zeros(1, 1, 8, 8).double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    # Option A pads the channels of a stream, so their order matters.
    for kept, words in [
        ({"block2.conv2": range(14)}, "cannot be removed"), ({"block2.conv2": range(4)}, "keep more"), ({"stem": [8]}, "0 to 7, which 8"),
        ({"stem": [-1, 2]}, "which -1"), ({"stem": []}, "at least one"), ({"nothing": [0]}, "no convolution"),
        ({"norm": [0]}, "no convolution"), ({"head": [0, 1]}, "outputs of the model"),
        ({"block3.conv2": [0], "block3.shortcut": [0]}, "shares its filters"),
    ]:  # fmt: skip
        with pytest.raises(InvalidArgument, match=words):
            remove_filters(model, kept, (pixels,))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(InvalidArgument, match="example_inputs do not run"):
        remove_filters(model, {"stem": [0]}, (torch.zeros(1, 3, 8, 8),))
