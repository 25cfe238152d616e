"""What every kind of compressed weight promises, run on each example of conftest.py."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save, save_file
from torch import Tensor
from torch.nn import functional as F

from tersor.errors import CorruptFile
from tersor.weights import KINDS, CompressedWeight, check_state, weight_from_config

Example = tuple[CompressedWeight, Tensor]


def rebuild(weight: CompressedWeight) -> CompressedWeight:
    with torch.device("meta"):
        return weight_from_config(json.loads(json.dumps(weight.config)))


def test_every_kind_has_an_example(example_kinds):
    assert example_kinds == set(KINDS)


def test_dense_is_the_definition(example: Example):
    weight, dense = example
    assert weight.dense().dtype == torch.float32
    assert weight.shape == tuple(dense.shape)
    # Products of factors and sums of parts may round in another order; single formats must not round at all.
    tolerance = 1e-5 if weight.kind in ("lowrank", "sum", "dictionary", "tensor_train") else 0.0
    torch.testing.assert_close(weight.dense(), dense, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("leading", [(), (1,), (5,), (2, 3), (0,), (2, 0), (33,)], ids=str)
def test_forward_is_the_dense_product(example: Example, leading: tuple[int, ...]):
    weight, dense = example
    x = torch.randn(*leading, weight.shape[1], generator=torch.Generator().manual_seed(1))
    y = weight(x)
    assert y.dtype == x.dtype
    torch.testing.assert_close(y, F.linear(x, dense), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_forward_answers_in_the_type_of_its_input(example: Example, dtype: torch.dtype):
    weight, dense = example
    x = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(1)).to(dtype)
    y = weight(x)
    assert y.dtype == dtype
    expected = F.linear(x.float(), dense)
    assert (y.float() - expected).norm() <= 0.02 * expected.norm() + 1e-6


def test_gradient_reaches_the_input(example: Example):
    weight, dense = example
    x = torch.randn(4, weight.shape[1], generator=torch.Generator().manual_seed(2), requires_grad=True)
    probe = torch.randn(4, weight.shape[0], generator=torch.Generator().manual_seed(3))
    (found,) = torch.autograd.grad((weight(x) * probe).sum() + x.sum(), x)
    torch.testing.assert_close(found, probe @ dense + 1, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("index", [[0], [3, 3, 1], [[6, 0], [2, 5]], []], ids=str)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
def test_rows_are_rows_of_dense(example: Example, index: list, dtype: torch.dtype):
    weight, _ = example
    rows = torch.tensor(index, dtype=dtype)
    found, expected = weight.rows(rows), weight.dense()[rows.long()]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_nbytes_are_the_bytes_of_the_saved_tensors(example: Example, tmp_path):
    weight, _ = example
    save_file(weight.state_dict(), tmp_path / "weight.safetensors")
    with safe_open(tmp_path / "weight.safetensors", "pt") as file:
        stored = sum(file.get_tensor(key).untyped_storage().nbytes() for key in file.keys())  # noqa: SIM118
    assert weight.nbytes == stored
    assert weight.bits_per_weight == 8 * stored / (weight.shape[0] * weight.shape[1])


def test_round_trip_through_json_and_safetensors_is_exact(example: Example):
    weight, _ = example
    empty = rebuild(weight)
    assert all(buffer.is_meta for buffer in empty.buffers())
    assert empty.config == weight.config
    assert empty.nbytes == weight.nbytes
    tensors = load(save(weight.state_dict()))
    check_state(empty, tensors, "layer")
    empty.load_state_dict(tensors, assign=True)
    assert empty.state_dict().keys() == weight.state_dict().keys()
    assert all(torch.equal(tensor, empty.state_dict()[key]) for key, tensor in weight.state_dict().items())
    assert torch.equal(empty.dense(), weight.dense())
    x = torch.ones(2, weight.shape[1])
    assert torch.equal(empty(x), weight(x))


def test_loading_other_values_in_place_forgets_the_old_ones(example: Example):
    weight, _ = example
    other = copy.deepcopy(weight)
    x = torch.ones(1, weight.shape[1])
    other(x), other.rows(torch.tensor([1]))
    reversed_rows = {key: tensor if tensor.ndim < 2 else tensor.flip(0) for key, tensor in weight.state_dict().items()}
    other.load_state_dict(reversed_rows)
    torch.testing.assert_close(other(x), F.linear(x, other.dense()), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(other.rows(torch.tensor([1])), other.dense()[1:2], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_casting_a_model_never_rounds_what_is_stored(example: Example, dtype: torch.dtype):
    weight, _ = example
    before, nbytes = weight.dense(), weight.nbytes
    weight.to(dtype)
    assert torch.equal(weight.dense(), before)
    assert weight.nbytes == nbytes
    assert weight.dtype == dtype


def test_stored_tensors_are_copies(example: Example):
    weight, _ = example
    twin = copy.deepcopy(weight)
    for buffer in twin.buffers():
        buffer.zero_()
    assert weight.state_dict().keys() == twin.state_dict().keys()
    assert all(not buffer.requires_grad for buffer in weight.buffers())


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "dtype", "nan"])
def test_stored_tensors_that_break_the_description_are_named(example: Example, damage: str):
    weight, _ = example
    tensors = dict(weight.state_dict())
    names = [key for key, tensor in tensors.items() if tensor.numel() and (damage != "nan" or tensor.is_floating_point())]
    if not names and damage != "extra":
        pytest.skip("nothing of this kind is stored")
    key = names[0] if names else "other"
    if damage == "missing":
        del tensors[key]
    elif damage == "extra":
        key = "surplus"
        tensors[key] = torch.zeros(1)
    elif damage == "shape":
        tensors[key] = torch.cat([tensors[key], tensors[key]])
    elif damage == "dtype":
        tensors[key] = tensors[key].to(torch.int64)
    else:
        tensors[key] = torch.full_like(tensors[key], torch.nan)
    with pytest.raises(CorruptFile, match=rf"model\.layers\.0.*{key}"):
        check_state(rebuild(weight), tensors, "model.layers.0")


def test_every_field_of_a_description_is_validated(example: Example):
    weight, _ = example
    for damaged in mutations(weight.config):
        with torch.device("meta"), pytest.raises(CorruptFile):
            check_state(weight_from_config(damaged), dict(weight.state_dict()), "layer")


def mutations(config: dict) -> list[dict]:
    """Every copy of ``config`` with one leaf missing or absurd, at any depth."""
    found = []
    for key, value in config.items():
        found.append({other: config[other] for other in config if other != key})
        replacements: list = [None, -1, 99, "nonsense", [], {}, 0.5, 10**30]
        if isinstance(value, dict):
            replacements += mutations(value)
        elif key == "parts":
            replacements += [[part, *value[1:]] for part in mutations(value[0])] + [value * 2]
        elif key == "shape":
            replacements += [[0, 1], [-1, 4], [1, 2, 3], [value[0], 1.0 * value[1]], ["7", 24], [2**40, 2**40], [True, 24]]
        elif isinstance(value, bool):
            replacements += [not value, int(value)]
        elif isinstance(value, int):
            replacements += [0, value + 1]
        found += [{**config, key: replacement} for replacement in replacements if json.dumps(replacement) != json.dumps(value)]
    return found
