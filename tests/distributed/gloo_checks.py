"""What a real worker does in test_gloo.py: ``python gloo_checks.py RANK WORKERS FOLDER``. Writes what it saw as JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tersor.distributed import (
    Accordion,
    ErrorFeedbackState,
    LGreCoState,
    Simulator,
    average_gradients,
    load_checkpoint,
    register,
    save_checkpoint,
    socket_bytes,
)
from tersor.errors import TersorError
from tersor.papers.gloo_workers import join_group

STATES = {
    "csgd topk": lambda: ErrorFeedbackState("csgd", "topk:0.05", min_numel=100),
    "econtrol topk": lambda: ErrorFeedbackState("econtrol", "topk:0.05", min_numel=100),
    "ef21_sgdm quant": lambda: ErrorFeedbackState("ef21_sgdm", "quant:3", min_numel=100, init="compressed"),
    "ef lowrank": lambda: ErrorFeedbackState("ef", "lowrank:3", min_numel=100),
    "ef sign": lambda: ErrorFeedbackState("ef", "sign", min_numel=100),
    "econtrol randk": lambda: ErrorFeedbackState("econtrol", "randk:0.1", min_numel=100, init="zero"),
    "ef lgreco lowrank": lambda: LGreCoState("ef", "lowrank:3", min_numel=100, adjust_every=3, accumulate=2, alpha=1.2),
    "econtrol lgreco topk": lambda: LGreCoState(
        "econtrol", "topk:0.05", min_numel=100, adjust_every=3, accumulate=2, warmup=1, accordion=Accordion()
    ),
}
RATE, STEPS = 0.05, 8


def network() -> nn.Sequential:
    """Several matrices, so that small buckets split them."""
    module = nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 4))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


def batch(rank: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every rank has data of its own kind."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    return torch.randn(8, 20, generator=generator) + rank, torch.randint(4, (8,), generator=generator)


def loss_of(module: nn.Module, rank: int, step: int) -> torch.Tensor:
    x, y = batch(rank, step)
    return nn.functional.cross_entropy(module(x), y)


def train(module: nn.Module, ddp: nn.Module, rank: int, steps: range) -> None:
    for step in steps:
        ddp.zero_grad()
        loss_of(ddp, rank, step).backward()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter -= RATE * parameter.grad


def flat(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def started(make, bucket_mb: float = 0.004):
    module, state = network(), make()
    ddp = DistributedDataParallel(module, bucket_cap_mb=bucket_mb)
    register(ddp, state)
    return module, ddp, state


def equal_on_all(state: ErrorFeedbackState, tensor: torch.Tensor) -> bool:
    rows = state.wire.all_gather(tensor)
    return bool((rows == rows[0]).all())


def simulated(make, workers: int) -> torch.Tensor:
    """The same run by the simulator in this process."""
    module = network()

    def gradients(parameters, step):
        rows = []
        for rank in range(workers):
            module.load_state_dict(parameters)
            module.zero_grad()
            loss_of(module, rank, step).backward()
            rows.append({name: parameter.grad.clone() for name, parameter in module.named_parameters()})
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    simulator = Simulator(make(), dict(module.state_dict()), gradients)
    simulator.run(STEPS, RATE)
    return torch.cat([tensor.flatten() for tensor in simulator.parameters.values()])


def check_training(rank: int, workers: int, folder: Path) -> dict[str, dict[str, object]]:
    seen: dict[str, dict[str, object]] = {}
    for name, make in STATES.items():
        module, ddp, state = started(make)
        start = flat(module)
        before = socket_bytes()
        train(module, ddp, rank, range(STEPS))
        after, traffic, final = socket_bytes(), state.traffic(), flat(module)
        # The same once more, with a checkpoint in the middle and other buckets behind it.
        again, ddp, first = started(make)
        train(again, ddp, rank, range(5))
        place = folder / name.replace(" ", "-")
        save_checkpoint(first, place)
        if rank == 0:
            save_file(again.state_dict(), place / "model.safetensors")
        fresh, ddp, second = started(make, bucket_mb=25)
        fresh.load_state_dict(again.state_dict())
        load_checkpoint(second, place)
        train(fresh, ddp, rank, range(5, STEPS))
        seen[name] = {
            "moved": float((final - start).norm()), "replicas equal": equal_on_all(state, final),
            "resumed equal": torch.equal(flat(fresh), final), "simulator": float((simulated(make, workers) - final).abs().max()),
            "traffic": traffic, "socket": None if after is None or before is None else after - before,
            "knobs": getattr(state, "knobs", None),
        }  # fmt: skip
    return seen


def check_smaller_world(rank: int, folder: Path) -> dict[str, object]:
    """Two workers go on from what three of them stored."""
    place = folder.parent / "econtrol-topk"
    module, ddp, state = started(STATES["econtrol topk"])
    module.load_state_dict(load_file(place / "model.safetensors"))
    load_checkpoint(state, place)
    errors = state.state_dict()["local"]["0.weight"]["error"]
    start = flat(module)
    train(module, ddp, rank, range(5, STEPS))
    return {
        "error": errors.flatten().tolist(), "replicas equal": equal_on_all(state, flat(module)),
        "moved": float((flat(module) - start).norm()),
    }  # fmt: skip


def refused(action) -> str:
    try:
        action()
    except TersorError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def check_refusals(rank: int) -> dict[str, str]:
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    ddp = DistributedDataParallel(network())
    unequal = torch.ones(10 + rank, 10)
    return {
        "scaler": refused(lambda: register(ddp, ErrorFeedbackState(), scaler=scaler)),
        "unequal": refused(lambda: average_gradients(ErrorFeedbackState(min_numel=1), {"w": unequal})),
        "settings": refused(lambda: register(ddp, ErrorFeedbackState("ef" if rank else "ef21"))),
        "bare": refused(lambda: register(network(), ErrorFeedbackState())),
    }


def main() -> None:
    rank, workers, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    join_group(rank, workers, folder)
    if workers == 2:
        (folder / f"seen-{rank}.json").write_text(json.dumps(check_smaller_world(rank, folder)))
        os._exit(0)
    seen = {"training": check_training(rank, workers, folder), "refusals": check_refusals(rank)}
    _, ddp, _ = started(STATES["econtrol topk"])
    if rank == 1:
        os._exit(7)  # as if it was killed
    seen["lost"] = refused(lambda: loss_of(ddp, rank, 0).backward())
    (folder / f"seen-{rank}.json").write_text(json.dumps(seen))
    os._exit(0)


if __name__ == "__main__":
    main()
