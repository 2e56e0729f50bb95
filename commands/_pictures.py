"""What commands that draw checkpoints have in common."""

from collections.abc import Sequence
from pathlib import Path


def labels_of(checkpoints: Sequence[str]) -> list[str]:
    """Name checkpoints in a picture: the last three parts of each path, or as many more as tell them apart, without secrets."""
    from wsurgery.checkpoint.remote import without_secrets

    paths = [Path(without_secrets(checkpoint).removesuffix(".safetensors")) for checkpoint in checkpoints]
    parts = [path.parts or (path.resolve().name,) for path in paths]  # of `.`, too
    different = len(set(parts))
    n = next((n for n in range(3, max(map(len, parts))) if len({each[-n:] for each in parts}) == different), None)
    return ["/".join(each[-n:] if n else each) for each in parts]
