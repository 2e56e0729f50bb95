"""What commands that draw checkpoints have in common."""

from collections.abc import Sequence
from pathlib import Path


def labels_of(checkpoints: Sequence[str]) -> list[str]:
    """Name checkpoints in a picture: the last three parts of each path, without secrets and suffix."""
    from wsurgery.checkpoint.remote import without_secrets

    paths = [Path(without_secrets(checkpoint)).with_suffix("") for checkpoint in checkpoints]
    return ["/".join(path.parts[-3:]) for path in paths]
