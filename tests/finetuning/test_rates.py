"""Rates of PV-tuning: the best of the candidates is taken, and a killed choice ends as an undisturbed one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.finetuning import ChosenRates, PVConfig, choose_rates, pv_tuning
from tersor.finetuning.rates import CANDIDATES, rates_beside
from tersor.models import Model

Make = Callable[[str], Model]
CONFIG = PVConfig(steps=8, batch=4, check_every=4, seed=3)
# The second and the fourth ruin the model.
TRIED: list[dict[str, Any]] = [
    {"learning_rate": 1e-4, "code_learning_rate": 1e-3}, {"learning_rate": 100.0}, {"learning_rate": 3e-3, "code_learning_rate": 0.02},
    {"code_learning_rate": 5.0, "max_code_change": 1.0, "trust_ratio": 10.0},
]  # fmt: skip


def chosen(small: Model, teacher: Model, windows: Tensor, **options: Any) -> ChosenRates:
    return choose_rates(small, teacher, windows[8:], windows[:8], CONFIG, **{"steps": 4, "candidates": TRIED, **options})


@pytest.mark.parametrize("kind", ["codebooks", "grid", "mask"])
def test_the_candidate_whose_tuning_ends_lowest_is_taken(teacher: Model, windows: Tensor, made: Make, kind: str):
    small = made(kind)
    found = chosen(small, teacher, windows)
    apart = [
        pv_tuning(small, teacher, windows[8:], PVConfig(**{**vars(CONFIG), **rates, "steps": 4}), held_out=windows[:8]).held_out[-1][1]
        for rates in TRIED
    ]
    assert found.losses == tuple(loss if math.isfinite(loss) else math.inf for loss in apart)
    assert found.rates == TRIED[found.losses.index(min(found.losses))]
    assert found.config == PVConfig(**{**vars(CONFIG), **found.rates})
    assert found.losses.index(min(found.losses)) not in (1, 3)


def test_the_tuning_goes_on_from_the_chosen_one(teacher: Model, windows: Tensor, made: Make, tmp_path: Path):
    small, file = made("grid"), tmp_path / "state.safetensors"
    config = chosen(small, teacher, windows, checkpoint=file).config
    steps: list[int] = []
    resumed = pv_tuning(
        small, teacher, windows[8:], config, held_out=windows[:8], checkpoint=file, progress=lambda step, *_: steps.append(step)
    )
    whole = pv_tuning(small, teacher, windows[8:], config, held_out=windows[:8])
    assert steps == [5, 6, 7, 8]
    assert (resumed.losses, resumed.changes, resumed.held_out) == (whole.losses, whole.changes, whole.held_out)
    assert resumed.model.fingerprint() == whole.model.fingerprint()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([file.name, rates_beside(file).name])


@pytest.mark.parametrize("killed_at", range(1, 17, 3))
def test_a_killed_choice_ends_as_an_undisturbed_one(teacher: Model, windows: Tensor, made: Make, tmp_path: Path, killed_at: int):
    small = made("grid")
    whole = chosen(small, teacher, windows)

    def die(step: int, steps: int, loss: float) -> None:
        assert steps == 16
        if step == killed_at:
            raise KeyboardInterrupt

    file = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        chosen(small, teacher, windows, checkpoint=file, progress=die)
    assert chosen(small, teacher, windows, checkpoint=file) == whole
    # What is asked again is read, not tuned again.
    assert chosen(small, teacher, windows, checkpoint=file, progress=die) == whole


def test_where_all_diverge_the_first_is_taken(teacher: Model, windows: Tensor, made: Make, tmp_path: Path):
    small, file = made("grid"), tmp_path / "state.safetensors"
    found = chosen(small, teacher, windows, candidates=[{"learning_rate": 1e30}, {"learning_rate": 1e35}], checkpoint=file)
    assert found.rates == {"learning_rate": 1e30}
    assert found.losses == (math.inf, math.inf)
    kept = pv_tuning(small, teacher, windows[8:], found.config, held_out=windows[:8], checkpoint=file)
    assert kept.best_step == 0
    json.dumps(kept.to_dict(), allow_nan=False)


def test_every_mode_has_candidates_that_can_be_used():
    for mode, candidates in CANDIDATES.items():
        for rates in candidates:
            PVConfig(**{**vars(CONFIG), "mode": mode, **rates}).check()


def test_bad_input_is_named(teacher: Model, windows: Tensor, made: Make, tmp_path: Path):
    small, file = made("grid"), tmp_path / "state.safetensors"
    with pytest.raises(InvalidArgument, match="one or more sets of fields of PVConfig, got none"):
        chosen(small, teacher, windows, candidates=[])
    with pytest.raises(InvalidArgument, match="got speed"):
        chosen(small, teacher, windows, candidates=[{"speed": 1.0}])
    with pytest.raises(InvalidArgument, match="steps"):
        chosen(small, teacher, windows, steps=0)
    with pytest.raises(InvalidArgument, match="9 steps do not fit before one of 8"):
        chosen(small, teacher, windows, steps=9)
    with pytest.raises(InvalidArgument, match="no layer of the model can be tuned"):
        chosen(teacher, teacher, windows)
    chosen(small, teacher, windows, checkpoint=file)
    with pytest.raises(InvalidArgument, match=r"of another job \(other steps\)"):
        chosen(small, teacher, windows, checkpoint=file, steps=5)
