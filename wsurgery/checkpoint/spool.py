"""A stream in a temporary file, for whoever must read it in another order than its own."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryFile, gettempdir
from typing import BinaryIO, cast

from wsurgery.checkpoint.reader import Checkpoint


class _Copy(Checkpoint):
    """The copy of a stream.

    Attributes:
        original: the stream.
    """

    original: Checkpoint


def original(checkpoint: Checkpoint) -> Checkpoint:
    """Return the stream of which a checkpoint is a copy; any other checkpoint itself."""
    return checkpoint.original if isinstance(checkpoint, _Copy) else checkpoint


def spooled(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint itself, or of a stream a copy that is read at any place.

    The copy is a file without a name in the folder for temporary files, so that even `kill -9` leaves nothing behind.

    Raises:
        WsurgeryError: the stream ends early, or goes on after its last tensor.
    """
    if checkpoint.seekable:
        return checkpoint
    with ExitStack() as stack:
        stream = cast(BinaryIO, stack.enter_context(TemporaryFile(buffering=0)))  # a wrapper of one on Windows
        try:
            checkpoint.copy_whole_to(stream)
        except OSError as error:
            error.filename = error.filename or f"{gettempdir()} (a copy of {checkpoint.label}; TMPDIR moves it)"
            raise
        checkpoint.finish()
        stream.seek(0)
        copy = _Copy(stream, None)
        stack.pop_all()  # it is closed with the copy
    copy.seekable, copy.label, copy.original = True, checkpoint.label, checkpoint
    return copy


@contextmanager
def seekable(checkpoint: Checkpoint) -> Iterator[Checkpoint]:
    """Give what `spooled` returns, and close a copy in the end."""
    copy = spooled(checkpoint)
    try:
        yield copy
    finally:
        if copy is not checkpoint:
            copy.close()
