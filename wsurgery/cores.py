"""How many cores there are to use."""

import os
import sys


def cores() -> int:
    """Return how many cores this process may use: this machine's, divided among the processes that torchrun started here."""
    allowed: int | None
    if sys.version_info >= (3, 13):
        allowed = os.process_cpu_count()
    elif hasattr(os, "sched_getaffinity"):  # Linux
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count()
    return max(1, (allowed or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
