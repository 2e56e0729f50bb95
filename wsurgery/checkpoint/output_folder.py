"""A folder of shards that is written, on a disk or in a store: shards, settings and licence, and the index last."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from wsurgery.checkpoint.hub_api import split_url
from wsurgery.checkpoint.shards import INDEX, MAX_INDEX, SHARD, WHOLE, names_in
from wsurgery.checkpoint.sink import AppearedError, Sink, write_all
from wsurgery.checkpoint.writer import is_there, open_output
from wsurgery.errors import UsageError, printable
from wsurgery.untrusted import read_regular

if TYPE_CHECKING:
    from wsurgery.checkpoint.hub_upload import Commit

_OWN = 64  # files that a process has open beside its shards: inputs, libraries, the companions


def other_weights(folder: Path, shards: Iterable[str], *, force: bool, part: bool = False) -> list[Path]:
    """Return the weights in a folder that new shards do not replace, and that must go when these are there.

    A reader that looks for `model.safetensors` first would take it for the new ones, and one without an index cannot tell
    shards of two counts apart. Weights under a name of their own (`model.fp16.safetensors`) are none of them.

    Args:
        folder: where the shards will be.
        shards: the names of all, of other parts too.
        force: whether others may go.
        part: whether others write the other shards: then nothing goes, which they may not have read yet.

    Raises:
        UsageError: there are some, and they may not go.
    """
    new = set(shards)
    stems = {"model"} | {match[1] for name in new if (match := SHARD.fullmatch(name))}
    there = names_in(folder, (".safetensors",)) if folder.is_dir() else []
    old = [name for name in there if name == WHOLE or ((match := SHARD.fullmatch(name)) and match[1] in stems)]
    others = [folder / name for name in old if name not in new]
    if others:
        _require_may_go(others[0], force=force, part=part)
    return others


def _require_may_go(other: Path | str, *, force: bool, part: bool) -> None:
    if part or not force:
        remedy = "remove it first" if part else "add --force to remove it"
        raise UsageError(
            f"{printable(str(other))} is there, and would stay beside the new weights: name another folder, or {remedy}"
        )


def require_elsewhere(folder: Path | str, read: Iterable[Path | str]) -> None:
    """Require that a part of the shards goes to another folder than what is read lies in: other parts read it, too.

    Args:
        folder: where to, or its URL.
        read: files and folders, or their URLs.

    Raises:
        UsageError: it is one of theirs.
    """
    for each in read:
        if isinstance(folder, str):
            same = isinstance(each, str) and _place(each) == _place(folder)
        else:
            own = None if isinstance(each, str) else each if each.is_dir() else each.parent
            same = own is not None and folder.is_dir() and os.path.samefile(own, folder)
        if same:
            raise UsageError(
                f"{printable(str(each))} is read by all parts, and --part would write beside it, or over it: name another folder"
            )


def _place(address: str) -> tuple[str, ...]:
    """Return a folder in a store, or that of a file, in one way of writing it."""
    if address.startswith("hf://"):
        repo, branch, path = split_url(address)
        name = path.rpartition("/")[2]
        folder = path.removesuffix(name) if name.endswith((".safetensors", ".json")) else path
        return repo, branch or "main", folder.rstrip("/")
    return (address.rpartition("/")[0],)


@contextmanager
def folder_made(path: Path, *, keep: bool) -> Iterator[None]:
    """Make a folder, and remove it again after an error if it is empty; not if others may be about to write in it (`keep`)."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # something is in it
            for folder in () if keep else made:
                folder.rmdir()
        raise


@contextmanager
def open_folder_output(
    place: Callable[[str], Path | str],
    sizes: Mapping[str, int],
    *,
    index: bytes | None,
    beside: Mapping[str, bytes],
    force: bool,
    part: bool = False,
) -> Iterator[dict[str, Sink]]:
    """Open a folder's shards, by name. All files appear when it is left without an error, the index last.

    In a store a whole model and an index do not stay beside each other, or some read one and some the other.

    Args:
        place: where a file of the folder is, by its name.
        sizes: of each shard, in bytes, as `open_output` takes it.
        index: what stands in the index, if there is one.
        beside: the settings and the licence. What another writer puts there meanwhile is left alone.
        force: whether what is there is replaced.
        part: whether others write the other shards, and the same index.

    Raises:
        UsageError: a shard or an index is there, and `force` is off, or in a store other weights; of a part, an index that is
            not the same; or they are more files than a process may hold open.
        OSError: a store cannot be reached.
    """

    def same_index() -> bool:
        if part and _content(place(INDEX)) != index:
            label = printable(str(place(INDEX)))
            raise UsageError(f"{label} is of other shards: name another folder, or add --force to overwrite it")
        return part

    where = place(INDEX)
    if isinstance(where, Path) or where.startswith("hf://"):  # where shards wait in files
        _let_open(len(sizes))
    commit = _commit(where)
    if commit is not None:
        commit.optional = {split_url(str(place(name)))[2] for name in beside}
    name = INDEX if index is None else WHOLE
    other = place(name)
    goes = isinstance(other, str) and name not in sizes and is_there(other)
    if goes:
        _require_may_go(other, force=force, part=part)
        if commit is not None:
            commit.removed.append(split_url(str(other))[2])
    with ExitStack() as stack:  # left in reverse: the index, which makes a checkpoint of the shards, appears last
        if index is not None:
            stack.enter_context(_small(place(INDEX), index, force=force, commit=commit, stays=same_index))
        for name, content in beside.items():
            stack.enter_context(_small(place(name), content, force=force, commit=commit, stays=lambda: True))
        yield {
            name: stack.enter_context(open_output(place(name), force=force, size=size, commit=commit))
            for name, size in sizes.items()
        }
    if goes and commit is None:
        from wsurgery.checkpoint.upload import delete

        delete(str(other))


def _commit(place: Path | str) -> "Commit | None":
    """Begin what appears together where a file's place is on the hub."""
    if isinstance(place, Path) or not place.startswith("hf://"):
        return None
    from wsurgery.checkpoint.hub_upload import Commit, place_of

    return Commit(*place_of(place)[:2])


def _let_open(count: int) -> None:
    """Let this process hold so many files open beside its own: shards have no name before all are written."""
    if sys.platform != "win32":
        import resource

        soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = count + _OWN
        if soft == resource.RLIM_INFINITY or wanted <= soft:
            return
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
        except (ValueError, OSError):
            raise UsageError(
                f"{count} shards are open until the last one is written, and a process may have {most} files: give a "
                "larger --shard-size, write --part K/N of them at a time, or raise ulimit -n"
            ) from None


@contextmanager
def _small(
    path: Path | str, content: bytes, *, force: bool, commit: "Commit | None", stays: Callable[[], bool]
) -> Iterator[None]:
    """Write a file that is in memory, unless one is there that stays."""
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(open_output(path, force=force, commit=commit))
        except UsageError:
            if not stays():
                raise
        else:
            write_all(stream, content)
        yield
        try:
            stack.close()
        except AppearedError:
            if not stays():
                raise


def _content(path: Path | str) -> bytes:
    if isinstance(path, Path):
        return read_regular(path, MAX_INDEX)
    from wsurgery.checkpoint.remote import S3, Hub

    remote = S3(path) if path.startswith("s3://") else Hub(*split_url(path))
    return b"".join(remote.chunks(0, MAX_INDEX + 1))
