"""Loops over arrays as machine code (numba)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """numba.njit, compiled at the first call and kept on disk for later processes.

    numba itself is imported then, too: with that it takes .4 CPU-seconds, which who calls no loop is spared.
    """

    @cache
    def machine_code() -> Any:
        import numba

        try:
            return numba.njit(cache=True)(function)
        except RuntimeError:  # neither the folder of the code nor a home folder can be written, as in some containers
            return numba.njit(function)

    @wraps(function)
    def call(*arguments: Any) -> Any:
        return machine_code()(*arguments)

    call.machine_code = machine_code  # type: ignore[attr-defined]
    return call
