"""Whether compiled kernels can run here, asked once."""

from __future__ import annotations

import platform
import sys
from functools import cache
from importlib.util import find_spec

_MACHINES = ("x86_64", "amd64", "aarch64", "arm64")


@cache
def numba_is_usable() -> bool:
    """Whether numba is installed and this is a little-endian 64-bit processor that converts float16 itself."""
    if find_spec("numba") is None or sys.byteorder != "little" or platform.machine().lower() not in _MACHINES:
        return False
    from numba.core.registry import cpu_target

    name, features = cpu_target.target_context.codegen().magic_tuple()[1:3]
    return "aarch64" in platform.machine().lower() or "arm64" in platform.machine().lower() or "+f16c" in features.split(",") or not name
