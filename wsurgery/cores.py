"""How many cores there are to use."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_sharing: int | None = None  # processes that use this one's cores, where no launcher says it


def cores() -> int:
    """Return how many cores this process may use: this machine's, divided among the processes that share them."""
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _sharing is None else _sharing
    return max(1, (_allowed() or 1) // sharing)


def which_cores() -> frozenset[int]:
    """Return which cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(_allowed() or 1))


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
