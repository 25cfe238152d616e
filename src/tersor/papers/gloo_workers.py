"""Starts the worker processes of an experiment and waits for them, so that one that dies does not leave the others waiting."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_POLL = 0.05
RENDEZVOUS, OUTPUT = "rendezvous", "output-{rank}.txt"


def run_workers(command: Sequence[str], workers: int, folder: Path, timeout: float = 900.0) -> list[int]:
    """Run ``python *command RANK WORKERS FOLDER`` once for each rank, one thread each, and wait for all.

    Args:
        command: Arguments of the interpreter: a script, or ``-m`` and a module.
        workers: Number of processes.
        folder: A fresh folder; what the processes print goes to ``output-RANK.txt`` in it.
        timeout: Seconds after which those still running are killed.

    Returns:
        The exit code of each rank; negative for one that was killed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # never through a name server
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(workers):
            with (folder / OUTPUT.format(rank=rank)).open("wb") as output:
                arguments = [sys.executable, *command, str(rank), str(workers), str(folder)]
                processes.append(subprocess.Popen(arguments, env=environment, stdout=output, stderr=subprocess.STDOUT))
        until = time.monotonic() + timeout
        while any(process.poll() is None for process in processes) and time.monotonic() < until:
            time.sleep(_POLL)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
    return [process.returncode for process in processes]


def join_group(rank: int, workers: int, folder: Path, seconds: float = 300.0) -> None:
    """Join the gloo group of the processes that :func:`run_workers` started, through a file in ``folder``."""
    from datetime import timedelta

    import torch.distributed as dist

    address = f"file://{folder / RENDEZVOUS}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=workers, timeout=timedelta(seconds=seconds))
