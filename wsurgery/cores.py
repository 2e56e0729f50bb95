"""How many cores there are to use."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from wsurgery.errors import UsageError

_sharing: int | None = None  # processes that use this one's cores, where no launcher says it
_asked: int | None = None  # how many a command was told to use


def cores() -> int:
    """Return how many cores this process may use: this machine's, divided among the processes that share them."""
    if _asked is not None:
        return _asked
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _sharing is None else _sharing
    return max(1, (_allowed() or 1) // sharing)


def workers(threads: int | None) -> int:
    """Return a number of threads as a caller asks for it: None is one a core.

    Raises:
        UsageError: it is no number of threads.
    """
    if threads is None:
        return cores()
    if not isinstance(threads, int) or threads < 1:
        raise UsageError(f"threads {threads!r}: at least 1, or None for all cores")
    return threads


def which_cores() -> frozenset[int]:
    """Return which cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(_allowed() or 1))


@contextmanager
def asked_cores(count: int | None) -> Iterator[None]:
    """Use this many while this is open, wherever a command begins threads; None changes nothing."""
    global _asked
    before, _asked = _asked, _asked if count is None else count
    try:
        yield
    finally:
        _asked = before


@contextmanager
def shared_cores(count: int) -> Iterator[None]:
    """Divide the cores among `count` processes while this is open."""
    global _sharing
    before, _sharing = _sharing, count
    try:
        yield
    finally:
        _sharing = before


def _allowed() -> int | None:
    if sys.version_info >= (3, 13):
        return os.process_cpu_count()
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()
