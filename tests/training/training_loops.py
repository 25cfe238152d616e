"""The same few steps under accelerate and in the trainers of transformers and Lightning, each step two halves of one batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import training_cases as cases
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.training import Compression

OptimizerOf = Callable[[nn.Module], torch.optim.Optimizer]


class _Halves(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __init__(self) -> None:
        self.pixels, self.labels = cases.batch()

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixels": self.pixels[index], "labels": self.labels[index]}


class _WithLoss(nn.Module):
    """What transformers' trainer wants of a model: a loss for the labels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(pixels)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def transformers_trainer(compression: Compression, optimizer_of: OptimizerOf, steps: int, folder: Path) -> None:
    """Train ``compression.model`` for ``steps`` epochs of one step."""
    from transformers import Trainer, TrainingArguments

    model = _WithLoss(compression.model)
    optimizer = optimizer_of(model)
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"), max_steps=steps, per_device_train_batch_size=16, gradient_accumulation_steps=2, report_to=[],
        save_strategy="no", max_grad_norm=0.0, disable_tqdm=True, use_cpu=True, logging_strategy="no", train_sampling_strategy="sequential",
    )  # fmt: skip
    # As transformers builds its schedules.
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    Trainer(
        model, arguments, train_dataset=_Halves(), optimizers=(optimizer, scheduler), callbacks=[compression.trainer_callback()]
    ).train()


def lightning_trainer(compression: Compression, optimizer_of: OptimizerOf, steps: int, folder: Path) -> None:
    """Train ``compression.model`` for ``steps`` epochs of one step."""
    import warnings

    from lightning.pytorch import LightningModule, Trainer

    class Module(LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = compression.model

        def training_step(self, batch: dict[str, Tensor], index: int) -> Any:
            return F.cross_entropy(self.model(batch["pixels"]), batch["labels"])

        def configure_optimizers(self) -> Any:
            return optimizer_of(self)

    loader = torch.utils.data.DataLoader(_Halves(), batch_size=16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Trainer(
            max_epochs=steps, accumulate_grad_batches=2, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[compression.lightning_callback()], default_root_dir=folder,
        ).fit(Module(), loader)  # fmt: skip


def accelerate_loop(compression: Compression, optimizer_of: OptimizerOf, steps: int, folder: Path) -> None:
    """Train ``compression.model`` for ``steps`` epochs of one step."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    loader = torch.utils.data.DataLoader(_Halves(), batch_size=16)
    model, optimizer, loader = accelerator.prepare(compression.model.train(), optimizer_of(compression.model), loader)
    compression.attach(optimizer)
    for _ in range(steps):
        for batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(F.cross_entropy(model(batch["pixels"]), batch["labels"]))
                optimizer.step()
                optimizer.zero_grad()
        compression.epoch_end({})
