"""Whether a file is still the one that was opened: if it is written to in place meanwhile, a mixture is read."""

import os
import stat
from pathlib import Path

from wsurgery.errors import WsurgeryError

FileState = tuple[int, int, int, int]


def file_state(file: int | Path) -> FileState | None:
    """Return device, inode, size and time of the last change of a regular file, of anything else None.

    Args:
        file: its descriptor or its name.
    """
    of = os.stat(file)
    return (of.st_dev, of.st_ino, of.st_size, of.st_mtime_ns) if stat.S_ISREG(of.st_mode) else None


def require_unchanged(label: str, file: int | Path, before: FileState | None) -> None:
    """Require that a file is as it was.

    Raises:
        WsurgeryError: it is not.
    """
    if before is not None and file_state(file) != before:
        raise WsurgeryError(f"{label} was changed while it was read: run the command again when nobody writes to it")
