"""Loops over arrays as machine code (numba)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """numba.njit, compiled at the first call and kept on disk for later processes."""
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError:  # neither the folder of the code nor a home folder can be written, as in some containers
        return numba.njit(function)
