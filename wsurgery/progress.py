"""A progress bar that stays out of the way: on a terminal only, and only for work that takes longer than two seconds."""

import sys
import time
from typing import Any

PATIENCE = 2.0  # seconds
_quiet = False


def be_quiet(wanted: bool) -> None:
    """Say nothing from now on that is not asked for, or do again."""
    global _quiet
    _quiet = wanted


def is_quiet() -> bool:
    """Whether only errors are to be said."""
    return _quiet


def wants_progress() -> bool:
    """Whether a progress bar may show: on a terminal, unless --quiet."""
    return sys.stderr.isatty() and not _quiet


class Progress:
    """Context manager that counts `total` steps of work, None if nobody knows, shown on standard error as `label`."""

    def __init__(self, total: int | None, label: str) -> None:
        self.total, self.label, self.done = total, label, 0
        self.start = time.monotonic()
        self.wanted = wants_progress()
        self.bar: Any = None
        self.task: Any = None

    def advance(self, n: int = 1) -> None:
        """Count `n` more steps as done."""
        self.done += n
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done)
        elif self.wanted and time.monotonic() - self.start > PATIENCE:
            from rich.console import Console
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            end = (TaskProgressColumn(), TimeRemainingColumn()) if self.total else (TextColumn("{task.completed:,}"),)
            self.bar = Bar(
                TextColumn("{task.description}"), BarColumn(), *end, console=Console(stderr=True), transient=True
            )
            self.task = self.bar.add_task(self.label, total=self.total, completed=self.done)
            self.bar.start()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.stop()
