"""Writing a checkpoint: to standard output as a stream, or to a file that appears whole or not at all."""

import contextlib
import errno
import os
import stat
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from wsurgery.checkpoint.header import TensorInfo, format_header
from wsurgery.checkpoint.sink import AppearedError, GatheringWriter, RemoteOutput, Sink, write_all
from wsurgery.ending import half_done
from wsurgery.errors import UsageError, printable
from wsurgery.untrusted import require_local

if TYPE_CHECKING:
    from wsurgery.checkpoint.hub_upload import Commit

_DESCRIPTORS = "/proc/self/fd"
_PIPE = 1 << 20  # bytes that a pipe holds, the most that Linux allows everyone: commands wait for each other less


class AtomicFile:
    """Context manager that writes a file and gives it its name only when all of it is on disk.

    On Linux the bytes go to a file without a name (`O_TMPFILE`), so that even `kill -9` leaves nothing behind; on other
    systems, and where the file system has no such files, to a temporary name in the same folder. A device or a named
    pipe is written, never replaced.
    """

    def __init__(self, path: Path, *, force: bool = False) -> None:
        require_local(path)
        self.temporary: Path | None = None
        exists = path.exists()
        require_free(path, force=force)
        self.special = exists and not stat.S_ISREG(path.stat().st_mode)
        # A link is followed, not replaced; where /dev/stdout leads to a pipe has no name.
        self.path = path if self.special else Path(os.path.realpath(path))
        self.force = force
        try:
            self.stream = self._open()
            if exists and not self.special and hasattr(os, "fchmod"):  # who may read the old one may read the new
                with contextlib.suppress(PermissionError):  # a file system without permissions
                    os.fchmod(self.stream.fileno(), stat.S_IMODE(self.path.stat().st_mode) & 0o777)
        except OSError as error:
            error.filename = str(self.path)  # and not the folder, or a temporary name
            raise

    def _open(self) -> BinaryIO:
        if self.special:
            return self.path.open("wb", buffering=0)
        if sys.platform == "linux" and hasattr(os, "O_TMPFILE") and os.path.isdir(_DESCRIPTORS):
            try:
                return open(os.open(self.path.parent, os.O_TMPFILE | os.O_WRONLY, 0o666), "wb", buffering=0)
            except (FileNotFoundError, PermissionError):
                raise
            except OSError:  # not on this file system
                pass
        self.temporary = self._unused_name()
        return open(os.open(self.temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb", buffering=0)

    def _unused_name(self) -> Path:
        return Path(tempfile.mktemp(prefix=f".{self.path.name[:40]}.", suffix=".tmp", dir=self.path.parent))

    def __enter__(self) -> BinaryIO:
        half_done[self] = self._remove_temporary
        return self.stream

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *rest: object) -> None:
        _name_full_disk(error, str(self.path))
        try:
            if kind is None and not self.special:
                os.fsync(self.stream.fileno())
                self._publish()
        finally:
            self.stream.close()
            self._remove_temporary()
            half_done.pop(self, None)

    def _remove_temporary(self) -> None:
        if self.temporary is not None:
            self.temporary.unlink(missing_ok=True)

    def _publish(self) -> None:
        try:
            if self.temporary is None:
                if not self.force:
                    return self._link(self.path)
                self.temporary = self._unused_name()  # a link cannot replace a file, a rename can
                self._link(self.temporary)
            self.stream.close()  # Windows does not rename what is open
            if self.force:
                os.replace(self.temporary, self.path)
                self.temporary = None  # nobody's any more
            else:
                _give_name(self.temporary, self.path)
        except FileExistsError:
            raise AppearedError(str(self.path)) from None
        except OSError as error:
            error.filename, error.filename2 = str(self.path), None  # and not a descriptor, or a temporary name
            raise

    def _link(self, path: Path) -> None:
        descriptors = os.open(_DESCRIPTORS, os.O_RDONLY)  # given a folder, os.link follows the link that names our file
        try:
            os.link(str(self.stream.fileno()), path, src_dir_fd=descriptors)
        finally:
            os.close(descriptors)


def _give_name(temporary: Path, path: Path) -> None:
    """Give a file a name that nothing has; it may keep the old one, too.

    Raises:
        FileExistsError: something has that name.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        # No hard links on this file system. The name is taken by an empty file, and that replaced.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        try:
            os.replace(temporary, path)
        except BaseException:
            path.unlink()
            raise


def require_free(path: Path, *, force: bool) -> None:
    """Check that a file may be written, before what it is to hold is worked out.

    Raises:
        UsageError: there is a folder of that name, or a file, which is no device, and `force` is off; or it is `-`, which is
            standard output elsewhere.
    """
    if str(path) == "-":
        raise UsageError("- is no file: name one")
    if path.is_dir():
        raise UsageError(f"{printable(str(path))} is a folder: name a file in it")
    if not force and path.exists() and stat.S_ISREG(path.stat().st_mode):
        raise UsageError(f"{printable(str(path))} exists: add --force to overwrite it")


class StandardOutput:
    """Context manager around standard output that takes back what it wrote to a redirected file when it fails."""

    def __enter__(self) -> BinaryIO:
        self.stream = open(1, "wb", buffering=0, closefd=False)
        self.regular = stat.S_ISREG(os.fstat(1).st_mode)
        _widen_pipe()
        self.start = os.lseek(1, 0, os.SEEK_END if _appends() else os.SEEK_CUR) if self.regular else 0
        half_done[self] = self._take_back
        return self.stream

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *rest: object) -> None:
        _name_full_disk(error, "standard output")
        half_done.pop(self, None)
        if kind is not None:
            self._take_back()

    def _take_back(self) -> None:
        if self.regular:
            os.ftruncate(1, self.start)
            os.lseek(1, self.start, os.SEEK_SET)  # which the next command in the same redirection shares


def _widen_pipe() -> None:
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError, AttributeError):  # not a pipe, or an old system
            fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, _PIPE)


def _appends() -> bool:
    """Whether standard output is written at its end, as by `>>`, whatever its position says."""
    if sys.platform == "win32":  # there `>>` begins at the end
        return False
    else:
        import fcntl

        return bool(fcntl.fcntl(1, fcntl.F_GETFL) & os.O_APPEND)


def _name_full_disk(error: BaseException | None, output: str) -> None:
    """Let an error that only writing raises say what was written: a failed write knows no name."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and not error.filename:
        error.filename = output


def open_output(
    path: Path | str | None, *, force: bool = False, size: int = 0, commit: "Commit | None" = None
) -> AbstractContextManager[Sink]:
    """Open a file, an object in a store (a URL, as text), or standard output for None.

    Args:
        path: where to.
        force: whether what is there is replaced.
        size: bytes that will be written, or a little less: of these there are as many parts as a store takes.
        commit: on the hub, that with which it appears. Default: one of its own.

    Raises:
        UsageError: it exists and `force` is off, standard output is a terminal, or a URL is of a kind that is not written.
        OSError: a store cannot be reached.
    """
    if isinstance(path, str) and "://" in path:
        _require_written(path)
        return _upload(path, size=size, force=force, commit=commit)
    path = None if path is None else Path(path)
    if path is not None and str(path) != "-":
        return AtomicFile(path, force=force)
    if sys.stdout.isatty():
        raise UsageError("a checkpoint does not go to a terminal: name a file with -o, or pipe it on")
    return StandardOutput()


def _upload(url: str, *, size: int, force: bool, commit: "Commit | None") -> RemoteOutput:
    if url.startswith("s3://"):
        from wsurgery.checkpoint.upload import Upload

        return Upload(url, size=size, force=force)
    from wsurgery.checkpoint.hub_upload import HubUpload

    return HubUpload(url, force=force, commit=commit)


def _require_written(url: str) -> None:
    if not url.startswith(("s3://", "hf://")):
        scheme = printable(url.partition("://")[0])
        raise UsageError(f"{scheme}:// is not written: name a file, a folder (DIR/), or an s3:// or hf:// address")


def is_there(path: Path | str) -> bool:
    """Whether there is a file, a link (even one that leads nowhere), or an object at a URL.

    Raises:
        UsageError: the URL is of a kind that is not written.
        OSError: a store cannot be reached.
    """
    if isinstance(path, Path):
        return os.path.lexists(path)
    _require_written(path)
    if path.startswith("hf://"):
        from wsurgery.checkpoint import hub_upload

        return hub_upload.exists(path)
    from wsurgery.checkpoint import upload

    return upload.exists(path)


def write_checkpoint(
    path: Path | None, tensors: Iterable[tuple[TensorInfo, bytes]], metadata: Mapping[str, str], *, force: bool = False
) -> None:
    """Write tensors that are in memory to a file, atomically, or (None) to standard output."""
    tensors = list(tensors)
    with open_output(path, force=force) as stream:
        write_all(stream, format_header([tensor for tensor, _ in tensors], metadata))
        gathered = GatheringWriter(stream)
        for _, data in tensors:
            gathered.write(data)
        gathered.flush()
