"""Checkpoints: bit-identical continuation, other numbers of workers, and damage."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

from tersor.distributed import MODES, ErrorFeedbackState, LGreCoState, Quadratics, Simulator, load_checkpoint, save_checkpoint
from tersor.distributed.checkpoint import for_other_world
from tersor.errors import CorruptFile, InvalidArgument

PROBLEM = Quadratics.random(4, 20, noise=1.0)


def make(mode: str) -> ErrorFeedbackState:
    return ErrorFeedbackState(mode, "topk:0.1", min_numel=1, vectors=True)


def run(state: ErrorFeedbackState, steps: int, start: torch.Tensor | None = None) -> torch.Tensor:
    simulator = Simulator(state, torch.zeros(20, dtype=torch.float64) if start is None else start, PROBLEM.gradients)
    return simulator.run(steps, 0.005)["x"]


@pytest.mark.parametrize("mode", MODES)
def test_continuing_is_bit_identical(mode: str, tmp_path: Path):
    whole = run(make(mode), 20)
    first = make(mode)
    half = run(first, 11)
    save_checkpoint(first, tmp_path / "at-11")
    second = make(mode)
    load_checkpoint(second, tmp_path / "at-11")
    assert second.step == 11
    assert torch.equal(run(second, 9, half), whole)


def test_the_state_survives_the_safe_loader_of_torch():
    state = LGreCoState("econtrol", "topk:0.1", min_numel=1, vectors=True, adjust_every=4, accumulate=2)
    run(state, 10)
    buffer = io.BytesIO()
    torch.save(state.state_dict(), buffer)
    buffer.seek(0)
    again = LGreCoState("econtrol", "topk:0.1", min_numel=1, vectors=True, adjust_every=4, accumulate=2)
    again.load_state_dict(torch.load(buffer, weights_only=True))
    assert again.knobs == state.knobs
    assert len(again.history) == 2
    assert all(torch.equal(again.local["x"][key], state.local["x"][key]) for key in state.local["x"])


@pytest.mark.parametrize("workers", [1, 3, 7])
def test_another_number_of_workers_keeps_the_mean_error_and_the_server(workers: int):
    generator = torch.Generator().manual_seed(0)
    old = [{"w": {key: torch.randn(1, 6, generator=generator) for key in ("error", "tracked", "momentum")}} for _ in range(4)]
    server = torch.stack([local["w"]["tracked"] for local in old]).mean(0)[0]
    new = for_other_world(old, {"w": {"server": server}})["w"]
    for key in ("error", "momentum"):
        torch.testing.assert_close(new[key].expand(workers, 6).mean(0), torch.cat([local["w"][key] for local in old]).mean(0))
    torch.testing.assert_close(new["tracked"].expand(workers, 6).mean(0), server)


def test_a_checkpoint_of_several_workers_is_merged(tmp_path: Path):
    state = make("econtrol")
    run(state, 5)
    save_checkpoint(state, tmp_path)
    # As if two workers had written it.
    index = json.loads((tmp_path / "exchange.json").read_text())
    (tmp_path / "exchange.json").write_text(json.dumps({**index, "world_size": 2}))
    (tmp_path / "exchange-00001.safetensors").write_bytes((tmp_path / "exchange-00000.safetensors").read_bytes())
    fresh = make("econtrol")
    load_checkpoint(fresh, tmp_path)
    torch.testing.assert_close(fresh.local["x"]["error"], state.local["x"]["error"])
    assert torch.equal(fresh.local["x"]["tracked"], state.shared["x"]["server"].expand(4, 20))


def test_other_settings_are_refused(tmp_path: Path):
    state = make("econtrol")
    run(state, 2)
    save_checkpoint(state, tmp_path)
    with pytest.raises(InvalidArgument, match="the state was stored with mode='econtrol', this one has 'ef21'"):
        load_checkpoint(make("ef21"), tmp_path)
    with pytest.raises(InvalidArgument, match="algorithm='error feedback', this one has 'lgreco'"):
        load_checkpoint(LGreCoState("econtrol", "topk:0.1", min_numel=1, vectors=True), tmp_path)
    stored = state.state_dict()
    with pytest.raises(InvalidArgument, match="stored by 3 workers and 1 are running"):
        make("econtrol").load_state_dict({**stored, "world_size": 3})
    with pytest.raises(CorruptFile, match="lacks local"):
        make("econtrol").load_state_dict({key: value for key, value in stored.items() if key != "local"})


def test_damage_is_named(tmp_path: Path):
    with pytest.raises(InvalidArgument, match="holds no finished checkpoint"):
        load_checkpoint(make("ef"), tmp_path)
    state = make("ef")
    run(state, 2)
    save_checkpoint(state, tmp_path)
    shard, index = tmp_path / "exchange-00000.safetensors", tmp_path / "exchange.json"
    data, described = shard.read_bytes(), index.read_text()
    shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptFile, match=r"exchange-00000\.safetensors cannot be read"):
        load_checkpoint(make("ef"), tmp_path)
    shard.unlink()
    with pytest.raises(CorruptFile, match="is missing from the checkpoint; copy the shards"):
        load_checkpoint(make("ef"), tmp_path)
    shard.write_bytes(data)
    index.write_text(json.dumps({**json.loads(described), "step": 9}))
    with pytest.raises(CorruptFile, match="is of step 2 and the checkpoint of step 9"):
        load_checkpoint(make("ef"), tmp_path)
    index.write_text("{")
    with pytest.raises(CorruptFile, match=r"exchange\.json is damaged"):
        load_checkpoint(make("ef"), tmp_path)
