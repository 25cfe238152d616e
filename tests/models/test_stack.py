"""One folder, every size: resizing moves blocks and nothing else, comes back bit for bit, and damage is named with nothing lost."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tersor.errors import CorruptFile, InvalidArgument, TersorError
from tersor.layerwise import LayerStats, bitstack
from tersor.models import Model, load
from tersor.models.blocks import BlockWalk
from tersor.models.restoring import load_native
from tersor.models.stack import BLOCKS, ORDER, load_stack, parse_resizes, save_stack
from tersor.models.stack_order import order_by_error, order_by_fitness, output_sensitivity
from tersor.weights import DenseWeight, ResidualStack

HEIGHT = 4


def stacked(model: Model, tokens: torch.Tensor, heights: dict[str, int] | None = None) -> tuple[Model, dict[str, LayerStats]]:
    """Every linear layer of the blocks as a residual stack, and the statistics that it was made with."""
    full, stats = model.copy(), {}
    for step in BlockWalk(model, tokens):
        stats |= step.stats
        for name in step.layers:
            full.replace(name, bitstack(model.matrix(name), step.stats[name], blocks=(heights or {}).get(name, HEIGHT), rank=1))
    return full, stats


def divergence(model: Model, original: Model, tokens: torch.Tensor) -> float:
    with torch.inference_mode():
        ours, theirs = (part.module(tokens).logits.log_softmax(-1) for part in (model, original))
    return float((theirs.exp() * (theirs - ours)).sum(-1).mean())


@pytest.fixture(scope="module")
def scene(tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A tiny model, its stacked form and the folder of that."""
    original, tokens = tiny.model("llama"), tiny.tokens(8, 32)
    full, stats = stacked(original, tokens)
    order = order_by_error(full, original, stats)
    folder = tmp_path_factory.mktemp("stack") / "stacked"
    save_stack(full, folder, order)
    return SimpleNamespace(original=original, full=full, stats=stats, order=order, folder=folder, tokens=tokens)


@pytest.fixture
def folder(scene: SimpleNamespace, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(scene.folder, tmp_path / "copy"))


def heights(model: Model) -> dict[str, int]:
    return {name: len(weight) for name, weight in model.weights().items() if isinstance(weight, ResidualStack)}


def test_everything_loaded_is_the_model_that_was_saved(scene: SimpleNamespace):
    assert load_stack(scene.folder).fingerprint() == scene.full.fingerprint()


def test_sizes_are_the_bytes_in_memory_and_on_disk(scene: SimpleNamespace):
    model = load_stack(scene.folder, 10**9)
    assert len(model.sizes) == len(scene.order) + 1
    assert (scene.folder / BLOCKS).stat().st_size == model.sizes[-1] - model.sizes[0]
    for nbytes in model.sizes[:: len(model.sizes) // 6]:
        assert model.resize(nbytes).nbytes == nbytes == model.nbytes
        assert model.resize(nbytes + 1).nbytes == nbytes


def test_a_smaller_budget_is_a_subset_of_a_larger_one(scene: SimpleNamespace):
    model = load_stack(scene.folder)
    seen = []
    for nbytes in model.sizes:
        model.resize(nbytes)
        seen.append(heights(model))
        assert max(seen[-1].values()) - min(seen[-1].values()) <= 1
    for smaller, larger, layer in zip(seen, seen[1:], scene.order, strict=False):
        assert larger == {**smaller, layer: smaller[layer] + 1}


def test_growing_and_shrinking_is_bit_exact(scene: SimpleNamespace, tiny: SimpleNamespace):
    model = load_stack(scene.folder)
    sizes = model.sizes
    expected = {}
    for index in (0, 7, 23, len(sizes) - 1):
        fresh = load_stack(scene.folder, sizes[index])
        expected[index] = (fresh.fingerprint(), tiny.outputs(fresh, scene.tokens))
    for index in (7, 23, 0, len(sizes) - 1, 23, 7, 0):
        model.resize(sizes[index])
        fingerprint, output = expected[index]
        assert model.fingerprint() == fingerprint
        assert torch.equal(tiny.outputs(model, scene.tokens), output)


def test_only_the_blocks_between_are_read(scene: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    model = load_stack(scene.folder, load_stack(scene.folder).sizes[10])
    kept = {name: [block.signs.data_ptr() for block in weight] for name, weight in stacks_of(model).items()}
    change = model.resize(model.sizes[14])
    assert (change.loaded, change.dropped) == (model.sizes[14] - model.sizes[10], 0)
    assert all([block.signs.data_ptr() for block in weight][: len(kept[name])] == kept[name] for name, weight in stacks_of(model).items())
    read = count_reads(monkeypatch)
    assert model.resize(model.sizes[30]).loaded == model.sizes[30] - model.sizes[14] == sum(read)
    model.resize(model.sizes[14])
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("shrinking reads nothing"))
    change = model.resize(model.sizes[3])
    assert (change.loaded, change.dropped) == (0, model.sizes[14] - model.sizes[3])


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of every read from a file that is opened from here on."""
    plain_open, found = Path.open, []

    class Counted(io.BufferedReader):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            found.append(len(data))
            return data

    monkeypatch.setattr(Path, "open", lambda path, mode="r", **options: Counted(plain_open(path, mode, buffering=0)))
    return found


def stacks_of(model: Model) -> dict[str, ResidualStack]:
    return {name: weight for name, weight in model.weights().items() if isinstance(weight, ResidualStack)}


@pytest.mark.parametrize("write", ["25kB", "0.5", "8bpw"])
def test_budgets_are_written_as_everywhere(scene: SimpleNamespace, write: str):
    model = load_stack(scene.folder, write)
    n = model.n_parameters
    limit = {"25kB": 25_000, "0.5": n, "8bpw": n}[write]
    assert model.nbytes <= limit < model.sizes[model.loaded + 1]


def test_it_loads_like_any_model_at_its_largest_size(scene: SimpleNamespace):
    model = load(scene.folder)
    assert model.fingerprint() == scene.full.fingerprint()
    assert model.resize(load_stack(scene.folder).sizes[3]).nbytes == model.nbytes


def test_a_model_that_is_no_stack_has_one_size(scene: SimpleNamespace):
    with pytest.raises(InvalidArgument, match=r"model llama has one size, .* load what 'tersor stack' wrote of it$") as refusal:
        scene.original.resize("10kB")
    assert "\n" not in str(refusal.value)


def test_the_folder_is_also_a_plain_model_of_the_smallest_size(scene: SimpleNamespace):
    smallest = load_native(scene.folder)
    assert smallest.nbytes == load_stack(scene.folder).sizes[0]
    assert set(heights(smallest).values()) == {1}


def test_a_copy_and_a_saved_model_keep_their_size(scene: SimpleNamespace, tmp_path: Path):
    model = load_stack(scene.folder)
    model.resize(model.sizes[9])
    twin, before = model.copy(), model.fingerprint()
    model.save(tmp_path / "plain")
    model.resize(model.sizes[-1])
    assert twin.fingerprint() == before == load(tmp_path / "plain").fingerprint()


def test_a_prefix_of_the_file_is_a_working_model(scene: SimpleNamespace, folder: Path):
    full = load_stack(scene.folder)
    cut = full.sizes[12] - full.sizes[0]
    (folder / BLOCKS).write_bytes((folder / BLOCKS).read_bytes()[: cut + 5])
    model = load_stack(folder, full.sizes[12])
    full.resize(full.sizes[12])
    assert model.fingerprint() == full.fingerprint()
    message = rf"truncated: it holds 12 of {len(scene.order)} blocks; .* ask for at most {full.sizes[12]} bytes"
    with pytest.raises(CorruptFile, match=message):
        load_stack(folder)


def test_a_damaged_block_leaves_the_model_as_it_was(folder: Path):
    model = load_stack(folder, load_stack(folder).sizes[4])
    data = bytearray((folder / BLOCKS).read_bytes())
    data[model.sizes[8] - model.sizes[0] + 3] ^= 1
    (folder / BLOCKS).write_bytes(data)
    before = model.fingerprint()
    with pytest.raises(CorruptFile, match=rf"damaged: block 8, of layer model\.layers.* ask for at most {model.sizes[8]} bytes"):
        model.resize(model.sizes[-1])
    assert (model.fingerprint(), model.loaded) == (before, 4)
    model.resize(model.sizes[8])
    (folder / BLOCKS).unlink()
    with pytest.raises(CorruptFile, match=r"blocks\.bin cannot be read: No such file"):
        model.resize(model.sizes[-1])


@pytest.mark.parametrize("damage", ["garbage", "number", "list", "other base", "newer", "bit of the base"])
def test_a_damaged_description_is_one_sentence(folder: Path, damage: str):
    path, kind, message = folder / ORDER, CorruptFile, "was changed or damaged"
    description = json.loads(path.read_text(encoding="utf-8"))
    if damage == "garbage":
        path.write_text("{", encoding="utf-8")
        message = "is damaged"
    elif damage == "list":
        path.write_text("[]", encoding="utf-8")
        message = "is damaged"
    elif damage == "number":
        path.write_text(json.dumps({**description, "minimum": description["minimum"] + 1}), encoding="utf-8")
    elif damage == "newer":
        path.write_text(json.dumps({**description, "format": 99}), encoding="utf-8")
        kind, message = InvalidArgument, "format 99; this version reads up to 1"  # type: ignore[assignment]
    elif damage == "other base":
        (folder / "tersor.json").write_text((folder / "tersor.json").read_text(encoding="utf-8") + " ", encoding="utf-8")
        message = "belongs to another model"
    else:
        data = bytearray((folder / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(kind, match=message) as refusal:
        load_stack(folder)
    assert "\n" not in str(refusal.value)


def test_a_budget_below_the_smallest_is_refused_and_changes_nothing(scene: SimpleNamespace):
    model = load_stack(scene.folder)
    before = model.nbytes
    with pytest.raises(InvalidArgument, match=rf"below the smallest size of this model, {model.sizes[0]} bytes"):
        model.resize(model.sizes[0] - 1)
    assert model.nbytes == before


def test_a_replaced_layer_is_noticed(scene: SimpleNamespace):
    model = load_stack(scene.folder)
    name = scene.order[0]
    model.replace(name, DenseWeight(model.matrix(name)))
    with pytest.raises(TersorError, match=f"layer {name} was given another weight"):
        model.resize(model.sizes[0])


def test_orders_that_do_not_fit_are_refused(scene: SimpleNamespace, tmp_path: Path):
    name = scene.order[0]
    with pytest.raises(InvalidArgument, match=f"names layer {name} 4 times; it has 3 blocks above the first"):
        save_stack(scene.full, tmp_path / "a", [*scene.order, name])
    with pytest.raises(InvalidArgument, match="names layer lm_head 1 times; it has 0"):
        save_stack(scene.full, tmp_path / "b", [*scene.order, "lm_head"])
    with pytest.raises(InvalidArgument, match="no layer of the model holds a residual stack"):
        save_stack(scene.original, tmp_path / "c", [])
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "precious.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InvalidArgument, match="was not written by tersor"):
        save_stack(scene.full, tmp_path / "d", scene.order)
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_writing_again_replaces_the_whole_folder(scene: SimpleNamespace, folder: Path):
    small = scene.full.copy()
    for name, weight in stacks_of(scene.full).items():
        small.replace(name, weight.prefix(2))
    save_stack(small, folder, list(stacks_of(small)))
    assert load_stack(folder).fingerprint() == small.fingerprint()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_plain_folder_is_no_stack(scene: SimpleNamespace, tmp_path: Path):
    scene.original.save(tmp_path / "plain")
    with pytest.raises(InvalidArgument, match=r"holds no residual stack \(stack\.json is missing\)"):
        load_stack(tmp_path / "plain")


def test_stacks_of_different_heights_share_a_file(scene: SimpleNamespace, tmp_path: Path):
    first = scene.order[0]
    full, stats = stacked(scene.original, scene.tokens, {first: 1})
    order = order_by_error(full, scene.original, stats)
    assert first not in order
    save_stack(full, tmp_path / "mixed", order)
    assert load_stack(tmp_path / "mixed").fingerprint() == full.fingerprint()


@pytest.mark.parametrize("per_byte", [False, True], ids=["gain", "gain-per-byte"])
def test_both_orders_name_every_block_level_by_level(scene: SimpleNamespace, per_byte: bool):
    def fitness(model: Model) -> float:
        return divergence(model, scene.original, scene.tokens[:1])

    small, stats = stacked(scene.original, scene.tokens, dict.fromkeys(scene.stats, 2))
    before = small.fingerprint()
    orders = [order_by_fitness(small, fitness, per_byte=per_byte), order_by_error(small, scene.original, stats, per_byte=per_byte)]
    for order in orders:
        assert Counter(order) == Counter(stacks_of(small).keys())
    assert small.fingerprint() == before


def test_the_measured_order_sorts_by_what_was_measured(scene: SimpleNamespace):
    small, _ = stacked(scene.original, scene.tokens, dict.fromkeys(scene.stats, 3))
    # A fitness with a known answer: what a layer's second and third block is worth falls with its name.
    worth = {name: 1 / rank for rank, name in enumerate(sorted(stacks_of(small)), 1)}
    order = order_by_fitness(small, lambda model: -sum(worth[name] * (len(weight) - 1) for name, weight in stacks_of(model).items()))
    assert order == 2 * sorted(worth)
    order = order_by_fitness(small, lambda model: float("nan") if heights(model)["model.layers.0.mlp.up_proj"] == 2 else 0.0)
    assert order[len(worth) - 1] == "model.layers.0.mlp.up_proj"
    with pytest.raises(InvalidArgument, match="NaN or infinite for every layer at 1 blocks"):
        order_by_fitness(small, lambda model: float("inf"))


def test_the_estimated_order_sorts_by_the_fall_of_the_error(scene: SimpleNamespace):
    sensitivity = {name: torch.ones(scene.original.shape(name)[0]) for name in scene.stats}
    order = order_by_error(scene.full, scene.original, scene.stats, sensitivity)
    falls = {}
    for name, weight in stacks_of(scene.full).items():
        hessian, original = scene.stats[name].hessian, scene.original.matrix(name).double()
        errors = [float(((d := original - weight.prefix(count).dense().double()) @ hessian * d).sum()) for count in (1, 2)]
        falls[name] = errors[0] - errors[1]
    assert order[: len(falls)] == sorted(falls, key=lambda name: -falls[name])
    with pytest.raises(InvalidArgument, match="no statistics of the inputs of layer"):
        order_by_error(scene.full, scene.original, {})


def test_sensitivity_is_the_squared_gradient_of_the_loss(scene: SimpleNamespace):
    tokens, name = scene.tokens[:2], "model.layers.1.mlp.down_proj"
    found = output_sensitivity(scene.original, tokens)
    assert found.keys() >= set(scene.stats)
    layer = scene.original.module.get_submodule(name)
    total = torch.zeros(layer.out_features)
    for sequence in tokens:
        offset = torch.zeros(1, len(sequence), layer.out_features, requires_grad=True)
        hook = layer.register_forward_hook(lambda _, args, output, offset=offset: output + offset)
        logits = scene.original.module(sequence[None]).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, sequence[1:], reduction="sum").backward()
        hook.remove()
        assert offset.grad is not None
        total += offset.grad.square().sum((0, 1))
    torch.testing.assert_close(found[name], total / tokens.numel(), rtol=1e-4, atol=1e-8)
    assert not any(parameter.requires_grad for parameter in scene.original.module.parameters())


@pytest.fixture(scope="module")
def stories(stories_path: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The trained model as a stack of five blocks a layer."""
    original = load(stories_path)
    ids = original.encode((data_dir / "text" / "tinystories.txt").read_text(encoding="utf-8")[:40_000])
    tokens, held_out = ids[: 8 * 256].reshape(8, 256), ids[8 * 256 : 12 * 256].reshape(4, 256)
    full, stats = stacked(original, tokens, dict.fromkeys(original.linears(), 5))
    folder = tmp_path_factory.mktemp("stories") / "stacked"
    save_stack(full, folder, order_by_error(full, original, stats, output_sensitivity(original, tokens)))
    return SimpleNamespace(original=original, folder=folder, held_out=held_out)


def test_divergence_falls_with_the_loaded_bytes(stories: SimpleNamespace):
    model = load_stack(stories.folder)
    values = []
    for nbytes in model.sizes[:: len(model.sizes) // 20]:
        model.resize(nbytes)
        values.append(divergence(model, stories.original, stories.held_out))
    assert len(values) >= 20
    assert all(after < 1.02 * before for before, after in pairwise(values))
    assert values[-1] < 0.1 * values[0]


def test_generation_changes_size_on_the_way(stories: SimpleNamespace):
    model = load_stack(stories.folder)
    whole = model.generate("Once upon a time", max_new_tokens=12)
    small, large = model.sizes[70], model.sizes[-1]
    changed: Any = model.generate("Once upon a time", max_new_tokens=24, resize={12: small})
    assert changed.startswith(whole)
    assert model.nbytes == small
    assert model.generate("Once upon a time", max_new_tokens=12, resize={0: large}) == whole
    told: list[tuple[int, int]] = []
    def tell(number: int, change: Any) -> None:
        told.append((number, change.nbytes))

    model.generate("Once", max_new_tokens=8, resize={2: large, 5: small}, on_resize=tell)
    assert told == [(2, large), (5, small)]


def test_a_plan_of_sizes_is_checked_before_a_word_is_written(stories: SimpleNamespace):
    model = load_stack(stories.folder)
    before = model.nbytes
    with pytest.raises(InvalidArgument, match=r"the size '1MB' is for token 12; name one of the 12 tokens, counted from 0"):
        model.generate("Once", max_new_tokens=12, resize={0: model.sizes[3], 12: "1MB"})
    with pytest.raises(InvalidArgument, match="below the smallest size"):
        model.generate("Once", max_new_tokens=12, resize={0: model.sizes[3], 1: 1})
    assert model.nbytes == before


def test_sizes_are_written_with_their_token():
    assert parse_resizes(["30MB@16", "0.5@0"]) == {16: "30MB", 0: "0.5"}
    for wrong in ("30MB", "@3", "30MB@", "30MB@-1", "30MB@x"):
        with pytest.raises(InvalidArgument, match="write SIZE@TOKEN, such as 30MB@16"):
            parse_resizes([wrong])
    with pytest.raises(InvalidArgument, match="second size for token 4"):
        parse_resizes(["1MB@4", "2MB@4"])
