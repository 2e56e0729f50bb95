"""A folder of shards that is written, on a disk or in a store: shards, settings and licence, and the index last."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from wsurgery.checkpoint.hub_api import split_url
from wsurgery.checkpoint.shards import INDEX, MAX_INDEX
from wsurgery.checkpoint.sink import AppearedError, Sink, write_all
from wsurgery.checkpoint.writer import open_output
from wsurgery.errors import UsageError, printable
from wsurgery.untrusted import read_regular


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

    Args:
        place: where a file of the folder is, by its name.
        sizes: of each shard, in bytes, as `open_output` takes it.
        index: what stands in the index, if there is one.
        beside: the settings and the licence. What another writer puts there meanwhile is left alone.
        force: whether what is there is replaced.
        part: whether others write the other shards, and the same index.

    Raises:
        UsageError: a shard or an index is there, and `force` is off; of a part, an index that is not the same.
        OSError: a store cannot be reached.
    """

    def same_index() -> bool:
        if part and _content(place(INDEX)) != index:
            label = printable(str(place(INDEX)))
            raise UsageError(f"{label} is of other shards: name another folder, or add --force to overwrite it")
        return part

    with ExitStack() as stack:  # left in reverse: the index, which makes a checkpoint of the shards, appears last
        if index is not None:
            stack.enter_context(_small(place(INDEX), index, force=force, stays=same_index))
        for name, content in beside.items():
            stack.enter_context(_small(place(name), content, force=force, stays=lambda: True))
        yield {
            name: stack.enter_context(open_output(place(name), force=force, size=size)) for name, size in sizes.items()
        }


@contextmanager
def _small(path: Path | str, content: bytes, *, force: bool, stays: Callable[[], bool]) -> Iterator[None]:
    """Write a file that is in memory, unless one is there that stays."""
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(open_output(path, force=force))
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
