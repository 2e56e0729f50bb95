"""What lies in the cache folder: listed, and cleared."""

import re
import shutil
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TypedDict

from wsurgery.data.cache import cache_folder
from wsurgery.errors import WsurgeryError
from wsurgery.locks import Busy, locked
from wsurgery.untrusted import parse_json, read_regular

_IMAGES = re.compile(r"([0-9a-f]{32})\.(?:rgb|(?:[0-9a-f]{32}\.)?part|bad|json|lock)")
_DATA = re.compile(r"[a-z0-9]+-[0-9a-f]{16}")
_MAX_FACTS = 1 << 16  # bytes


class Facts(TypedDict):
    """Of which images a file in the cache is."""

    folder: str
    images: int
    image_size: int
    fit: str
    window: str


@dataclass(frozen=True)
class Entry:
    """Images, decoded, or a data set, drawn.

    Attributes:
        path: the file of images or the folder of a data set.
        bytes: of all its files.
        changed: when it was, in UTC, to the second.
        complete: whether it is; what is not is gone on with.
        of: what images are of; None of a data set, and where it is not known.
    """

    path: Path
    bytes: int
    changed: str
    complete: bool
    of: Facts | None

    @property
    def is_drawn(self) -> bool:
        """Whether it is a data set, and not decoded images."""
        return self.path.suffix != ".rgb"


def list_cache() -> list[Entry]:
    """All that wsurgery keeps in the cache folder, images first, by name."""
    entries = [_images(key) for key in sorted(_keys())]
    for folder in _data_sets():
        inside = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
        entries.append(Entry(folder, sum(map(_size, inside)), _changed([folder, *inside]), True, None))
    return entries


def clear_cache() -> tuple[list[Entry], list[Entry]]:
    """Remove what `list_cache` lists; return what is gone, and what another process is making and stays."""
    gone: list[Entry] = []
    busy: list[Entry] = []
    for entry in list_cache():
        if entry.is_drawn:
            shutil.rmtree(entry.path)
            gone.append(entry)
            continue
        lock = entry.path.with_suffix(".lock")
        try:
            with locked(lock, wait=False):
                for path in _files(entry.path.stem):
                    if path != lock:
                        path.unlink(missing_ok=True)
                gone.append(entry)
        except Busy:
            busy.append(entry)
    return gone, busy


def _keys() -> set[str]:
    found = (_IMAGES.fullmatch(path.name) for path in _inside("images"))
    return {match[1] for match in found if match}


def _data_sets() -> list[Path]:
    named = [path for path in _inside("data") if _DATA.fullmatch(path.name) and not path.is_symlink()]
    return sorted(path for path in named if (path / "spec.json").is_file())


def _inside(folder: str) -> list[Path]:
    try:
        return list((cache_folder() / folder).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _files(key: str) -> list[Path]:
    return [path for path in _inside("images") if (match := _IMAGES.fullmatch(path.name)) and match[1] == key]


def _images(key: str) -> Entry:
    files, file = _files(key), cache_folder() / "images" / f"{key}.rgb"
    try:
        text = read_regular(file.with_suffix(".json"), _MAX_FACTS)
        of = parse_json(text, Facts, str(file.with_suffix(".json")))
    except (OSError, WsurgeryError):  # not there, or nobody's that was made here
        of = None
    return Entry(file, sum(map(_size, files)), _changed(files), file.exists(), of)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def _changed(paths: list[Path]) -> str:
    times = [path.lstat().st_mtime for path in paths if path.is_symlink() or path.exists()]
    return datetime.fromtimestamp(int(max(times, default=0)), timezone.utc).isoformat(timespec="seconds")
