"""1-way filters against the dense convolution that they stand for."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import training_cases as cases
from torch import Tensor, nn

from tersor.errors import InvalidArgument
from tersor.training import APrioriConv, Compression, PerKernelConv, factorise_conv, load_module, merge_conv, save_module

# torch says of even kernels that it copies the input.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

FORMS = ["sequential", "cp", "per_kernel"]
# Every option of a convolution by axis, kernels of one on an axis, and paddings of every kind.
OPTIONS = [
    {"kernel_size": 3},
    {"kernel_size": (3, 5), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)},
    {"kernel_size": 4, "padding": "same", "bias": False},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    {"kernel_size": (5, 3), "padding": (2, 1), "padding_mode": "reflect", "stride": 3},
]
OPTIONS_3D = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 2, 4), "stride": (1, 2, 1), "padding": (0, 1, 2), "dilation": (2, 1, 1)},
    {"kernel_size": (1, 3, 3), "stride": (2, 1, 1), "padding": (1, 0, 1)},
    {"kernel_size": (3, 1, 3), "padding": "same", "padding_mode": "replicate"},
]
EVERY = pytest.mark.parametrize(
    ("kind", "options"), [*((nn.Conv2d, options) for options in OPTIONS), *((nn.Conv3d, options) for options in OPTIONS_3D)],
    ids=lambda value: value.__name__ if isinstance(value, type) else "-".join(f"{key}={entry}" for key, entry in value.items()),
)  # fmt: skip


def dense(kind: type, inputs: int, outputs: int, seed: int = 0, dtype: torch.dtype = torch.float64, **options) -> nn.Conv2d | nn.Conv3d:
    layer = nn.utils.skip_init(kind, inputs, outputs, dtype=dtype, **options)
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return layer


def signal(layer: nn.Module, channels: int, seed: int = 1, samples: int = 2, size: int = 11) -> Tensor:
    axes = 2 if isinstance(layer, nn.Conv2d) else 3
    return torch.randn(samples, channels, *[size] * axes, generator=torch.Generator().manual_seed(seed), dtype=layer.weight.dtype)


def count(layer: nn.Module) -> int:
    return sum(parameter.numel() for name, parameter in layer.named_parameters() if "bias" not in name)


@EVERY
@pytest.mark.parametrize(("inputs", "outputs"), [(3, 5), (6, 2)])
def test_at_full_rank_the_factors_are_the_dense_convolution(kind, options, inputs, outputs):
    layer = dense(kind, inputs, outputs, **options)
    factors = factorise_conv(layer, start="weights")
    x = signal(layer, inputs)
    torch.testing.assert_close(factors(x), layer(x), rtol=1e-10, atol=1e-10)
    wide = sum(size > 1 for size in layer.kernel_size)
    assert len(factors) == wide


@pytest.mark.parametrize("options", OPTIONS[:3])
def test_at_full_rank_sums_of_outer_products_are_the_dense_convolution(options):
    layer = dense(nn.Conv2d, 3, 5, **options)
    factors = factorise_conv(layer, form="per_kernel", start="weights")
    x = signal(layer, 3)
    torch.testing.assert_close(factors(x), layer(x), rtol=1e-10, atol=1e-10)
    assert factors.rank == min(layer.kernel_size)


@EVERY
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rank", [1, 3, None])
def test_factors_merge_into_one_convolution(kind, options, form, rank):
    if form == "per_kernel" and options.get("padding_mode"):
        pytest.skip("refused, see below")
    layer = dense(kind, 4, 3, **options)
    factors = factorise_conv(layer, rank, form=form, generator=torch.Generator().manual_seed(0))
    merged, x = merge_conv(factors), signal(layer, 4)
    assert merged.weight.shape == layer.weight.shape
    torch.testing.assert_close(factors(x), merged(x), rtol=1e-10, atol=1e-10)
    assert all(getattr(merged, key) == getattr(layer, key) for key in ("stride", "padding", "dilation", "padding_mode"))
    assert merged.bias is None if layer.bias is None else torch.equal(merged.bias, layer.bias)


@pytest.mark.parametrize("rank", range(1, 9))
def test_a_truncated_start_is_as_close_as_any_of_its_rank(rank):
    # Eckart and Young: no kernel of that rank is closer than the truncated singular value decomposition.
    layer = dense(nn.Conv2d, 4, 6, kernel_size=3)
    merged = merge_conv(factorise_conv(layer, rank, start="weights"))
    matrix = layer.weight.permute(1, 2, 3, 0).reshape(12, 18)
    best = torch.linalg.svdvals(matrix)[rank:].square().sum().sqrt()
    torch.testing.assert_close((merged.weight - layer.weight).norm(), best, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_numbers_of_weights_follow_the_formulas(rank):
    flat, deep = dense(nn.Conv2d, 10, 12, kernel_size=(3, 5)), dense(nn.Conv3d, 10, 12, kernel_size=(3, 5, 2))
    start = {"generator": torch.Generator().manual_seed(0)}
    assert count(factorise_conv(flat, rank, **start)) == rank * (10 * 3 + 12 * 5)
    assert count(factorise_conv(deep, rank, **start)) == rank * (10 * 3 + rank * 5 + 12 * 2)
    assert count(factorise_conv(flat, rank, form="cp", **start)) == rank * (10 + 3 + 5 + 12)
    assert count(factorise_conv(deep, rank, form="cp", **start)) == rank * (10 + 3 + 5 + 2 + 12)
    assert count(factorise_conv(flat, rank, form="per_kernel", **start)) == 10 * 12 * min(rank, 3) * (3 + 5)
    assert count(factorise_conv(deep, rank, form="per_kernel", **start)) == 10 * 12 * min(rank, 6) * (3 + 5 + 2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.Conv3d])
def test_a_random_start_keeps_the_size_of_signals(form, kind):
    # Over a signal without correlations, averaged over draws: within a fifth of the dense layer.
    ratios = []
    for seed in range(20):
        layer = dense(kind, 8, 8, seed, kernel_size=3, bias=False)
        factors = factorise_conv(layer, 6, form=form, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(merge_conv(factors).weight.square().mean(), layer.weight.square().mean())
        x = signal(layer, 8, seed, 4, 8)
        ratios.append(float(factors(x).detach().square().mean() / layer(x).detach().square().mean()))
    assert 0.8 < sum(ratios) / len(ratios) < 1.2


def test_draws_come_from_the_generator_alone():
    layer = dense(nn.Conv2d, 4, 4, kernel_size=3)
    state = torch.get_rng_state()
    first, second = (factorise_conv(layer, 2, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), second.parameters(), strict=True))


class Wide(nn.Module):
    """Layers that 1-way filters make smaller, and every kind that they do not."""

    def __init__(self) -> None:
        super().__init__()
        options = {"dtype": torch.float32}
        self.first = dense(nn.Conv2d, 1, 8, kernel_size=2, **options)
        self.wide = dense(nn.Conv2d, 8, 8, kernel_size=5, **options)
        self.grouped = dense(nn.Conv2d, 8, 8, kernel_size=3, groups=2, **options)
        self.line = dense(nn.Conv2d, 8, 8, kernel_size=(1, 7), **options)
        self.volume = dense(nn.Conv3d, 2, 16, kernel_size=3, **options)
        self.head = nn.Linear(8, 3)


def test_a_share_is_kept_and_what_would_grow_is_left_alone():
    model = Wide()
    compression = Compression(model, [APrioriConv(keep=0.4)])
    report = compression.report()["a_priori_conv"]
    assert set(report["layers"]) == {"wide", "volume"}
    for name, layer in report["layers"].items():
        assert layer["weights"] == count(model.get_submodule(name)) <= 0.4 * layer["dense"]
    assert report["layers"]["wide"]["rank"] == math.floor(0.4 * 8 * 8 * 25 / (2 * 8 * 5))
    assert report["weights"] / report["dense"] <= 0.4
    compression.finalize()
    assert type(model.wide) is nn.Sequential
    assert all(type(layer) is nn.Conv2d for layer in model.wide)


def test_training_starts_from_the_weights_of_a_trained_network():
    model, whole = cases.SmallNet().eval(), cases.SmallNet().eval()
    Compression(model, [APrioriConv(rank=15, start="weights")])
    pixels = cases.batch()[0]
    merged = merge_conv(model.conv2)
    error = (merged.weight - whole.conv2.weight).norm() / whole.conv2.weight.norm()
    assert 0 < error < 0.5
    whole.conv2.weight.data = merged.weight.data
    torch.testing.assert_close(model(pixels), whole(pixels), rtol=1e-4, atol=1e-5)


def test_volumes_and_strange_paddings_survive_the_disk(tmp_path):
    def build() -> nn.Module:
        return nn.Sequential(dense(nn.Conv3d, 3, 6, kernel_size=3, padding=1, padding_mode="circular", dtype=torch.float32), nn.ReLU())

    compression = Compression(build(), [APrioriConv(rank=2)])
    model = compression.finalize()
    save_module(model, tmp_path / "model.safetensors")
    loaded = load_module(build(), tmp_path / "model.safetensors")
    x = torch.randn(2, 3, 6, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: APrioriConv(form="tucker"), "form"),
        (lambda: APrioriConv(rank=0), "rank"),
        (lambda: APrioriConv(keep=1.0), "keep"),
        (lambda: APrioriConv(keep=0), "keep"),
        (lambda: APrioriConv(rank=2, keep=0.5), "not both"),
        (lambda: Compression(Wide(), [APrioriConv(targets=["grouped"])]), "grouped is in 2 groups"),
        (lambda: Compression(Wide(), [APrioriConv(targets=["line"])]), "1-way filter already"),
        (lambda: Compression(Wide(), [APrioriConv(targets=["head"])]), "head is a Linear"),
        (lambda: Compression(Wide(), [APrioriConv(targets=["wide"], rank=40)]), "too many"),
        (lambda: Compression(Wide(), [APrioriConv(targets=["first"], keep=0.4)]), "18, which is too many"),
        (lambda: Compression(Wide(), [APrioriConv(targets=["nowhere"])]), "nowhere"),
        (lambda: Compression(nn.Conv2d(8, 8, 5), [APrioriConv()]), "wrap it"),
        (lambda: Compression(nn.Sequential(nn.Linear(3, 3)), [APrioriConv()]), "no convolution"),
        (lambda: factorise_conv(nn.Conv2d(8, 8, 5), form="cp", start="weights"), "start='random'"),
        (lambda: factorise_conv(nn.Conv2d(8, 8, 5)), "generator"),
        (lambda: factorise_conv(nn.Conv2d(8, 8, 5, padding_mode="reflect"), form="per_kernel"), "sequential form"),
        (lambda: merge_conv(nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU())), "merge"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(make, said):
    with pytest.raises(InvalidArgument, match=said):
        make()


def test_layers_that_share_a_weight_are_left_alone():
    model = nn.Sequential(*(dense(nn.Conv2d, 4, 4, kernel_size=5, dtype=torch.float32) for _ in range(3)))
    model[2].weight = model[0].weight
    compression = Compression(model, [APrioriConv()])
    assert set(compression.report()["a_priori_conv"]["layers"]) == {"1"}


def test_a_convolution_that_is_not_finite_is_refused():
    layer = dense(nn.Conv2d, 4, 4, kernel_size=3)
    layer.weight.data[0, 0, 0, 0] = math.nan
    with pytest.raises(InvalidArgument, match="NaN"):
        factorise_conv(layer, start="weights")


def test_kernels_are_sums_of_outer_products():
    layer = PerKernelConv(2, 3, (3, 4), 2, (1, 1), (0, 0), (1, 1))
    generator = torch.Generator().manual_seed(0)
    for factor in layer.factors:
        factor.data = torch.randn(factor.shape, generator=generator)
    for o, i in itertools.product(range(3), range(2)):
        expected = sum(torch.outer(layer.factors[0][o, i, r], layer.factors[1][o, i, r]) for r in range(2))
        torch.testing.assert_close(layer.kernel()[o, i], expected)
