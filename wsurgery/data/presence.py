"""Whether the images of a manifest are where it says."""

import os
from collections.abc import Sequence

from wsurgery.data.archive import split_path
from wsurgery.data.manifest import Manifest

_FEW = 50  # names in a folder, from which on it is listed: a question each would take longer


def missing_images(manifest: Manifest) -> Sequence[str]:
    """Return the paths of images that are not there, in the manifest's order.

    A folder of many images is listed once. Of an archive only the file is looked for.
    """
    root = str(manifest.root)
    file_of: dict[str, str] = {}
    folders: dict[str, set[str]] = {}
    for path in manifest.paths:
        inside = split_path(manifest.root / path) if ".npz/" in path else None
        file_of[path] = str(inside[0]) if inside else os.path.join(root, path)
        folder, name = os.path.split(file_of[path])
        folders.setdefault(folder, set()).add(name)
    there = {os.path.join(folder, name) for folder, names in folders.items() for name in _present(folder, names)}
    return [path for path in manifest.paths if file_of[path] not in there]


def _present(folder: str, names: set[str]) -> set[str]:
    if len(names) >= _FEW:
        try:
            with os.scandir(folder) as entries:
                names_there = names.intersection(entry.name for entry in entries)
        except OSError:
            return set()
        if len(names_there) == len(names):
            return names_there
        rest = names - names_there  # a file system may know them by other capitals
        return names_there | ({name for name in rest if os.path.exists(os.path.join(folder, name))})
    return {name for name in names if os.path.exists(os.path.join(folder, name))}
