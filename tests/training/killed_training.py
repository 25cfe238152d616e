"""Trains one model of each method in a process of its own, saves every other step, and is killed where none has finished."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
import training_cases as cases
from torch import nn
from torch.nn import functional as F

from tersor.training import Compression

METHODS = ("gradual-global", "sap", "one-way", "sharing", "maestro", "lapp", "trained-rank", "class-aware-best-epoch")
STEPS, KILLED_AFTER, SAVED_EVERY = 20, 13, 2


def start(case: cases.Case) -> tuple[Compression, torch.optim.Optimizer]:
    compression = Compression(case.model(), case.methods(), total_steps=STEPS, example_inputs=(cases.batch()[0][:2],))
    optimizer = torch.optim.AdamW(compression.model.parameters(), lr=0.01)
    return compression.attach(optimizer), optimizer


def train(compression: Compression, optimizer: torch.optim.Optimizer, until: int, path: Path | None = None) -> nn.Module:
    """Go on to step ``until``, saving to ``path``."""
    pixels, labels = cases.batch()
    compression.model.train()
    while compression.step < until:
        optimizer.zero_grad()
        F.cross_entropy(compression.model(pixels), labels).backward()
        optimizer.step()
        if compression.step % 4 == 0:
            compression.epoch_end({"accuracy": 0.5})
        if path is not None and compression.step % SAVED_EVERY == 0:
            compression.save(path)
    return compression.model


def main() -> None:
    torch.set_num_threads(1)
    for case in cases.CASES:
        if case.id in METHODS:
            train(*start(case), KILLED_AFTER, Path(sys.argv[1]) / f"{case.id}.safetensors")
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
