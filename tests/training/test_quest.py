"""QuEST: the constants are optimal, the rounding is what it says, and what is exported computes what was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy import integrate, optimize, stats
from torch import Tensor, nn

from tersor.errors import InvalidArgument
from tersor.kernels.hadamard import block_of, rotate
from tersor.training import (
    GAUSSIAN_CLIP,
    LSQLinear,
    Quantizer,
    QuESTLinear,
    RoundedInputs,
    export,
    export_onnx,
    load_module,
    lsq,
    quest,
    save_module,
    stored_bytes,
)
from tersor.training.lsq import learned_rounding

BITS = range(1, 9)
# Mean squared error of a unit Gaussian on the best mid-rise grid.
ERRORS = {1: 0.36338, 2: 0.11885, 3: 0.03744, 4: 0.011543, 5: 0.003495, 6: 0.001040, 7: 3.043e-4, 8: 8.77e-5}


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gaussian_error(alpha: float, bits: int) -> float:
    step = 2 * alpha / (2**bits - 1)
    edges = [-alpha + step * (level + 0.5) for level in range(2**bits - 1)]
    bounds = [-12.0, *edges, 12.0]
    cells = zip(bounds, bounds[1:], (-alpha + step * level for level in range(2**bits)), strict=False)
    return sum(integrate.quad(lambda x, q=q: (x - q) ** 2 * stats.norm.pdf(x), low, high)[0] for low, high, q in cells)


@pytest.mark.parametrize("bits", range(1, 7))
def test_the_clips_lose_least_on_a_gaussian(bits: int):
    best = optimize.minimize_scalar(lambda alpha: gaussian_error(alpha, bits), bounds=(0.3, 5), method="bounded", options={"xatol": 1e-6})
    assert pytest.approx(best.x, abs=2e-3) == GAUSSIAN_CLIP[bits]
    assert best.fun == pytest.approx(ERRORS[bits], rel=2e-3)


@pytest.mark.parametrize("bits", BITS)
def test_the_error_on_samples_is_that_of_the_grid(bits: int):
    x = normal(bits, 1000, 1024)
    q = Quantizer(bits, hadamard=1)(x)
    # At many bits what is beyond the clip makes up the error, and a million samples hold few of those.
    assert float((q - x).square().mean()) == pytest.approx(ERRORS[bits], rel=0.01 if bits < 6 else 0.04)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("hadamard", [1, 128])
def test_levels_are_few_symmetric_and_scale_with_the_input(bits: int, hadamard: int):
    quantizer, x = Quantizer(bits, hadamard=hadamard), normal(1, 5, 192)
    q = quantizer(x)
    for row in q:
        levels = row.unique()
        assert len(levels) <= 2**bits
        assert 0 not in levels
    torch.testing.assert_close(quantizer(-x), -q, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(quantizer(4 * x), 4 * q, rtol=1e-4, atol=1e-5)


def test_rows_and_batches_do_not_see_each_other():
    quantizer, x = Quantizer(3), normal(2, 6, 64)
    assert torch.equal(quantizer(x)[2:3], quantizer(x[2:3]))


@pytest.mark.parametrize(("features", "block"), [(576, 64), (1536, 128), (7, 1), (96, 32), (128, 128), (6, 2)])
def test_the_rotation_is_its_own_inverse_and_keeps_lengths(features: int, block: int):
    assert block_of(features) == block
    x = normal(3, 4, features)
    turned = rotate(x, block)
    torch.testing.assert_close(rotate(turned, block), x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(turned.norm(dim=1), x.norm(dim=1), rtol=1e-5, atol=1e-5)
    if block > 1:
        spike = torch.zeros(1, features)
        spike[0, 0] = 1.0
        assert float(rotate(spike, block).abs().max()) == pytest.approx(block**-0.5)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_gradients_pass_where_rounding_is_trusted(bits: int):
    x = normal(4, 64, 256).requires_grad_()
    Quantizer(bits, hadamard=1)(x).sum().backward()
    h = x.detach()
    alpha = GAUSSIAN_CLIP[bits] * h.square().mean(1, keepdim=True).sqrt() + 1e-8
    beyond = h.abs() > alpha + alpha / (2**bits - 1) * (1 + 1e-4)
    within = h.abs() < alpha + alpha / (2**bits - 1) * (1 - 1e-4)
    assert (x.grad[beyond] == 0).all()
    assert (x.grad[within] == 1).all()
    assert float(x.grad.mean()) == pytest.approx({1: 0.889, 2: 0.954, 3: 0.981, 4: 0.993}[bits], abs=0.01)


def test_masks_differ_in_gradients_alone():
    x = normal(5, 8, 64)
    results, gradients = [], []
    for mask in ("trust", "clip", "straight_through"):
        inputs = x.clone().requires_grad_()
        results.append(Quantizer(2, hadamard=1, mask=mask)(inputs))
        results[-1].sum().backward()
        gradients.append(inputs.grad)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert (gradients[2] == 1).all()
    alpha = GAUSSIAN_CLIP[2] * x.square().mean(1, keepdim=True).sqrt() + 1e-8
    assert torch.equal(gradients[1], (x.abs() <= 1.3 * alpha).float())


def test_the_gradient_of_the_rotation_is_the_rotation_back():
    x, weights = normal(6, 3, 32).requires_grad_(), normal(7, 3, 32)
    (Quantizer(8, mask="straight_through")(x) * weights).sum().backward()
    torch.testing.assert_close(x.grad, rotate(weights, 32), rtol=1e-5, atol=1e-6)


def test_pairs_of_smallest_norm_are_zero():
    q = Quantizer(4, hadamard=1, keep_pairs=2)(normal(8, 10, 64))
    pairs = q.view(10, 8, 4, 2)
    assert ((pairs == 0).all(-1).sum(-1) == 2).all()
    x = normal(8, 10, 64).view(10, 8, 4, 2)
    kept, dropped = (x.square().sum(-1).masked_fill((pairs == 0).all(-1) ^ flip, fill) for flip, fill in ((False, 1e9), (True, 0.0)))
    assert (kept.amin(-1) >= dropped.amax(-1)).all()


def layer(bits: int | None, inputs: int | None, features: int = 48) -> QuESTLinear:
    weights, activations = (None if number is None else Quantizer(number) for number in (bits, inputs))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return QuESTLinear(features, 20, weights=weights, activations=activations)


def test_without_rounding_it_is_a_linear_layer():
    plain, x = layer(None, None), normal(9, 5, 48)
    torch.testing.assert_close(plain(x), nn.functional.linear(x, plain.weight, plain.bias), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_more_bits_are_closer_to_the_linear_layer(bits: int):
    x = normal(10, 50, 48)
    exact = layer(None, None)(x)
    errors = [float((layer(count, count)(x) - exact).square().mean()) for count in (bits, 8)]
    assert errors[0] >= errors[1]
    if bits < 8:
        assert errors[0] > 2 * errors[1]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("inputs", [None, 8, 2])
def test_what_is_exported_computes_what_was_trained(bits: int, inputs: int | None):
    model = nn.Sequential(layer(bits, inputs), nn.ReLU(), nn.Linear(20, 4))
    x = normal(11, 9, 48)
    trained = model[0](x)
    assert export(model) == ["0"]
    torch.testing.assert_close(model[0](x), trained, rtol=1e-4, atol=1e-5)
    stored = [buffer for buffer in model[0].buffers() if buffer.dtype == torch.uint8]
    assert sum(buffer.numel() for buffer in stored) == 20 * -(-48 * bits // 8)


def test_rounded_inputs_are_saved_loaded_and_exported(tmp_path: Path):
    pytest.importorskip("onnxruntime")
    model = nn.Sequential(layer(4, 3), nn.ReLU(), nn.Linear(20, 4))
    export(model)
    x = normal(11, 9, 48)
    assert save_module(model, tmp_path / "model.safetensors") > stored_bytes(model)
    loaded = load_module(nn.Sequential(nn.Linear(48, 20), nn.ReLU(), nn.Linear(20, 4)), tmp_path / "model.safetensors")
    assert isinstance(loaded[0], RoundedInputs)
    assert loaded[0].activations == model[0].activations
    assert torch.equal(loaded(x), model(x))
    # Written dense and compared with the model by onnxruntime; the inputs are rounded there too.
    export_onnx(loaded, (x,), tmp_path / "model.onnx")
    assert torch.equal(loaded(x), model(x))


def test_a_language_model_of_few_bits_is_one_of_tersors_and_runs_without_it(stories_path: Path, tmp_path: Path):
    import copy

    from transformers import AutoModelForCausalLM

    import tersor

    original = tersor.load(stories_path)
    module = copy.deepcopy(original.module)
    quest(module, weights=6, activations=6)
    export(module, round_inputs=False)
    small = tersor.Model(module, original.tokenizer, "few bits")
    tokens = original.encode("Once upon a time")[None]
    with torch.no_grad():
        expected = small.module(tokens).logits
        small.save(tmp_path / "own")
        assert torch.equal(tersor.load(tmp_path / "own").module(tokens).logits, expected)
        small.export(tmp_path / "plain", format="safetensors")
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
        torch.testing.assert_close(plain(tokens).logits, expected, rtol=1e-3, atol=1e-3)
    assert small.nbytes < 0.5 * original.nbytes


def test_conversion_keeps_parameters_and_skips_what_it_is_told():
    model = nn.ModuleDict({"embed": nn.Linear(8, 16), "body": nn.Linear(16, 16), "lm_head": nn.Linear(16, 4)})
    before = dict(model.named_parameters())
    assert quest(model, weights=3, activations=None) == ["body"]
    assert all(model.get_parameter(name) is parameter for name, parameter in before.items())
    with pytest.raises(InvalidArgument, match="no plain linear layer beside those that skip names"):
        quest(nn.ModuleDict({"lm_head": nn.Linear(2, 2)}))
    with pytest.raises(InvalidArgument, match="bits must be an integer from 1 to 8"):
        quest(model, weights=9)
    with pytest.raises(InvalidArgument, match="no layer that was trained"):
        export(nn.Linear(2, 2))


@pytest.mark.parametrize("make", ["quest", "lsq"])
def test_training_at_four_bits_fits_a_small_function(make: str):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 1))
    _ = quest(model, weights=4, activations=4) if make == "quest" else lsq(model)
    x = normal(12, 256, 16)
    y = (x[:, :1] * x[:, 1:2]).tanh()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("bits", BITS)
def test_a_learned_step_has_the_gradient_of_its_paper(bits: int):
    values, step = normal(13, 200).requires_grad_(), torch.tensor(0.3, requires_grad=True)
    q = learned_rounding(values, step, bits)
    q.sum().backward()
    low, high = (-1, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    scaled = values.detach() / 0.3
    inside = (scaled > low) & (scaled < high)
    level = torch.where(scaled >= 0, 1.0, -1.0) if bits == 1 else scaled.clamp(low, high).round()
    torch.testing.assert_close(q.detach(), level * 0.3, rtol=1e-5, atol=1e-6)
    expected = (torch.where(inside, level - scaled, level) * (200 * high) ** -0.5).sum()
    torch.testing.assert_close(step.grad, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(values.grad != 0, inside)


def test_the_first_call_of_a_learned_layer_sets_its_steps():
    model = nn.Sequential(nn.Linear(8, 8))
    lsq(model, weight_bits=2, activation_bits=2)
    assert isinstance(model[0], LSQLinear)
    assert not model[0].steps.any()
    model(normal(14, 4, 8))
    assert (model[0].steps > 0).all()
