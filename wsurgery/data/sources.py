"""Where data comes from: a manifest, or a specification `scheme:argument?key=value` of data that is made once."""

import json
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from wsurgery.checkpoint.digest import bytes_digest
from wsurgery.data.cache import cache_folder
from wsurgery.data.manifest import Manifest, read_manifest, write_manifest
from wsurgery.data.synthetic import Synthetic
from wsurgery.errors import UsageError, printable


class Source(Protocol):
    """What stands behind a scheme."""

    @property
    def settings(self) -> Mapping[str, str | int | float]:
        """All that decides what `make` makes, with defaults filled in."""

    def make(self, folder: Path, *, threads: int | None = None) -> Manifest:
        """Put what is needed into an empty `folder`, and return the manifest, which the caller writes."""


SCHEMES: dict[str, Callable[[str, Mapping[str, str]], Source]] = {
    "synthetic": Synthetic.parse,
}

EXAMPLE = "synthetic:fundus?n=2000&size=64&seed=0"


def open_data(spec: str, *, threads: int | None = None) -> Manifest:
    """Read a manifest, or make what a specification says in the cache folder, unless it is there, and read that.

    Raises:
        UsageError: no such file, scheme, argument or key, or a value that cannot be.
        WsurgeryError: the manifest is broken.
    """
    file = Path(spec)
    if file.is_file():
        return read_manifest(file)
    if not _is_specification(spec):
        there = " is a folder" if file.is_dir() else ": there is no such file"
        raise UsageError(f"{printable(spec)}{there}; data is a manifest (.csv or .parquet) or for example {EXAMPLE}")
    identity = _identity(*_parse(spec))
    folder = cache_folder() / "data" / f"{spec.partition(':')[0]}-{bytes_digest(identity.encode())[:16]}"
    make_data(spec, folder, threads=threads)
    return read_manifest(folder / "manifest.csv")


def make_data(spec: str, folder: Path, *, force: bool = False, threads: int | None = None) -> bool:
    """Make what a specification says in `folder`, which appears whole or not at all, with a manifest.csv.

    Args:
        spec: `scheme:argument?key=value`.
        folder: new, empty, or made before. Its spec.json tells what it was made from.
        force: replace what was made there before.
        threads: processes or threads to use. Default: all cores. Never changes the result.

    Returns:
        Whether anything was done: False when the folder holds just this already.

    Raises:
        UsageError: the folder holds something else, or the specification cannot be.
    """
    scheme, source = _parse(spec)
    identity = _identity(scheme, source)
    if not force and _made_from(folder) == identity:
        return False
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if _made_from(folder) is None:
            raise UsageError(f"{printable(str(folder))} holds something that was not made here: name another folder")
        if not force:
            raise UsageError(
                f"{printable(str(folder))} holds other data: add --force to replace it, or name another folder"
            )
    target = folder.absolute()
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    part.mkdir(parents=True)
    try:
        manifest = source.make(part, threads=threads)
        (part / "spec.json").write_text(identity)
        write_manifest(manifest, part / "manifest.csv")
        if force and target.exists():
            shutil.rmtree(target)
        _publish(part, target, identity)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return True


def _publish(part: Path, target: Path, identity: str) -> None:
    try:
        part.rename(target)
    except OSError:
        # Another process may have made the same data meanwhile.
        if _made_from(target) != identity:
            raise


def _is_specification(spec: str) -> bool:
    return re.match(r"[a-z][a-z0-9]+:", spec) is not None


def _parse(spec: str) -> tuple[str, Source]:
    if not _is_specification(spec):
        raise UsageError(f"{printable(spec)} is not a specification: {EXAMPLE} is one")
    scheme, _, rest = spec.partition(":")
    if scheme not in SCHEMES:
        raise UsageError(f"there is no scheme {printable(scheme)!r}: there are {', '.join(SCHEMES)}")
    argument, _, query = rest.partition("?")
    options: dict[str, str] = {}
    for pair in query.split("&") if query else ():
        key, equals, value = pair.partition("=")
        if not equals or key in options:
            raise UsageError(f"{printable(spec)}: {printable(pair)!r} should be key=value, each key once")
        options[key] = value
    return scheme, SCHEMES[scheme](argument, options)


def _identity(scheme: str, source: Source) -> str:
    return json.dumps({"scheme": scheme, **source.settings}, indent=2) + "\n"


def _made_from(folder: Path) -> str | None:
    try:
        return (folder / "spec.json").read_text()
    except OSError:
        return None
