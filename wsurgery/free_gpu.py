"""Run a command on a GPU that no other command run so is using; wait for one where all are taken.

    python -m wsurgery.free_gpu [--gpus 0,1,...] -- COMMAND ARGUMENT...

It locks one GPU, has CUDA_VISIBLE_DEVICES name that one alone, and becomes the command, with which the lock ends, however
it ends. GPUs are those of --gpus, else of $CUDA_VISIBLE_DEVICES, else those that nvidia-smi lists. It knows of the commands
that you run so on this machine, and of nothing else that may be using a GPU.
"""

import os
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

_POLL = 0.5  # seconds


def main(arguments: list[str]) -> None:
    """Become the command that the arguments name, on a GPU of its own."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__.strip())
        return
    listed = None
    if arguments[:1] == ["--gpus"] and len(arguments) > 1:
        listed, arguments = arguments[1], arguments[2:]
    command = arguments[1:] if arguments[:1] == ["--"] else arguments
    if not command or command[0].startswith("-"):
        _end("what is to be run? python -m wsurgery.free_gpu -- COMMAND", 2)
    if os.name == "nt":
        _end("it is for Linux", 1)
    environment = dict(os.environ)
    gpus = _gpus(listed, environment)
    try:
        gpu = _take(gpus, _folder())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    try:
        os.execvpe(command[0], command, environment | {"CUDA_VISIBLE_DEVICES": gpu})
    except OSError as error:
        _end(f"{command[0]}: {error.strerror}", 127 if isinstance(error, FileNotFoundError) else 126)


def _gpus(listed: str | None, environment: dict[str, str]) -> list[str]:
    if listed is None:
        listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as nvidia-smi counts; CUDA by itself puts faster ones first
        query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        try:
            listed = ",".join(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split())
        except (OSError, subprocess.CalledProcessError):
            _end("nvidia-smi lists no GPU here: name them with --gpus 0,1", 1)
    found = [gpu.strip() for gpu in listed.split(",") if gpu.strip()]
    if not found:
        _end("no GPU is visible: name them with --gpus 0,1", 1)
    return found


def _folder() -> Path:
    """Return the folder of this user's locks on this machine."""
    user = 0
    if sys.platform != "win32":
        user = os.getuid()
    folder = Path(tempfile.gettempdir()) / f"wsurgery-gpus-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != user:
        _end(f"{folder} is not a folder of yours: remove it, or set TMPDIR", 1)
    return folder


def _take(gpus: list[str], folder: Path) -> str:
    """Lock one of the GPUs for this process and what it becomes; wait until one is free."""
    files = {gpu: os.open(folder / quote(gpu, safe=""), os.O_RDWR | os.O_CREAT, 0o600) for gpu in gpus}
    while True:
        for gpu, file in files.items():
            if _locks(file):
                os.set_inheritable(file, True)
                return gpu
        time.sleep(_POLL)


def _locks(file: int) -> bool:
    if sys.platform != "win32":
        import fcntl

        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


def _end(message: str, status: int) -> NoReturn:
    print(f"free_gpu: {message}", file=sys.stderr)
    raise SystemExit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
