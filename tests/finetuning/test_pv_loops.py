"""PV-tuning ends at the same model in its own loop, under accelerate and in the trainer of transformers, and resumes in each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.finetuning import PVConfig, PVOptimizer, TowardsOriginal, pv_tuning
from tersor.models import Model

CONFIG = PVConfig(steps=6, batch=4, learning_rate=1e-3, code_learning_rate=0.2, max_code_change=0.05, trust_ratio=0.1)


@pytest.fixture(scope="module", params=["grid", "codebooks"])
def small(request: pytest.FixtureRequest, made: Callable[[str], Model]) -> Model:
    return made(request.param)


WINDOWS = torch.randint(64, (16, 24), generator=torch.Generator().manual_seed(1))


def drawn(steps: int) -> Tensor:
    """The windows that pv_tuning draws, step by step."""
    rows = [
        torch.randint(len(WINDOWS), (CONFIG.batch,), generator=torch.Generator().manual_seed(CONFIG.seed * 1_000_003 + step))
        for step in range(steps)
    ]
    return WINDOWS[torch.cat(rows)]


def plainly(loss: TowardsOriginal, optimizer: PVOptimizer, folder: Path) -> None:
    for tokens in drawn(CONFIG.steps).split(CONFIG.batch):
        # Two halves of a batch: their gradients add up.
        for half in tokens.chunk(2):
            (loss(half)["loss"] / 2).backward()
        optimizer.step()
        optimizer.zero_grad()


def with_accelerate(loss: TowardsOriginal, optimizer: PVOptimizer, folder: Path) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, wrapped = accelerator.prepare(loss, optimizer)
    for tokens in drawn(CONFIG.steps).split(CONFIG.batch):
        accelerator.backward(model(tokens)["loss"])
        wrapped.step()
        wrapped.zero_grad()


def with_transformers(loss: TowardsOriginal, optimizer: PVOptimizer, folder: Path) -> None:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        str(folder), max_steps=CONFIG.steps, per_device_train_batch_size=CONFIG.batch, max_grad_norm=0.0, report_to=[], use_cpu=True,
        save_strategy="no", logging_strategy="no", disable_tqdm=True, train_sampling_strategy="sequential",
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": row} for row in drawn(CONFIG.steps)]
    level = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    with torch.random.fork_rng():  # the trainer seeds the global generator
        Trainer(loss, arguments, train_dataset=rows, optimizers=(optimizer, level)).train()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("loop", [plainly, with_accelerate, with_transformers])
def test_every_loop_ends_at_the_same_model(loop: Callable[..., None], small: Model, teacher: Model, tmp_path: Path):
    expected = pv_tuning(small, teacher, WINDOWS, CONFIG)
    optimizer = PVOptimizer(small, teacher, CONFIG)
    loop(TowardsOriginal(optimizer.student, teacher), optimizer, tmp_path)
    tuned = optimizer.tuned()
    assert optimizer.changes == expected.changes
    assert sum(optimizer.changes) > 0
    for name in small.weights():
        torch.testing.assert_close(tuned.matrix(name), expected.model.matrix(name), rtol=1e-4, atol=1e-5)
        # What was trained is what is stored.
        torch.testing.assert_close(optimizer.student.get_parameter(f"{name}.weight").detach(), tuned.matrix(name), rtol=1e-3, atol=1e-4)
    assert tuned.nbytes == small.nbytes


def test_it_goes_on_from_its_state_to_the_same_bits(small: Model, teacher: Model):
    def run(optimizer: PVOptimizer, batches: tuple[Tensor, ...]) -> list[float]:
        loss, seen = TowardsOriginal(optimizer.student, teacher), []
        for tokens in batches:
            value = loss(tokens)["loss"]
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append(float(value.detach()))
        return seen

    batches = drawn(CONFIG.steps).split(CONFIG.batch)
    whole = PVOptimizer(small, teacher, CONFIG)
    losses = run(whole, batches)
    half = PVOptimizer(small, teacher, CONFIG)
    run(half, batches[:3])
    resumed = PVOptimizer(small, teacher, CONFIG)
    resumed.load_state_dict(half.state_dict())
    assert run(resumed, batches[3:]) == losses[3:]
    assert resumed.changes == whole.changes
    assert resumed.tuned().fingerprint() == whole.tuned().fingerprint()


def test_a_scheduler_moves_all_rates(small: Model, teacher: Model):
    optimizer = PVOptimizer(small, teacher, CONFIG)
    before = {name: parameter.detach().clone() for name, parameter in optimizer.student.named_parameters()}
    optimizer.param_groups[0]["lr"] = 0.0
    TowardsOriginal(optimizer.student, teacher)(WINDOWS[:2])["loss"].backward()
    optimizer.step()
    assert all(torch.equal(parameter, before[name]) for name, parameter in optimizer.student.named_parameters())


def test_bad_input_is_named(small: Model, teacher: Model):
    optimizer = PVOptimizer(small, teacher, CONFIG)
    with pytest.raises(InvalidArgument, match=r"call backward\(\)"):
        optimizer.step()
    other: Any = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(InvalidArgument, match="lacks 'tuning'"):
        optimizer.load_state_dict(other.state_dict())
    with pytest.raises(InvalidArgument, match="mode"):
        PVOptimizer(small, teacher, PVConfig(mode="x"))  # type: ignore[arg-type]
