"""Compiling numba functions with a cache on disk where there is one, and splitting rows over a team of threads."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numba import cfunc, njit, types
from numba.core.registry import cpu_target

from tersor.kernels import _simd as simd

# The first slots of every argument block, filled by `launch`.
THREAD, TEAM, FIRST, LAST = range(4)


def compile_body(function: Callable[..., Any], name: str, *options: object) -> Any:
    """Compile ``function(data: int64)`` to C; ``.address`` is what :func:`launch` takes. The result must be kept alive.

    ``options`` are the constants that it closes over, and ``name`` is its own.
    """
    _name_apart(function, name, *options)
    return _with_cache(lambda cache: cfunc(types.void(types.int64), cache=cache, error_model="numpy")(function))


def compile_entry(function: Callable[..., Any], name: str, arguments: int) -> Any:
    """Compile a function of ``arguments`` int64 that Python calls without holding its lock."""
    _name_apart(function, name)
    signature = types.void(*[types.int64] * arguments)
    return _with_cache(lambda cache: njit(signature, cache=cache, nogil=True, error_model="numpy")(function))


def _name_apart(function: Callable[..., Any], name: str, *options: object) -> None:
    """Give every specialisation, version and processor files of its own in numba's cache.

    Specialisations of one function share files otherwise, and two processes that write them at once can leave the code of one under the
    key of another. Nor does numba see when a function that is called, like those of ``_simd``, has changed.
    """
    function.__qualname__ = "_".join([name, *map(str, options), _version()])


@cache
def _version() -> str:
    sources = (path.read_bytes() for path in sorted(Path(__file__).parent.glob("_*.py")))
    processor = repr(cpu_target.target_context.codegen().magic_tuple()).encode()
    return sha256(b"".join([processor, *sources])).hexdigest()[:12]


def _with_cache(compile_: Callable[[bool], Any]) -> Any:
    try:
        return compile_(True)
    except Exception:  # no directory that can be written, a full disk, a damaged file: whatever it is, compile for this process alone
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
    def body(data: int) -> None:
        half = simd.load_half(data)
        picked = simd.lookup(data + 64, 0, simd.load_bytes(data + 32), 1)
        simd.store(data + 64, simd.fma(half, picked, half))

    memory = np.zeros(128, np.uint8)
    memory[:32].view(np.float16)[:] = numbers = np.arange(16, dtype=np.float16)
    memory[32:48] = order = np.arange(15, -1, -1)
    memory[64:].view(np.float32)[:] = numbers + 0.5
    compile_body(body, "probe").ctypes(memory.ctypes.data)
    return bool((memory[64:].view(np.float32) == numbers * (order + 0.5) + numbers).all())
