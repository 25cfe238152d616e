"""Training of a small network by real worker processes over gloo, with the bytes counted that the kernel sent.

``python -m tersor.papers.gloo_training RANK WORKERS FOLDER`` is one worker; :func:`train_with_workers` starts them and reads their
reports.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import InvalidArgument, TersorError
from tersor.papers.gloo_workers import OUTPUT, join_group, run_workers

WORKERS = 4
# Digits that each worker sees: as different as data can be.
CLASSES = ((0, 1, 2), (3, 4), (5, 6, 7), (8, 9))
SIDE = 14
WIDTHS = (SIDE * SIDE, 128, 96, 64, 10)
_DATA, _JOBS, _BATCH = "data.safetensors", "jobs.json", 32


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        name: What it is called in tables.
        state: ``"none"`` for plain DDP, ``"powersgd"`` for the hook of PyTorch, ``"error feedback"``, ``"lgreco"`` or
            ``"accordion"``.
        options: Arguments of the state.
        network: ``"perceptron"`` or ``"convolutional"``.
        steps: Steps to take.
        learning_rate: Of plain SGD.
        seed: Draws the start and the batches.
        every: Steps between two rows of the curve.
        digest_at: Step whose parameters are hashed besides the last.
        save_every: Steps between checkpoints, 0 for none.
        resume: Step of the checkpoint to go on from, 0 for none.
        die: ``(rank, step)`` of a worker that kills itself.
    """

    name: str
    state: str
    options: dict[str, Any] = field(default_factory=dict)
    _: KW_ONLY
    network: str = "perceptron"
    steps: int = 200
    learning_rate: float = 0.1
    seed: int = 0
    every: int = 20
    digest_at: int = 0
    save_every: int = 0
    resume: int = 0
    die: tuple[int, int] | None = None


def mnist(train: int, test: int, seed: int = 0) -> dict[str, Tensor]:
    """Digits at half their resolution, ``{"x", "y", "x_test", "y_test"}``; random subsets of the published parts.

    Raises:
        InvalidArgument: If ``TERSOR_DATA`` does not name a folder with ``images/mnist.npz``.
    """
    import numpy as np

    path = Path(os.environ.get("TERSOR_DATA", "")) / "images" / "mnist.npz"
    if not path.is_file():
        raise InvalidArgument(f"this experiment needs {path}; let TERSOR_DATA name the folder of the real data")
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    with np.load(path) as stored:
        for part, count, suffix in (("train", train, ""), ("test", test, "_test")):
            images, labels = torch.from_numpy(stored[f"x_{part}"]), torch.from_numpy(stored[f"y_{part}"])
            chosen = torch.randperm(len(images), generator=generator)[:count]
            pixels = nn.functional.avg_pool2d(images[chosen].float()[:, None] / 255, 2).flatten(1)
            found |= {f"x{suffix}": (pixels - 0.13) / 0.31, f"y{suffix}": labels[chosen].long()}
    return found


def network(seed: int, kind: str = "perceptron") -> nn.Sequential:
    """A perceptron of four matrices, or a convolutional network of six whose shapes differ more, with a seeded start."""
    module = nn.Sequential(*(_convolutional() if kind == "convolutional" else _perceptron()))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = (2 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.0
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return module


def _perceptron() -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(WIDTHS):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return layers[:-1]


def _convolutional() -> list[nn.Module]:
    return [
        nn.Unflatten(1, (1, SIDE, SIDE)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(288, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10),
    ]  # fmt: skip


def batch(data: Mapping[str, Tensor], rank: int, step: int, seed: int) -> tuple[Tensor, Tensor]:
    """A batch of a worker's own classes, a function of the seed, the rank and the step alone."""
    mine = torch.isin(data["y"], torch.tensor(CLASSES[rank % len(CLASSES)])).nonzero().flatten()
    generator = torch.Generator().manual_seed(1_000_003 * seed + 1009 * step + rank)
    chosen = mine[torch.randint(len(mine), (_BATCH,), generator=generator)]
    return data["x"][chosen], data["y"][chosen]


def accuracy(module: nn.Module, data: Mapping[str, Tensor]) -> tuple[float, float]:
    """Fractions recognised of digits that were not trained on: of one half, to choose learning rates by, and of the other, to report."""
    with torch.no_grad():
        right = (module(data["x_test"]).argmax(1) == data["y_test"]).float()
    half = len(right) // 2
    return float(right[:half].mean()), float(right[half:].mean())


def train_with_workers(jobs: Sequence[Job], data: Mapping[str, Tensor], folder: Path | None = None) -> tuple[list[int], list[str], Any]:
    """Run ``jobs`` one after the other in :data:`WORKERS` processes.

    Args:
        jobs: What to train.
        data: Of :func:`mnist`.
        folder: Where checkpoints go and come from; a temporary one unless given.

    Returns:
        Exit code of each rank, what each printed, and for each job the reports of all ranks, as far as they were written.
    """
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        described = [{**asdict(job), "checkpoints": str(folder or place)} for job in jobs]
        (place / _JOBS).write_text(json.dumps(described), encoding="utf-8")
        save_file(dict(data), place / _DATA)
        codes = run_workers(["-m", "tersor.papers.gloo_training"], WORKERS, place)
        printed = [(place / OUTPUT.format(rank=rank)).read_text(encoding="utf-8", errors="replace") for rank in range(WORKERS)]
        reports = {}
        for job in jobs:
            files = [place / f"{job.name}-{rank}.json" for rank in range(WORKERS)]
            if all(file.is_file() for file in files):
                reports[job.name] = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        return codes, printed, reports


def curve_of(name: str, reports: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean training loss of all workers over steps and over the bytes that a worker had sent."""
    points = []
    for ranks in zip(*(report["curve"] for report in reports), strict=True):
        sent = [rank["socket_bytes"] for rank in ranks]
        points.append({
            "method": name, "step": ranks[0]["step"], "training loss": statistics.fmean(rank["loss"] for rank in ranks),
            "sent (MB a worker)": None if None in sent else statistics.fmean(sent) / 1e6,
        })  # fmt: skip
    return points


def row_of(name: str, reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a run reached, what it sent a step and worker as the kernel and as the state count it, and whether the replicas agree."""
    last = curve_of(name, reports)[-1]
    steps, sent, traffic = last["step"], last["sent (MB a worker)"], reports[0]["traffic"]
    return {
        "method": name, "steps": steps, "accuracy": reports[0]["accuracy"], "loss": last["training loss"],
        "bytes a step": None if sent is None else sent * 1e6 / steps,
        "counted bytes a step": None if traffic is None else traffic["ring_bytes"] / steps,
        "replicas bit-equal": len({json.dumps(report["digests"]) for report in reports}) == 1,
    }  # fmt: skip


class _Worker:
    """One worker's part of one job."""

    def __init__(self, job: Job, checkpoints: Path, rank: int) -> None:
        from torch.nn.parallel import DistributedDataParallel

        self.job, self.rank, self.checkpoints = job, rank, checkpoints
        self.module = network(job.seed, job.network)
        self.ddp = DistributedDataParallel(self.module)
        self.state = self._hook()

    def _hook(self) -> Any:
        from tersor.distributed import Accordion, AccordionState, ErrorFeedbackState, LGreCoState, register

        if self.job.state == "none":
            return None
        if self.job.state == "powersgd":
            from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

            state = powerSGD_hook.PowerSGDState(
                process_group=None, start_powerSGD_iter=2, min_compression_rate=1, orthogonalization_epsilon=1e-8, **self.job.options
            )
            self.ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
            return None
        ours = {"error feedback": ErrorFeedbackState, "lgreco": LGreCoState, "accordion": AccordionState}[self.job.state]
        options = dict(self.job.options)
        if "accordion" in options:
            options["accordion"] = Accordion(**options["accordion"])
        made = ours(min_numel=512, **options)
        register(self.ddp, made)
        return made

    def run(self, data: Mapping[str, Tensor]) -> dict[str, Any]:
        from tersor.distributed import socket_bytes

        first = self._resume()
        began, curve, digests, loss_sum = socket_bytes(), [], {}, 0.0
        clock = time.perf_counter()
        for step in range(first, self.job.steps):
            if self.job.die == (self.rank, step):
                os.kill(os.getpid(), signal.SIGKILL)
            x, y = batch(data, self.rank, step, self.job.seed)
            self.ddp.zero_grad()
            loss = nn.functional.cross_entropy(self.ddp(x), y)
            loss.backward()
            with torch.no_grad():
                for parameter in self.module.parameters():
                    assert parameter.grad is not None
                    parameter.sub_(parameter.grad, alpha=self.job.learning_rate)
            loss_sum += float(loss.detach())
            done = step + 1
            if done % self.job.every == 0:
                now = socket_bytes()
                sent = None if began is None or now is None else now - began
                curve.append({"step": done, "loss": loss_sum / self.job.every, "socket_bytes": sent})
                loss_sum = 0.0
            if done in (self.job.digest_at, self.job.steps):
                digests[str(done)] = self._digest()
            if self.job.save_every and done % self.job.save_every == 0:
                self._save(done)
        seconds = time.perf_counter() - clock
        validation, test = accuracy(self.module, data)
        return {
            "seconds": seconds, "curve": curve, "digests": digests, "validation": validation, "accuracy": test,
            "traffic": self.state and self.state.traffic(), "history": getattr(self.state, "history", None),
            "knobs": getattr(self.state, "knobs", None),
        }  # fmt: skip

    def _digest(self) -> str:
        flat = torch.cat([parameter.detach().flatten() for parameter in self.module.parameters()])
        return hashlib.sha256(flat.numpy().tobytes()).hexdigest()

    def _save(self, step: int) -> None:
        from safetensors.torch import save_file

        from tersor.distributed import save_checkpoint

        folder = self.checkpoints / f"step-{step}"
        save_checkpoint(self.state, folder)
        if self.rank == 0:
            save_file(self.module.state_dict(), folder / "model.safetensors")

    def _resume(self) -> int:
        from safetensors.torch import load_file

        from tersor.distributed import load_checkpoint

        if self.job.resume:
            folder = self.checkpoints / f"step-{self.job.resume}"
            load_checkpoint(self.state, folder)
            self.module.load_state_dict(load_file(folder / "model.safetensors"))
        return self.job.resume


def main() -> None:
    """One worker: train every job and write a report of each."""
    from safetensors.torch import load_file

    rank, workers, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    join_group(rank, workers, folder)
    data = load_file(folder / _DATA)
    for described in json.loads((folder / _JOBS).read_text(encoding="utf-8")):
        checkpoints = Path(described.pop("checkpoints"))
        job = Job(**{**described, "die": described["die"] and tuple(described["die"])})
        try:
            report = _Worker(job, checkpoints, rank).run(data)
        except TersorError as error:
            print(error, flush=True)
            # The group is broken: an orderly shutdown of it would wait for the worker that is gone.
            os._exit(1)
        (folder / f"{job.name}-{rank}.json").write_text(json.dumps(report), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
