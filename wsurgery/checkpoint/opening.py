"""Opening a checkpoint by its name, whatever holds it."""

import os
import re
import stat
from pathlib import Path

from wsurgery.checkpoint.reader import Checkpoint
from wsurgery.errors import UsageError, WsurgeryError, printable, redacted
from wsurgery.untrusted import open_regular

STDIN = "-"
_MISTYPED = re.compile(r"(https?|s3|hf)(?::/?(?!/)|;/|/{2})", re.IGNORECASE)


def open_checkpoint(source: str | Path | None) -> Checkpoint:
    """Open a checkpoint: a safetensors file, a folder of shards, either at a URL, or standard input for `-` or None.

    Of a run's folder it is the best one.

    Raises:
        WsurgeryError: not a safetensors file, or broken.
        OSError: it cannot be opened.
        UsageError: nothing was named and standard input is a terminal, or the name is empty.
    """
    if source == "":
        raise UsageError("the name of an input is empty: name a safetensors file, or - for standard input")
    if source is None or str(source) == STDIN:
        if source is None and not stdin_is_piped():
            raise UsageError("no input: name a safetensors file, or pipe one in")
        try:
            return Checkpoint(open(0, "rb", buffering=0, closefd=False), None)
        except OSError as error:  # it is closed
            error.filename = "standard input"
            raise
    if "://" in str(source):
        from wsurgery.checkpoint.remote import open_remote

        return open_remote(str(source))
    path = Path(source)
    if is_run(path):
        path = of_run(path)
        return Checkpoint(open_regular(path), path)
    if path.is_dir():
        from wsurgery.checkpoint.shards import open_folder

        return open_folder(path)
    if (meant := _MISTYPED.match(str(source))) and not path.exists():
        scheme = meant[1].lower()
        raise UsageError(f"{printable(redacted(str(source)))} is no file and no URL: did you mean {scheme}://…?")
    return Checkpoint(path.open("rb", buffering=0), path)


def is_run(path: Path) -> bool:
    """Whether a folder is one that `wsurgery train` made."""
    return (path / "init.safetensors").is_file() and (path / "log.jsonl").is_file()


def which_of_run(*, last: bool, init: bool) -> str:
    """Return the name of the checkpoint of a run that was asked for.

    Raises:
        UsageError: two were.
    """
    if last and init:
        raise UsageError("--last and --init name two checkpoints of a run: choose one")
    return "last" if last else "init" if init else "best"


def of_run(run: Path, which: str = "best") -> Path:
    """Return one of a run's checkpoints: `best` (highest macro AUC), `last` or `init`.

    Raises:
        WsurgeryError: it is not there yet.
    """
    path = run / f"{which}.safetensors"
    if not path.is_file():
        raise WsurgeryError(f"the run {printable(str(run))} has no {path.name}: repeat its train command to go on")
    return path


def stdin_is_piped() -> bool:
    """Whether standard input is a pipe, a socket or a redirected file, as opposed to a terminal or a device."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)
