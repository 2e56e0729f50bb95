"""Which networks a figure shows, for its title."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from wsurgery.checkpoint import open_checkpoint
from wsurgery.checkpoint.provenance import History
from wsurgery.errors import WsurgeryError


def network_names(checkpoints: Iterable[str | Path]) -> str:
    """Name the architectures of local checkpoints, each once; one that cannot be read, or says none, is passed over."""
    found: dict[str, None] = {}
    for source in checkpoints:
        with suppress(WsurgeryError, OSError):
            if not (Path(source).is_file() or Path(source).is_dir()):  # a pipe is read once, by who draws it
                continue
            with open_checkpoint(source) as checkpoint:
                architecture = History.of(checkpoint).architecture
                found |= {str(architecture["name"]): None} if architecture else {}
    return ", ".join(found)


def networks_of_runs(folders: Iterable[Path]) -> str:
    """Name the architectures that training began from or came to."""
    names = ("init.safetensors", "best.safetensors")
    files = [[path for name in names if (path := folder / name).is_file()] for folder in folders]
    return network_names(found[0] for found in files if found)
