"""Whether compiled kernels can run here, tried once."""

from __future__ import annotations

import sys
import warnings
from functools import cache
from importlib.util import find_spec


@cache
def kernels_run() -> bool:
    """Whether numba is installed and compiles a small vector function that gives the right numbers.

    A numba that cannot is named in a warning; the plain torch twins then do the work.
    """
    if find_spec("numba") is None or sys.byteorder != "little":
        return False
    try:
        from tersor.kernels import _compiling

        return _compiling.probe()
    except Exception as error:  # whatever a compiler raises, the twins are right, only slower
        reason = str(error).strip().splitlines()[:1]
        warnings.warn(f"compiled kernels are off, products are slower: {type(error).__name__} {' '.join(reason)}", stacklevel=2)
        return False
