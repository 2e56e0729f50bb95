"""Where data comes from: a manifest, or a specification `scheme:argument?key=value`.

Behind a scheme stands data that is drawn once, or an adapter that lists the images of a data set where they lie.
"""

import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from wsurgery.checkpoint.digest import bytes_digest
from wsurgery.checkpoint.writer import require_free
from wsurgery.data.adapters import LISTS
from wsurgery.data.cache import cache_folder
from wsurgery.data.checks import manifest_fault
from wsurgery.data.chexpert import chexpert
from wsurgery.data.folder import folder as class_folders
from wsurgery.data.graded import LAYOUTS, graded
from wsurgery.data.manifest import FOLD, Manifest, read_manifest, write_manifest
from wsurgery.data.medmnist import medmnist
from wsurgery.data.presence import missing_images
from wsurgery.data.rendering import DEFAULT, Rendering, split_keys
from wsurgery.data.sets import SETS, listed
from wsurgery.data.synthetic import Synthetic
from wsurgery.data.table import is_table
from wsurgery.ending import removed
from wsurgery.entry_points import find, plug_ins
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.untrusted import read_regular


class Source(Protocol):
    """What stands behind a scheme of data that is made."""

    @property
    def settings(self) -> Mapping[str, str | int | float]:
        """All that decides what `make` makes, with defaults filled in."""

    def make(self, folder: Path, *, threads: int | None = None) -> Manifest:
        """Put what is needed into an empty `folder`, and return the manifest, which the caller writes."""


SCHEMES: dict[str, Callable[[str, Mapping[str, str]], Source]] = {
    "synthetic": Synthetic.parse,
}
ADAPTERS: dict[str, Callable[[str, Mapping[str, str]], Manifest]] = {
    "chexpert": chexpert,
    **{name: partial(graded, name) for name in LAYOUTS},
    **{name: partial(listed, name) for name in SETS},
    "medmnist": medmnist,
    "folder": class_folders,
}

GROUP = "wsurgery.data"  # entry points: adapters of other packages

EXAMPLE = "synthetic:fundus?n=2000&size=64&seed=0"


def portable_name(spec: str, rendering: Rendering = DEFAULT) -> str:
    """Return what a record says of data: the specification, folders before a file's or a data set's name left out.

    Args:
        spec: the data.
        rendering: of its images; what the specification does not say of it is added.
    """
    if Path(spec).is_file():
        name, options = Path(spec).name, ""
    elif _is_table(spec):
        file, _, options = spec.partition("?")
        name = Path(file).name
    else:
        scheme, colon, rest = spec.partition(":")
        argument, _, options = rest.partition("?")
        if not _is_adapter(scheme):
            return spec
        name = f"{scheme}{colon}{Path(argument).name}"
    said = [pair for pair in options.split("&") if pair]
    keys = {pair.partition("=")[0] for pair in said}
    said += [f"{key}={value}" for key, value in rendering.keys.items() if key not in keys]
    return f"{name}?{'&'.join(said)}" if said else name


def open_data(spec: str, *, threads: int | None = None) -> Manifest:
    """Read a manifest or another table, or make what a specification says in the cache folder, and read that.

    Raises:
        UsageError: no such file, scheme, argument or key, or a value that cannot be.
        WsurgeryError: the manifest is broken.
    """
    file = Path(spec)
    if file.is_file():
        return read_manifest(file)
    if _is_table(spec):
        name, _, query = spec.partition("?")
        if not Path(name).is_file():
            raise UsageError(f"{printable(name)}: there is no such file")
        rendering, keys = split_keys(_options(spec, query))
        return _with_fold(_rendered(read_manifest(Path(name), keys), rendering), keys)
    if not _is_specification(spec):
        there = (
            f" is a folder: for one with a folder a class say folder:{printable(spec)}"
            if file.is_dir()
            else ": there is no such file"
        )
        raise UsageError(f"{printable(spec)}{there}; data is a table (.csv, .parquet) or for example {EXAMPLE}")
    scheme, argument, options = _parse(spec)
    if _is_adapter(scheme):
        rendering, keys = split_keys(options)
        return _with_fold(_rendered(_list_images(scheme, argument, keys), rendering), keys)
    identity = _identity(scheme, SCHEMES[scheme](argument, options))
    folder = cache_folder() / "data" / f"{scheme}-{bytes_digest(identity.encode())[:16]}"
    make_data(spec, folder, threads=threads)
    return read_manifest(folder / "manifest.csv")


def said_rendering(spec: str) -> dict[str, str]:
    """Return what a specification itself says of how images are rendered."""
    if Path(spec).is_file():
        return {}
    return split_keys(_options(spec, spec.partition("?")[2]))[0]


def _rendered(manifest: Manifest, given: Mapping[str, str]) -> Manifest:
    return replace(manifest, rendering=replace(manifest.rendering, **given)) if given else manifest


def _with_fold(manifest: Manifest, keys: Mapping[str, str]) -> Manifest:
    if "fold" not in keys:
        return manifest
    return replace(manifest, metadata={**manifest.metadata, FOLD: (keys["fold"],) * len(manifest)})


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
    if _is_table(spec):
        raise UsageError("a table is listed where it lies: name a .csv or .parquet file with -o")
    scheme, argument, options = _parse(spec)
    if _is_adapter(scheme):
        raise UsageError(f"{scheme} is listed where it lies: name a .csv or .parquet file with -o")
    source = SCHEMES[scheme](argument, options)
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
    with removed(part):
        manifest = source.make(part, threads=threads)
        (part / "spec.json").write_text(identity)
        write_manifest(manifest, part / "manifest.csv")
        if force and target.exists():
            shutil.rmtree(target)
        _publish(part, target, identity)
    return True


def make_manifest(spec: str, file: Path, *, force: bool = False, threads: int | None = None) -> Manifest:
    """Write the manifest of a specification to `file`, .csv or .parquet.

    The images stay where they are: their paths are relative to the file's folder where they lie below it, and absolute
    where not. Splits and subsets do not depend on it.

    Raises:
        UsageError: the file is there already and `force` is off, or the specification cannot be.
        WsurgeryError: the data is broken, or lists images that are not there.
    """
    require_free(file, force=force)
    manifest = open_data(spec, threads=threads)
    if said := absent(spec, manifest):
        raise WsurgeryError(said)
    folder, root = file.absolute().parent.resolve(), manifest.root.resolve()
    above = os.path.relpath(root, folder) if root.is_relative_to(folder) else root
    paths = tuple(os.path.normpath(os.path.join(above, path)) for path in manifest.paths)
    # Patients that are not known keep the names that they had, as subsets are drawn by them.
    made = replace(manifest, root=folder, paths=paths)
    write_manifest(made, file)
    return made


def absent(spec: str, manifest: Manifest) -> str | None:
    """Say how many of the images that data lists are not there, the first of them, and what to do; None if all are."""
    missing = missing_images(manifest)
    if not missing:
        return None
    by_name = ": images=FOLDER behind its name finds them elsewhere, or mend the paths" if _is_table(spec) else ""
    by_name = by_name or ": mend its paths, or make it again where the images are"
    return (
        f"{printable(portable_name(spec))}: {len(missing):,} of {len(manifest):,} images are not there, first "
        f"{printable(missing[0])} in {printable(str(manifest.root))}{by_name}"
    )


def _publish(part: Path, target: Path, identity: str) -> None:
    with suppress(OSError):
        target.rmdir()  # only if it is empty; on Windows a rename replaces no folder
    try:
        part.rename(target)
    except OSError:
        # Another process may have made the same data meanwhile.
        if _made_from(target) != identity:
            raise


def _is_specification(spec: str) -> bool:
    return re.match(r"[a-z][a-z0-9]+:", spec) is not None or find(GROUP, spec.partition(":")[0]) is not None


def _is_table(spec: str) -> bool:
    name, mark, _ = spec.partition("?")
    return bool(mark) and is_table(name) and not _has_scheme(name)


def _has_scheme(spec: str) -> bool:
    return _is_specification(spec) and (spec.partition(":")[0] in SCHEMES or _is_adapter(spec.partition(":")[0]))


def _is_adapter(scheme: str) -> bool:
    return scheme in ADAPTERS or (scheme not in SCHEMES and find(GROUP, scheme) is not None)


def _list_images(scheme: str, argument: str, options: Mapping[str, str]) -> Manifest:
    if scheme in ADAPTERS:
        listed = ADAPTERS[scheme](argument, options)
        if not listed.paths:
            raise WsurgeryError(f"{scheme}:{printable(argument)}: its table lists no image that counts")
        return listed
    plug_in = plug_ins(GROUP)[scheme]
    adapter = plug_in.load_function("a function of an argument and keys that returns a Manifest")
    manifest = adapter(argument, options)
    if not isinstance(manifest, Manifest):
        raise WsurgeryError(f"{plug_in} returned a {type(manifest).__name__}: an adapter returns a Manifest")
    if fault := manifest_fault(manifest):
        raise WsurgeryError(f"{plug_in} returned a Manifest that {fault}")
    return replace(manifest, root=Path(manifest.root))


def _parse(spec: str) -> tuple[str, str, dict[str, str]]:
    """The scheme, the argument and the keys of a specification."""
    if not _is_specification(spec):
        raise UsageError(f"{printable(spec)} is not a specification: {EXAMPLE} is one")
    scheme, _, rest = spec.partition(":")
    if scheme not in SCHEMES and not _is_adapter(scheme):
        there = ", ".join({**SCHEMES, **ADAPTERS, **plug_ins(GROUP)})
        raise UsageError(f"there is no scheme {printable(scheme)!r}: there are {there}")
    argument, _, query = rest.partition("?")
    return scheme, argument, _options(spec, query)


def _options(spec: str, query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for pair in query.split("&") if query else ():
        key, equals, value = pair.partition("=")
        if not equals or key in options:
            raise UsageError(f"{printable(spec)}: {printable(pair)!r} should be key=value, each key once")
        options[key] = value if key in LISTS else unquote(value)
    return options


def _identity(scheme: str, source: Source) -> str:
    return json.dumps({"scheme": scheme, **source.settings}, indent=2) + "\n"


def _made_from(folder: Path) -> str | None:
    try:
        return read_regular(folder / "spec.json", 1 << 16).decode().replace("\r\n", "\n")
    except (OSError, WsurgeryError, UnicodeDecodeError):  # not there, or nobody's that was made here
        return None
