"""Ending a run in good order when it is asked to end."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from wsurgery.ending import ASKING
from wsurgery.errors import WsurgeryError

IMPATIENT = 3.0  # seconds after which a further Ctrl-C is one: sooner it is the same one, which torchrun hands on


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
    """Only note the first signal that asks a run to end while this is open; those that follow do nothing.

    Whoever asks may send it to a launcher and its processes at once, and torchrun then hands it on a second time; who wants no
    more patience sends SIGKILL. A further Ctrl-C after `IMPATIENT` seconds is from a person, and does what it did before.

    These signals are SIGTERM, Ctrl-C, SIGHUP (a terminal that was closed), SIGUSR1 and SIGUSR2 (Slurm's --signal, submitit), but
    for what is ignored, as nohup has SIGHUP. Python gives signals to the main thread alone: in any other one none is noted.

    Yields:
        A function that returns the number of the signal that came, 0 if none did.
    """
    noted: list[tuple[int, float]] = []

    def note(number: int, frame: object) -> None:
        if not noted:
            noted.append((number, time.monotonic()))
        elif number == signal.SIGINT and time.monotonic() - noted[0][1] > IMPATIENT:
            before = handlers[number]
            signal.signal(number, before)
            os.kill(os.getpid(), number)

    with _handled(note) as handlers:
        yield lambda: noted[0][0] if noted else 0


@contextmanager
def signals_ignored() -> Iterator[None]:
    """Let none of these signals disturb what is done in here, in the main thread, and soon is."""
    with _handled(lambda number, frame: None):
        yield


@contextmanager
def _handled(handler: Callable[[int, object], None]) -> Iterator[dict[int, Any]]:
    """Have a handler for these signals while this is open; yield those that they had before."""
    if threading.current_thread() is not threading.main_thread():
        yield {}
        return
    heard = [number for number in ASKING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield before
    finally:
        for number, each in before.items():
            signal.signal(number, each)
