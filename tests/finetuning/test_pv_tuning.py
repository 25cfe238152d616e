"""PV-tuning of a whole model: same format, lower divergence, resumable at any step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tersor.errors import CorruptFile, InvalidArgument
from tersor.finetuning import PVConfig, pv_tuning
from tersor.finetuning.pv_tuning import divergence
from tersor.models import Model


@torch.no_grad()
def kl(small: Model, teacher: Model, windows: Tensor) -> float:
    return float(divergence(small, teacher, windows))


Make = Callable[[str], Model]
KINDS = ("codebooks", "grid", "mask")


@pytest.mark.parametrize("mode", ["pv", "p", "straight_through"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_comes_closer_in_the_same_format(teacher: Model, windows: Tensor, made: Make, kind: str, mode: Any):
    small = made(kind)
    config = PVConfig(mode=mode, steps=30, batch=6, learning_rate=3e-3, code_learning_rate=0.02, max_code_change=0.05, trust_ratio=0.05)
    tuned = pv_tuning(small, teacher, windows, config)
    assert kl(tuned.model, teacher, windows) < 0.8 * kl(small, teacher, windows)
    assert tuned.model.nbytes == small.nbytes
    assert {name: weight.config for name, weight in tuned.model.weights().items()} == {n: w.config for n, w in small.weights().items()}
    assert (sum(tuned.changes) == 0) == (mode == "p")
    # What was trained is what is stored: the last loss is that of the model before the last step, so measure anew.
    again = pv_tuning(tuned.model, teacher, windows, PVConfig(mode="p", steps=1, batch=6, learning_rate=0.0))
    assert kl(again.model, teacher, windows) == pytest.approx(kl(tuned.model, teacher, windows), abs=1e-6)


def test_the_compressed_model_is_left_alone(teacher: Model, windows: Tensor, made: Make):
    small = made("grid")
    before, original = small.fingerprint(), teacher.fingerprint()
    pv_tuning(small, teacher, windows, PVConfig(steps=2))
    assert (small.fingerprint(), teacher.fingerprint()) == (before, original)


def test_a_rate_below_the_first_boundary_shows_in_the_changes(teacher: Model, windows: Tensor, made: Make):
    small = made("grid")
    frozen = pv_tuning(small, teacher, windows, PVConfig(steps=3, code_learning_rate=1e-6, delta_decay=1.0))
    forced = pv_tuning(small, teacher, windows, PVConfig(steps=3, code_learning_rate=1e-6, delta_decay=1.0, force_update=True))
    assert sum(frozen.changes) == 0 < sum(forced.changes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_goes_on_to_the_same_bits(teacher: Model, windows: Tensor, made: Make, kind: str, tmp_path: Path):
    small = made(kind)
    fixed: dict[str, Any] = {"batch": 4, "check_every": 3, "learning_rate": 1e-3, "code_learning_rate": 0.02}
    whole = pv_tuning(small, teacher, windows[8:], PVConfig(steps=9, **fixed), held_out=windows[:8])

    def die(step: int, steps: int, loss: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    file = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        pv_tuning(small, teacher, windows[8:], PVConfig(steps=9, **fixed), held_out=windows[:8], checkpoint=file, progress=die)
    resumed = pv_tuning(small, teacher, windows[8:], PVConfig(steps=9, **fixed), held_out=windows[:8], checkpoint=file)
    assert resumed.losses == whole.losses
    assert resumed.changes == whole.changes
    assert resumed.held_out == whole.held_out
    assert resumed.model.fingerprint() == whole.model.fingerprint()


def test_the_best_step_on_held_out_windows_is_kept(teacher: Model, windows: Tensor, made: Make):
    small = made("grid")
    # A rate far too high: later steps are worse than the first measurement.
    tuned = pv_tuning(small, teacher, windows[8:], PVConfig(steps=12, check_every=2, learning_rate=0.3, batch=4), held_out=windows[:8])
    step, loss = min(tuned.held_out, key=lambda pair: pair[1])
    assert tuned.best_step == step
    measured = torch.tensor([kl(tuned.model, teacher, part) for part in windows[:8].split(4)]).mean()
    assert float(measured) == pytest.approx(loss, rel=1e-4)


def test_a_checkpoint_of_another_job_or_a_damaged_one_is_refused(teacher: Model, windows: Tensor, made: Make, tmp_path: Path):
    small = made("grid")
    file = tmp_path / "state.safetensors"
    pv_tuning(small, teacher, windows, PVConfig(steps=1), checkpoint=file)
    with pytest.raises(InvalidArgument, match=r"of another job \(other config\)"):
        pv_tuning(small, teacher, windows, PVConfig(steps=2, learning_rate=0.1), checkpoint=file)
    with pytest.raises(InvalidArgument, match=r"other windows"):
        pv_tuning(small, teacher, windows[1:], PVConfig(steps=2), checkpoint=file)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(CorruptFile, match="cannot be read"):
        pv_tuning(small, teacher, windows, PVConfig(steps=2), checkpoint=file)


def test_bad_input_is_named(teacher: Model, windows: Tensor, made: Make):
    small = made("grid")
    with pytest.raises(InvalidArgument, match="no layer of the model can be tuned"):
        pv_tuning(teacher, teacher, windows)
    with pytest.raises(InvalidArgument, match="mode must be one of"):
        pv_tuning(small, teacher, windows, PVConfig(mode="vp"))  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="token 64 but the model knows 64"):
        pv_tuning(small, teacher, windows + 1)
    with pytest.raises(InvalidArgument, match="max_code_change"):
        pv_tuning(small, teacher, windows, PVConfig(max_code_change=1.5))
