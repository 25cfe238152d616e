"""The threads that torch already has, for bodies that torch did not compile.

Numba's own thread pools abort the process when two Python threads use them at once or after a fork, and a second pool would fight
torch's for the cores. So a body is started on torch's OpenMP pool, through the entry that the library torch is linked with exports.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

import torch

_SYMBOLS = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
_PROCESS = os.getpid()


@cache
def _entries() -> tuple[int, int, int]:
    """Addresses of the OpenMP entries in the library that torch itself uses, or zeros where it uses another kind of pool."""
    for library in sorted((Path(torch.__file__).parent / "lib").glob("*torch_cpu.*")):
        try:
            handle = ctypes.CDLL(str(library))
            launcher, thread, team = (ctypes.cast(getattr(handle, name), ctypes.c_void_p).value or 0 for name in _SYMBOLS)
        except (OSError, AttributeError):
            continue
        return launcher, thread, team
    return 0, 0, 0


def team_for(work: int, grain: int) -> tuple[int, int, int, int]:
    """The three entries of OpenMP, and how many threads to start: torch's own number for ``work`` above ``grain``, else 1.

    One thread also after a fork, which OpenMP's threads do not survive. No number in between: a team of another size than torch's
    would make OpenMP end and restart its threads.
    """
    entries = _entries()
    threads = torch.get_num_threads() if work > grain and entries[0] and os.getpid() == _PROCESS else 1
    return *entries, threads
