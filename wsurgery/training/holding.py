"""A run's folder while it is trained in: one run at a time, and one folder for all processes."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from wsurgery.errors import WsurgeryError, printable
from wsurgery.locks import Busy, locked
from wsurgery.processes import Processes
from wsurgery.untrusted import require_local

SEEN_WITHIN = 10.0  # seconds: no process has asked for the name before, so no file system has an old answer to it
_POLL = 0.1


@contextmanager
def held(run: Path, processes: Processes, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a run's folder, made if it is missing, against other runs, and require that all processes have the same one.

    A folder that was made for this and stayed empty is removed in the end.

    Args:
        run: the folder.
        processes: which train in it together; the first one holds it.
        say: told, in the first process, where the file system has no locks.

    Raises:
        WsurgeryError: another run holds it, or it is not the same folder for all processes.
        SystemExit: in the others, where the first one says so.
    """
    with ExitStack() as stack:
        has_locks = processes.in_first(lambda: stack.enter_context(_locked(run)))
        if processes.is_first and not has_locks:
            say(f"{printable(str(run))}: its file system has no locks, so nothing would notice a second run there")
        _require_shared(run, processes)
        yield


@contextmanager
def _locked(run: Path) -> Iterator[bool]:
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    require_local(run)
    run.mkdir(parents=True, exist_ok=True)
    try:
        with locked(run / ".lock", wait=False) as has_locks:
            yield has_locks
    except Busy as busy:
        raise WsurgeryError(
            f"{printable(str(run))} is trained in by {busy.holder}: wait for it, or choose another folder with -o"
        ) from None
    finally:
        with suppress(OSError):  # what is not empty stays
            for folder in made:
                folder.rmdir()


def _require_shared(run: Path, processes: Processes) -> None:
    if processes.count == 1:
        return

    def leave() -> str:
        name = f".seen-{uuid4().hex}"
        (run / name).write_bytes(b"")
        return name

    token = run / processes.in_first(leave)
    end = time.monotonic() + SEEN_WITHIN
    while not (seen := token.exists()) and time.monotonic() < end:
        time.sleep(_POLL)
    found = processes.to_all((seen, socket.gethostname()))
    if processes.is_first:
        token.unlink()
    blind = [(rank, host) for rank, (sees, host) in enumerate(found) if not sees]
    if blind:
        rank, host = blind[0]
        processes.refuse(
            WsurgeryError(
                f"{printable(str(run))} is another folder for process {rank} on {printable(host)} than for the first one: RUN "
                "has to be on a file system that all processes share; give its whole path"
            )
        )
