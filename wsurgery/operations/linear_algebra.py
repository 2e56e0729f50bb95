"""Tensors as matrices, and LAPACK in one thread: how a matrix is cut among threads decides how sums are rounded."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

import numpy as np

from wsurgery.errors import WsurgeryError
from wsurgery.operations.arrays import Array

_lock = Lock()
_inside = 0
_before: list[int] = []


def as_matrix(x: Array) -> Array:
    """Return a tensor, (out, …), at least one element, as the matrix (out, everything else), float64.

    Raises:
        WsurgeryError: it holds NaN or infinity, or numbers so near the end of float64 that sums of them may be beyond it.
    """
    with np.errstate(invalid="ignore"):  # a signalling NaN
        matrix: Array = x.reshape(len(x), -1).astype(np.float64)
    largest = np.abs(matrix).max()
    if not largest <= np.finfo(np.float64).max / (16 * x.size):
        what = "numbers near the end of float64" if np.isfinite(largest) else "NaN or infinity"
        raise WsurgeryError(f"holds {what}, so it has no singular values: leave it out with --except")
    return matrix


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let numpy's BLAS and LAPACK compute in the thread that calls them, as long as anybody is inside.

    The number of their threads is mostly the process's: were each to put back what it found, one would end what another
    needs. Accelerate, which numpy may have on macOS, has no such number.
    """
    global _inside, _before
    with _lock:
        if not _inside:
            _before = [library.num_threads for library in _libraries()]
        _set([1] * len(_before))  # by each: with OpenMP it is the thread's own
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _set(_before)


@cache
def _libraries() -> list[Any]:
    from threadpoolctl import ThreadpoolController

    controllers: list[Any] = ThreadpoolController().select(user_api="blas").lib_controllers
    return controllers


def _set(counts: list[int]) -> None:
    for library, count in zip(_libraries(), counts, strict=True):
        # Since threadpoolctl 3.8 the calls of all threads but the first one do nothing, until that is cleared.
        clear = getattr(library, "clear_controlling_thread", lambda *, force: None)
        clear(force=True)
        library.set_num_threads(count)
        clear(force=True)
