"""How fast a model reads and writes, how long it takes to load, and the memory that it needs, on this machine."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tersor.errors import InvalidArgument, TersorError
from tersor.models import Model
from tersor.models.generation import sample_tokens


@dataclass(frozen=True)
class Load:
    """What loading costs, measured in a process of its own.

    Attributes:
        seconds: From the call of :func:`tersor.load` to a usable model; imports are not counted.
        baseline_memory: Resident bytes of the interpreter and its libraries before.
        resident_memory: Resident bytes after loading and one forward pass of a single token.
        peak_memory: Largest resident bytes on the way there.
    """

    seconds: float
    baseline_memory: int
    resident_memory: int
    peak_memory: int


@dataclass(frozen=True)
class Speed:
    """Throughput at batch size one.

    Attributes:
        prefill: Tokens a second read from a prompt, median of the repeats.
        decode: Tokens a second written with a key-value cache, from the median step.
        prompt_tokens: Length of the prompt.
        new_tokens: Tokens written after it in each repeat.
        repeats: Measured repeats, after one that is not counted.
        threads: Threads that torch used.
        resident_memory: Resident bytes of this process afterwards, everything in it counted.
        peak_memory: Largest resident bytes of this process since it began.
        load: Loading, where it was measured.
    """

    prefill: float
    decode: float
    prompt_tokens: int
    new_tokens: int
    repeats: int
    threads: int
    resident_memory: int
    peak_memory: int
    load: Load | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        prefill = f"prefill {self.prefill:,.0f} tokens/s ({self.prompt_tokens} tokens)"
        text = f"{prefill}, decode {self.decode:,.1f} tokens/s, threads: {self.threads}"
        if self.load is None:
            return text
        resident, peak = self.load.resident_memory / 1e6, self.load.peak_memory / 1e6
        return f"{text}; loads in {self.load.seconds:.2f} s, {resident:,.0f} MB resident, {peak:,.0f} MB at most"


def measure_speed(model: Model, prompt: Tensor | None = None, *, new_tokens: int = 32, repeats: int = 3) -> Speed:
    """Time a prompt and its continuation at batch size one, on as many threads as torch has now.

    Args:
        model: A decoder.
        prompt: Token ids ``[n]``; by default 256 ids spread over the vocabulary, or as many as fit the context.
        new_tokens: Tokens to write after the prompt, at least 2.
        repeats: Measured repeats; one more comes first and warms caches and compilers.

    Raises:
        InvalidArgument: If the model cannot write, or prompt and continuation exceed its context.
    """
    if new_tokens < 2 or repeats < 1:
        raise InvalidArgument(f"a speed needs at least 2 new tokens and 1 repeat, got {new_tokens} and {repeats}")
    if prompt is None:
        length = max(1, min(256, model.max_context - new_tokens))
        prompt = torch.arange(length) * 7919 % model.vocabulary
    _timed(model, prompt, 2)
    prefills, steps = [], []
    for _ in range(repeats):
        first, rest = _timed(model, prompt, new_tokens)
        prefills.append(first)
        steps.extend(rest)
    resident, peak = process_memory()
    prefill, decode = len(prompt) / statistics.median(prefills), 1 / statistics.median(steps)
    return Speed(prefill, decode, len(prompt), new_tokens, repeats, torch.get_num_threads(), resident, peak)


def _timed(model: Model, prompt: Tensor, new_tokens: int) -> tuple[float, list[float]]:
    """Seconds of the prompt, and of each step after it."""
    moments = [time.perf_counter()]
    for _ in sample_tokens(model, prompt[None], new_tokens, temperature=0.0, generator=torch.Generator()):
        moments.append(time.perf_counter())
    steps = [later - earlier for earlier, later in pairwise(moments)]
    return steps[0], steps[1:]


def process_memory() -> tuple[int, int]:
    """Resident bytes of this process now, and at most so far."""
    import psutil

    now = psutil.Process().memory_info()
    peak = getattr(now, "peak_wset", 0)
    status = Path("/proc/self/status")
    if not peak and status.is_file():
        # Not ru_maxrss: a child starts with the peak of the process that started it.
        peak = next((1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")), 0)
    elif not peak:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return int(now.rss), max(int(peak), int(now.rss))


def measure_load(source: str | Path) -> Load:
    """Load a model in a fresh process and measure time and memory there, undisturbed by what this process holds.

    Args:
        source: What :func:`tersor.load` takes.

    Raises:
        TersorError: If loading fails; the message is that of the failure.
    """
    threads = str(torch.get_num_threads())
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    command = [sys.executable, "-m", "tersor.evaluation.fresh_load", str(source)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise TersorError(f"loading {source} in a fresh process failed: {reason}")
    return Load(**json.loads(done.stdout.strip().splitlines()[-1]))
