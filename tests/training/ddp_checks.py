"""One of two processes that train every method under DistributedDataParallel, each on half of the batch; writes what it saw."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import training_cases as cases
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from tersor.errors import TersorError
from tersor.papers.gloo_workers import join_group
from tersor.training import LAPP, Compression

STEPS = 12


def start(case: cases.Case) -> tuple[Compression, torch.optim.Optimizer]:
    """A compression with its optimizer; batch norms keep their statistics, which would depend on how a batch is cut."""
    compression = Compression(case.model(), case.methods(), total_steps=20, example_inputs=(cases.batch()[0][:2],))
    for module in compression.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train = lambda mode=True, own=module: own  # type: ignore[method-assign]
            module.training = False
    optimizer = torch.optim.SGD(compression.model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    return compression.attach(optimizer), optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer, parts: list[tuple[Tensor, Tensor]]) -> None:
    optimizer.zero_grad()
    for pixels, labels in parts:
        (F.cross_entropy(model(pixels), labels) / len(parts)).backward()
    optimizer.step()


def trained(case: cases.Case, rank: int | None, halves: list[tuple[Tensor, Tensor]]) -> tuple[dict[str, Tensor], bool]:
    """What is left after ``STEPS`` steps, in one process or as one of two; and whether shapes changed on the way."""
    compression, optimizer = start(case)
    wrap = DistributedDataParallel if rank is not None else lambda model: model
    model = wrap(compression.model.train())
    for _ in range(STEPS):
        step(model, optimizer, halves if rank is None else [halves[rank]])
        if compression.reshaped == compression.step:
            model = wrap(compression.model)
        if compression.step % 4 == 0:
            compression.epoch_end({"accuracy": 0.5})
    del model
    return dict(compression.finalize().state_dict()), compression.reshaped > 0


def not_wrapped_anew(rank: int, halves: list[tuple[Tensor, Tensor]]) -> str:
    """The refusal when shapes change behind the back of a wrapper that tolerates parameters without a gradient."""
    compression, optimizer = start(cases.Case("", lambda: [LAPP(0.3, bypass=False, end=3, frequency=1)]))
    model = DistributedDataParallel(compression.model.train(), find_unused_parameters=True)
    try:
        for _ in range(STEPS):
            step(model, optimizer, [halves[rank]])
    except TersorError as error:
        return f"step {compression.step + 1}: {error}"
    return "nothing was refused"


def main() -> None:
    rank, workers, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    join_group(rank, workers, folder)
    pixels, labels = cases.batch()
    halves = list(zip(pixels.chunk(workers), labels.chunk(workers), strict=True))
    seen: dict[str, Any] = {}
    for case in cases.CASES:
        (alone, _), (shared, reshaped) = trained(case, None, halves), trained(case, rank, halves)
        own = torch.cat([value.flatten().double() for value in shared.values()])
        everyone = [torch.empty_like(own) for _ in range(workers)]
        dist.all_gather(everyone, own)
        seen[case.id] = {
            "apart": max(float((shared[key].double() - value.double()).abs().max()) for key, value in alone.items() if value.numel()),
            "replicas equal": all(torch.equal(own, other) for other in everyone), "reshaped": reshaped,
        }  # fmt: skip
    seen["refusal"] = not_wrapped_anew(rank, halves)
    (folder / f"seen-{rank}.json").write_text(json.dumps(seen))
    dist.barrier()
    dist.destroy_process_group()
    # All is written: threads of gloo that outlive its group end an interpreter that is being torn down, now and then.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
