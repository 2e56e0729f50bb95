"""How a command ends on SIGTERM, on Ctrl-C, and on what else asks it to: within a second, with nothing half done left behind.

The first signal is raised in the main thread, so that every `with` is left in good order. That may wait for threads, and
these for a file or a server that never says anything: so what is half done is noted here, too, and a thread that waits for
nobody takes it back and ends the process when its patience is over.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType

# SIGHUP is of a terminal that was closed, SIGUSR1 and SIGUSR2 are what schedulers send. Windows has the first two only.
ASKING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
]

_PATIENCE = 0.6  # seconds for the main thread to end in good order

half_done: dict[object, Callable[[], None]] = {}  # by whose it is: how it is taken back

_heeded = False
_unwinds = False  # whether a command is at work, which has something to leave in good order
_raised = False
_signal = 0  # the one that ends this process
_word = threading.Lock()  # whoever holds it says that the process was interrupted, and nobody else


def heed_signals() -> None:
    """Have these signals end this process from now on, as this module says, if they were not ignored before."""
    global _heeded
    if not _heeded:
        _watch()
    _heeded = True
    for number in ASKING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell has it for what runs in the background
            signal.signal(number, _end)


@contextmanager
def unwound() -> Iterator[None]:
    """Have a signal raised in here, Ctrl-C as KeyboardInterrupt, the others as SystemExit; elsewhere it ends the process."""
    global _unwinds
    _unwinds = True
    try:
        yield
    finally:
        _unwinds = False


def end_if_told() -> None:
    """End the process with status 128 + the signal's number if one came, and wait for no thread."""
    if _signal:
        has_the_word()
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        _end_processes()
        os._exit(128 + _signal)


def is_ending() -> bool:
    """Return whether a signal ends this process."""
    return bool(_signal)


def has_the_word() -> bool:
    """Return whether to say that the process was interrupted: True once, for the main thread or for who waits for it."""
    return _word.acquire(blocking=False)


@contextmanager
def removed(folder: Path) -> Iterator[Path]:
    """Remove a folder in the end with all that is in it, if it is still there."""
    import shutil

    half_done[folder] = remove = partial(shutil.rmtree, folder, ignore_errors=True)
    try:
        yield folder
    finally:
        remove()
        del half_done[folder]


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """Give a new folder, and remove it in the end with all that is in it."""
    import tempfile

    with removed(Path(tempfile.mkdtemp(prefix=prefix))) as folder:
        yield folder


def _end(number: int, frame: FrameType | None) -> None:
    global _raised
    _have_patience(number)
    if not _unwinds:
        _leave()
    if not _raised:  # another one would only disturb what the first has begun
        _raised = True
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def _watch() -> None:
    """Hear of signals at once, and not only when the main thread comes back from a long computation."""
    if sys.platform != "win32":
        import fcntl

        pipe = os.pipe()
        reader, writer = (
            fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3) for end in pipe
        )  # else a closed standard input is one
        for end in pipe:
            os.close(end)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # else a child's signal would be ours

        def wait() -> None:
            while number := os.read(reader, 1):
                if signal.getsignal(number[0]) is _end:
                    _have_patience(number[0])

        threading.Thread(target=wait, daemon=True).start()


def _have_patience(number: int) -> None:
    global _signal
    if not _signal:
        _signal = number
        timer = threading.Timer(_PATIENCE, _leave)
        timer.daemon = True
        timer.start()


def _leave() -> None:
    _end_processes()  # first: they go on filling what is taken back
    for take_back in list(half_done.values()):
        with suppress(OSError):
            take_back()
    if _signal == signal.SIGINT and has_the_word():
        with suppress(OSError):
            os.write(2, b"wsurgery: interrupted\n")
    os._exit(128 + _signal)


def _end_processes() -> None:
    """End the processes that work for this one, and remove the semaphores by which they knew each other."""
    if "multiprocessing" in sys.modules:
        from multiprocessing import active_children, util

        children = active_children()
        for child in children:
            child.kill()
        for child in children:
            child.join(_PATIENCE / 4)
        util._run_finalizers(0)  # type: ignore[attr-defined]
