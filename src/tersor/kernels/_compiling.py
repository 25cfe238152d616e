"""Compiling numba functions with a cache on disk where there is one, and splitting rows over a team of threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba import cfunc, njit, types
from numba.core.errors import NumbaError
from numba.core.registry import cpu_target

from tersor.kernels import _simd as simd

# The first slots of every argument block, filled by `launch`.
THREAD, TEAM, FIRST, LAST = range(4)

# Numba keys its cache on a function's own code and constants, not on the intrinsics that it calls, so bodies close over this number.
SALT = sum(path.stat().st_mtime_ns for path in Path(__file__).parent.glob("_*.py"))


def compile_body(function: Callable[..., Any]) -> Any:
    """Compile ``function(data: int64)`` to C; ``.address`` is what :func:`launch` takes. The result must be kept alive."""
    return _with_cache(lambda cache: cfunc(types.void(types.int64), cache=cache, error_model="numpy")(function))


def compile_entry(arguments: int) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function of ``arguments`` int64 that Python calls without holding its lock."""
    signature = types.void(*[types.int64] * arguments)
    return lambda function: _with_cache(lambda cache: njit(signature, cache=cache, nogil=True, error_model="numpy")(function))


def _with_cache(compile_: Callable[[bool], Any]) -> Any:
    try:
        return compile_(True)
    except (OSError, RuntimeError) as error:
        # No directory that can be written, or a full disk: compile for this process alone.
        if isinstance(error, NumbaError) and not isinstance(error.__cause__, OSError):
            raise
        return compile_(False)


@njit
def share(data: int) -> tuple[int, int]:
    """The rows ``(start, stop)`` of the calling thread of the team."""
    first, last = simd.read_int(data + 8 * FIRST), simd.read_int(data + 8 * LAST)
    if simd.read_int(data + 8 * TEAM) == 0:
        return first, last
    team, thread = simd.call_number(simd.read_int(data + 8 * TEAM)), simd.call_number(simd.read_int(data + 8 * THREAD))
    n = last - first
    return first + n * thread // team, first + n * (thread + 1) // team


@njit
def launch(body: int, data: int, launcher: int, thread: int, team: int, threads: int) -> None:
    """Run ``body(data)`` on ``threads`` threads."""
    if threads > 1:
        simd.write_int(data + 8 * THREAD, thread)
        simd.write_int(data + 8 * TEAM, team)
        simd.call_team(launcher, body, data, threads)
    else:
        simd.write_int(data + 8 * TEAM, 0)
        simd.call(body, data)


def probe() -> bool:
    """Compile and run the operations that a processor or a version of numba could lack."""
    architecture, _, features = cpu_target.target_context.codegen().magic_tuple()
    if architecture.startswith("x86") and "+f16c" not in features.split(","):
        return False  # numba does not link the software conversion of float16
    salt = SALT

    def body(data: int) -> None:
        salt  # noqa: B018
        half = simd.load_half(data)
        picked = simd.lookup(data + 64, 0, simd.load_bytes(data + 32), 1)
        simd.store(data + 64, simd.fma(half, picked, half))

    memory = np.zeros(128, np.uint8)
    memory[:32].view(np.float16)[:] = numbers = np.arange(16, dtype=np.float16)
    memory[32:48] = order = np.arange(15, -1, -1)
    memory[64:].view(np.float32)[:] = numbers + 0.5
    compile_body(body).ctypes(memory.ctypes.data)
    return bool((memory[64:].view(np.float32) == numbers * (order + 0.5) + numbers).all())
