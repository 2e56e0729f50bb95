"""The initialisation that a checkpoint was trained from, found by what its history says."""

from pathlib import Path

from wsurgery.checkpoint import open_checkpoint
from wsurgery.checkpoint.digest import bytes_digest, file_digest
from wsurgery.checkpoint.provenance import History
from wsurgery.errors import WsurgeryError, printable

INIT = "init.safetensors"


def find_initialisation(trained: str) -> Path:
    """Return the `init.safetensors` beside a checkpoint that `wsurgery train` wrote.

    Raises:
        WsurgeryError: the checkpoint is no file, its history does not end in training, or the file beside it is missing
            or not the one that the history names by its digest.
    """
    with open_checkpoint(trained) as checkpoint:
        label, path = checkpoint.label, checkpoint.path
        log = History.of(checkpoint).log
    remedy = "name the initialisation itself as B"
    if path is None or not log or log[-1]["command"] != "train" or not log[-1].get("inputs"):
        raise WsurgeryError(f"{label} is no file whose history ends in training: {remedy} instead of --with-init")
    init, recorded = path.parent / INIT, log[-1]["inputs"][0]
    where = printable(str(init))
    if not init.is_file():
        raise WsurgeryError(f"{where} is not there, and {label} was trained from it: {remedy} instead of --with-init")
    if "header" in recorded:  # its own history is in the header
        with open_checkpoint(str(init)) as checkpoint:
            same = bytes_digest(checkpoint.header_bytes) == recorded["header"]
    else:
        same = file_digest(init) == recorded.get("blake3")
    if not same:
        raise WsurgeryError(f"{where} is not what {label} was trained from, by its digest: {remedy}")
    return init
