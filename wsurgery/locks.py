"""Locks that the kernel takes back when their holder ends, however it ends."""

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from wsurgery.ending import half_done
from wsurgery.errors import WsurgeryError, printable
from wsurgery.untrusted import open_own, read_regular

_POLL = 0.1  # seconds
_NONE_HERE = {
    errno.ENOSYS,
    errno.ENOLCK,
    errno.EOPNOTSUPP,
    errno.ENOTSUP,
}  # of Lustre without flock, of NFS without lockd


class Busy(WsurgeryError):
    """Another process holds a lock; `holder` says which, as far as it is known."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{printable(str(path))} is held by {holder}")
        self.holder = holder


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a lock, for which a file stands that says who does.

    Args:
        path: the file; it is removed in the end, and after `kill -9` the next holder takes it over.
        wait: for the one who holds it, however long.

    Yields:
        Whether it is held: False where the file system has no locks.

    Raises:
        Busy: somebody holds it, and `wait` is False.
        WsurgeryError: the file is a link, or none.
    """
    while (taken := _taken(path)) is None:
        if not wait:
            raise Busy(path, _holder(path))
        time.sleep(_POLL)
    stream, held = taken
    half_done[path] = partial(path.unlink, missing_ok=True)
    try:
        if held:
            import socket

            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {socket.gethostname()} since {time.ctime()}".encode())
        yield held
    finally:
        if sys.platform == "win32":  # where no open file is removed, neither ours nor that of who waits
            stream.close()
        with suppress(OSError):
            path.unlink()  # elsewhere while it is held: whoever waits finds another file there, or none
        half_done.pop(path, None)  # two may have it, where nothing can be locked
        stream.close()


def _taken(path: Path) -> tuple[BinaryIO, bool] | None:
    """Return the open file and whether it is locked, None if somebody else has locked it."""
    while True:
        stream = open_own(path, "ab")
        try:
            held = _lock(stream)
            if held is not None and (not held or _is_at(stream, path)):
                return stream, held
        except BaseException:
            stream.close()
            raise
        stream.close()
        if held is None:
            return None
        # Else its last holder removed it between the two calls.


def _is_at(stream: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _lock(stream: BinaryIO) -> bool | None:
    """Lock a file; return None if somebody else has, False if no file is locked there."""
    try:
        if sys.platform == "win32":
            import msvcrt

            stream.seek(1 << 20)  # what is locked cannot be read, and the holder's name is to be
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NONE_HERE:
            return False
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            return None
        raise
    return True


def _holder(path: Path) -> str:
    with suppress(OSError, WsurgeryError):
        if said := read_regular(path, 1000).decode(errors="replace").strip():
            return printable(said)
    return "another process"
