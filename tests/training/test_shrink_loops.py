"""A student learns the same from its teacher in the library's loop, in the trainer of transformers and under accelerate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tersor.training import Distillation, RobertaCost, TaughtStudent, build_student, distill

SHAPE = {"num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 300}
COUNT = 24
CONFIG = Distillation(steps=8, batch=6, learning_rate=3e-3, measure_every=8)


def student(pair: bool):
    return build_student(SHAPE, RobertaCost(length=12, pair=pair), dropout=0.0)


def examples(pair: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids with padding, and scores of a teacher."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 300, (COUNT, 2, 12) if pair else (COUNT, 12), generator=generator)
    ids[..., 9:] = 1
    return ids, torch.randn(COUNT, 2, generator=generator)


def optimizer_of(model: torch.nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=CONFIG.learning_rate, weight_decay=0.0)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: CONFIG.rate(step) / CONFIG.learning_rate)


def in_order(pair: bool) -> list[dict[str, torch.Tensor]]:
    """The examples of all steps, one after the other."""
    ids, targets = examples(pair)
    rows = torch.cat([CONFIG.rows(step, COUNT) for step in range(CONFIG.steps)])
    return [{"ids": ids[row], "targets": targets[row]} for row in rows]


def with_transformers(model: TaughtStudent, pair: bool, folder: Path) -> None:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        str(folder), max_steps=CONFIG.steps, per_device_train_batch_size=CONFIG.batch, max_grad_norm=1.0, report_to=[], use_cpu=True,
        save_strategy="no", logging_strategy="no", disable_tqdm=True, train_sampling_strategy="sequential",
    )  # fmt: skip
    with torch.random.fork_rng():  # the trainer seeds the global generator
        Trainer(model, arguments, train_dataset=in_order(pair), optimizers=optimizer_of(model)).train()


def with_accelerate(model: TaughtStudent, pair: bool, folder: Path) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    loader = torch.utils.data.DataLoader(in_order(pair), batch_size=CONFIG.batch)
    optimizer, scheduler = optimizer_of(model)
    model, optimizer, loader = accelerator.prepare(model.train(), optimizer, loader)
    for batch in loader:
        accelerator.backward(model(**batch)["loss"])
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pair", [False, True], ids=["single", "pair"])
@pytest.mark.parametrize("loop", [with_transformers, with_accelerate])
def test_every_loop_ends_at_the_same_student(loop, pair: bool, tmp_path: Path):
    reference, other = student(pair), student(pair)
    distill(reference, *examples(pair), CONFIG)
    loop(TaughtStudent(other, CONFIG.temperature), pair, tmp_path)
    untouched = student(pair).state_dict()
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(value, untouched[name]) for name, value in reference.state_dict().items())
