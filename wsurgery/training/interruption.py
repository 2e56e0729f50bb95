"""Ending a run in good order when it is asked to end."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from wsurgery.ending import ASKING
from wsurgery.errors import WsurgeryError


class Interrupted(WsurgeryError):
    """A run that was asked to end by a signal, and can go on. Exit status 128 + the signal's number, as in a shell."""

    def __init__(self, number: int, step: int, steps: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name} after step {step} of {steps}: "
            "run the same command again to go on from there"
        )
        self.exit_status = 128 + number


@contextmanager
def signals_noted() -> Iterator[Callable[[], int]]:
    """Only note the first signal that asks a run to end while this is open; the next one does what it did before.

    Those are SIGTERM, Ctrl-C, SIGHUP (a terminal that was closed), SIGUSR1 and SIGUSR2 (Slurm's --signal, submitit), but
    for what is ignored, as nohup has SIGHUP. Python gives signals to the main thread alone: in any other one none is noted.

    Yields:
        A function that returns the number of the signal that came, 0 if none did.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    noted: list[int] = []

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: object) -> None:
        if noted:
            restore()
            os.kill(os.getpid(), number)
        noted.append(number)

    heard = [number for number in ASKING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heard}
    try:
        yield lambda: noted[0] if noted else 0
    finally:
        restore()
