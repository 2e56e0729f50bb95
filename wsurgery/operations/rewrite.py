"""Stream a checkpoint through edits: one tensor at a time, all cores, in the memory of a few tensors."""

import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np

from wsurgery.checkpoint import Checkpoint, open_output
from wsurgery.checkpoint.companions import Companions, companions, left_behind
from wsurgery.checkpoint.dtypes import numpy_dtype
from wsurgery.checkpoint.header import format_header
from wsurgery.checkpoint.hub_api import is_repo, split_url
from wsurgery.checkpoint.output_folder import folder_made, open_folder_output, other_weights, require_elsewhere
from wsurgery.checkpoint.provenance import History
from wsurgery.checkpoint.reader import SMALL
from wsurgery.checkpoint.shards import INDEX, ShardedCheckpoint, format_index, part_of, split_by_size
from wsurgery.checkpoint.sink import HeldBack, Sink, goes_back, settle, write_again, write_all
from wsurgery.checkpoint.writer import is_there
from wsurgery.cores import workers
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.operations.arrays import Array, Map
from wsurgery.operations.planning import Planned, computed
from wsurgery.operations.random_streams import CHUNK
from wsurgery.operations.tensor_edit import Separable, TensorEdit, computed_together
from wsurgery.progress import Progress
from wsurgery.untrusted import refuse_link

DEFAULT_SHARD_SIZE = 5_000_000_000  # bytes, the Hugging Face hub's
_AHEAD = 8 << 20  # bytes of tensors of one chunk that may be in work at once
_BATCH = 1 << 20  # bytes of small tensors that are one piece of work
_OVERHEAD = 1024  # bytes that a tensor in work takes beside its own
_OTHERS = (  # endings of formats that are not written here
    ".pth", ".pt", ".bin", ".npz", ".npy", ".ckpt", ".pkl", ".pickle", ".th", ".tar", ".onnx", ".h5", ".hdf5", ".keras", ".gguf",
)  # fmt: skip


@dataclass(frozen=True)
class Folder:
    """A sharded output.

    Attributes:
        path: the folder, made if it is missing; or its URL, which ends in `/`.
        shard_size: bytes at which a shard is full. None keeps the shards of `like`.
        like: the sharded checkpoint whose file names and grouping are kept, by tensor name.
        part: `K/N` writes the K-th of N groups of shards only; the parts together are the whole, byte for byte.
    """

    path: Path | str
    shard_size: int | None = None
    like: Checkpoint | None = None
    part: str | None = None

    def file(self, name: str) -> Path | str:
        """Return where a file in it is."""
        return self.path + name if isinstance(self.path, str) else self.path / name

    def shards(self, edits: Sequence[TensorEdit]) -> dict[str, list[TensorEdit]]:
        """Say which tensors go in which file."""
        by_name = {edit.tensor.name: edit for edit in edits}
        known = self.like.shard_of if isinstance(self.like, ShardedCheckpoint) else {}
        if (
            isinstance(self.like, ShardedCheckpoint)
            and self.shard_size is None
            and all(edit.origin.name in known or edit.tensor.name in known for edit in edits)
        ):
            groups: dict[str, list[TensorEdit]] = {name: [] for name in self.like.shards}
            for edit in edits:
                groups[known.get(edit.origin.name) or known[edit.tensor.name]].append(edit)
            return {name: group for name, group in groups.items() if group}
        placed = (edit.tensor.placed(0) for edit in edits)
        split = split_by_size(placed, self.shard_size or DEFAULT_SHARD_SIZE)
        return {name: [by_name[tensor.name] for tensor in group] for name, group in split.items()}


def destination(
    output: str | None,
    shard_size: int | str | None,
    part: str | None,
    *,
    like: Checkpoint | None,
    exports: Sequence[str] = (),
) -> Path | str | Folder | None:
    """Say what is written: a file, an object at a URL, a folder of shards (a name that ends in `/`, or a folder that exists),
    or (None) a stream.

    Args:
        output: its name.
        shard_size: of a folder; a number of bytes, or as `5GB`.
        part: of a folder, `K/N`.
        like: what flows through, whose shards are kept.
        exports: endings of other formats that the caller writes.

    Raises:
        UsageError: `shard_size` or `part` of what is no folder, a size that is none, or a name that is empty or ends as
            another format's does.
    """
    if output == "":
        raise UsageError("the name of the output is empty: name a file, or a folder as DIR/")
    if output is not None and is_repo(output):
        output += "/"
    if output is not None and (output.endswith(("/", os.sep)) or Path(output).is_dir()):
        path = output if "://" in output else Path(output)
        return Folder(path, None if shard_size is None else parse_size(str(shard_size), "--shard-size"), like, part)
    if shard_size or part:
        raise UsageError("--shard-size and --part need a folder: -o DIR/")
    if output is None:
        return None
    if "://" in output:  # where nobody exports to
        require_own_format(output)
        return output
    if Path(output).suffix not in exports:
        require_own_format(output)
    return Path(output)


def require_own_format(output: str) -> None:
    """Refuse the name of another format for what is written as safetensors, and on the hub that of a folder.

    Raises:
        UsageError: it ends so.
    """
    if output.startswith("hf://") and split_url(output)[2] and not output.endswith(".safetensors"):
        raise UsageError(
            f"{printable(output)} is read as a folder's: end its name in .safetensors, or in / for a folder"
        )
    if Path(output).suffix.lower() in _OTHERS:
        raise UsageError(
            f"{printable(output)}: what is written is safetensors: end its name in .safetensors; wsurgery convert writes "
            ".pth, .pt, .bin and .npz, too, as files here"
        )


def parse_size(size: str, option: str) -> int:
    """Read a number of bytes: `5GB`, `500MB`.

    Raises:
        UsageError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKMGT]?)B?", size)
    amount = float(match[1]) * 1000 ** " kMGT".index(match[2].replace("K", "k") or " ") if match else 0.0
    if not 1 <= amount < math.inf:
        raise UsageError(f"{option} {printable(size, 40)}: write it as 5GB, 500MB or a number of bytes")
    return int(amount)


def rewrite(
    planned: Planned,
    output: Path | str | Folder | None,
    *,
    force: bool = False,
    threads: int | None = None,
) -> list[str]:
    """Write what edits make, in its order, to a file, an object, a folder of shards or (None) standard output.

    Tensors that come from one stream must stand in its order. The result does not depend on `threads`. Each file appears
    whole or not at all; the shards of a folder all appear when the last one is written, their index after them, so that
    a folder may be its own input.

    Returns:
        What is to be said of it, for people.

    Raises:
        WsurgeryError: an input ends early, or an operation cannot work on a tensor.
        UsageError: the output exists and `force` is off, its folder holds other weights (see `other_weights`), or of a part it
            is an input's.
        OSError: a store cannot be reached.
    """
    threads = workers(threads)
    if not isinstance(output, Folder):
        with open_output(output, force=force, size=_size(planned.edits)) as stream:
            _write(planned.edits, planned.history, stream, threads, planned.finish)
        return []
    shards = output.shards(planned.edits)
    chosen = part_of(list(shards), output.part) if output.part else list(shards)
    infos = {name: [edit.tensor.placed(0) for edit in group] for name, group in shards.items()}
    with ExitStack() as stack:
        others: list[Path] = []
        part = output.part is not None
        if part:
            require_elsewhere(output.path, planned.places())
        if isinstance(output.path, Path):
            others = other_weights(output.path, shards, force=force, part=part)
            stack.enter_context(folder_made(output.path, keep=part))
        beside, said = _beside(planned, output, force=force)
        if isinstance(output.path, Path):
            for name in (INDEX, *chosen, *beside):
                refuse_link(output.path / name)
        with open_folder_output(
            output.file,
            {name: _size(shards[name]) for name in chosen},
            index=format_index(infos),
            beside=beside,
            force=force,
            part=part,
        ) as streams:
            for name, stream in streams.items():
                _write(shards[name], planned.history, stream, threads, lambda: None)
                settle(stream)  # so that afterwards all appear within a moment
            planned.finish()
        for path in others:
            path.unlink(missing_ok=True)
    return said


def _size(edits: Sequence[TensorEdit]) -> int:
    return sum(edit.tensor.nbytes for edit in edits)


def _beside(planned: Planned, output: Folder, *, force: bool) -> Companions:
    """Return what goes along into an output folder, and what is to be said of what does not."""
    model = planned.beside
    if model is None:
        source = planned.flows
        while isinstance(source, Planned):
            source = source.flows
        return Companions({}, left_behind(source))
    if isinstance(output.path, Path) and os.path.samefile(model.path, output.path):
        return Companions({}, [])
    renamed = any(edit.tensor.name != edit.origin.name for edit in planned.edits)

    def there(name: str) -> bool:
        return not force and is_there(output.file(name))

    return companions(model._replace(renamed=model.renamed or renamed), there)


def _write(
    edits: Sequence[TensorEdit], history: History, stream: Sink, threads: int, finish: Callable[[], None]
) -> None:
    """Write one file; `finish` is called before the output appears, or a pipe gets its last byte."""
    tensors = [edit.tensor for edit in edits]
    # The digests of inputs are computed while their bytes are copied, where the header can still be written after that.
    late = goes_back(stream)
    left = sum(tensor.nbytes for tensor in tensors)
    held = HeldBack(stream)
    write = partial(write_all, stream) if late else held.write
    with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(1) as io, Progress(left, "writing") as progress:
        write(format_header(tensors, history.metadata(draft=late)))
        written: Future[None] | None = None
        for edit, data in _results(edits, pool, io):
            if written:
                written.result()
            size = edit.tensor.nbytes if data is None else len(data)
            left -= size
            if data is not None:
                written = io.submit(write, data)
                del data  # so that its memory is free as soon as it is written
            else:
                written = None
                if left or late:
                    held.release()
                    edit.source.copy_to(edit.origin, stream)
                else:
                    for piece in edit.source.pieces(edit.origin):
                        held.write(piece)
            progress.advance(size)
        if written:
            written.result()
        if late:
            write_again(stream, format_header(tensors, history.metadata()))
        finish()
        held.release()


def arrays(planned: Planned, threads: int | None = None) -> Iterator[tuple[str, Array]]:
    """Yield the name and the array of each tensor that edits make, in its order; a few are in memory.

    Raises:
        WsurgeryError: an input ends early, or an operation cannot work on a tensor.
    """
    with ThreadPoolExecutor(workers(threads)) as pool, ThreadPoolExecutor(1) as io:
        edits = iter(planned.edits)
        for last, data in _results(planned.edits, pool, io):
            content = memoryview(last.source.read(last.origin) if data is None else data)
            for edit in edits:
                own, content = content[: edit.tensor.nbytes], content[edit.tensor.nbytes :]
                x = np.frombuffer(own, numpy_dtype(edit.tensor.dtype)).reshape(edit.tensor.shape)
                yield edit.tensor.name, x if x.flags.writeable else x.copy()  # one of many small ones, which are bytes
                if edit is last:
                    break
    planned.finish()


def _results(
    edits: Sequence[TensorEdit], pool: ThreadPoolExecutor, io: ThreadPoolExecutor
) -> Iterator[tuple[TensorEdit, bytes | memoryview | None]]:
    """Yield edits with their new bytes, or with None where the bytes are to be copied; many small ones with the last of them.

    Tensors of one chunk are computed several at a time, and small ones in batches; large ones one after another in chunks.
    While a large one is in work, the one thread of `io` writes the result before it and then reads the next, so that three
    tensors are in memory.
    """
    pending = _Pending(pool)
    ahead: Future[Array] | None = None
    for i, edit in enumerate(edits):
        if max(edit.origin.nbytes, edit.tensor.nbytes) <= SMALL:
            if pending.add(edit, edit.source.read(edit.origin)):
                yield from pending.finished(_AHEAD)
            continue
        if edit.compute is None:
            yield from pending.finished(0)
            yield edit, None
            continue
        array = ahead.result() if ahead else _read(edit)
        ahead = None
        if array.size > CHUNK:
            yield from pending.finished(0)
            following = edits[i + 1] if i + 1 < len(edits) else None
            if following and following.compute and following.origin.nbytes > SMALL:
                ahead = io.submit(_read, following)
            yield edit, _compute(edit, array, pool.map)
        else:
            pending.submit(edit, edit.tensor.nbytes, partial(_compute, edit, array, map))
            yield from pending.finished(_AHEAD)
        del array
    yield from pending.finished(0)


class _Pending:
    """Tensors in work, in order."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._work: deque[tuple[TensorEdit, int, Future[bytes | memoryview]]] = deque()
        self._bytes = 0  # in work
        self._batch: list[tuple[TensorEdit, bytearray | mmap]] = []
        self._batch_bytes = 0

    def add(self, edit: TensorEdit, data: bytearray | mmap) -> bool:
        """Take in a small tensor, whose bytes were read; what is to be copied, too. Say whether a batch was full."""
        self._batch.append((edit, data))
        self._batch_bytes += edit.tensor.nbytes + _OVERHEAD
        full = self._batch_bytes > _BATCH
        if full:
            self._submit_batch()
        return full

    def submit(self, edit: TensorEdit, size: int, work: Callable[[], bytes | memoryview]) -> None:
        """Have the result of an edit, or of several of which it is the last, computed: `size` bytes."""
        self._submit_batch()
        self._work.append((edit, size, self._pool.submit(work)))
        self._bytes += size

    def _submit_batch(self) -> None:
        if batch := self._batch:
            size, self._batch, self._batch_bytes = self._batch_bytes, [], 0
            self.submit(batch[-1][0], size, partial(_compute_batch, batch))

    def finished(self, allowed: int) -> Iterator[tuple[TensorEdit, bytes | memoryview]]:
        """Yield results until no more than `allowed` bytes are in work."""
        if not allowed:
            self._submit_batch()
        while self._work and self._bytes > allowed:
            edit, size, future = self._work.popleft()
            self._bytes -= size
            yield edit, future.result()


def _read(edit: TensorEdit) -> Array:
    return _as_array(edit, edit.source.read(edit.origin))


def _as_array(edit: TensorEdit, data: bytearray | mmap) -> Array:
    return _elements(edit, data).reshape(edit.origin.shape)


def _elements(edit: TensorEdit, data: bytes | bytearray | mmap) -> Array:
    try:
        return np.frombuffer(data, numpy_dtype(edit.origin.dtype))
    except TypeError as error:  # sub-byte elements
        raise WsurgeryError(
            f"{printable(edit.origin.name)}: {error}: leave it out with --except, or drop it first"
        ) from None


def _compute_batch(batch: Sequence[tuple[TensorEdit, bytearray | mmap]]) -> bytes:
    return b"".join(
        data for _, group in groupby(batch, lambda item: _kind(item[0])) for data in _compute_alike(list(group))
    )


def _kind(edit: TensorEdit) -> Any:
    """What is equal for edits that may be computed at once; of the others, the edit."""
    if isinstance(edit.compute, Separable):
        return edit.origin.dtype, edit.tensor.dtype, edit.compute.steps
    return None if edit.compute is None else edit


def _compute_alike(
    batch: Sequence[tuple[TensorEdit, bytearray | mmap]],
) -> Iterator[bytes | bytearray | mmap | memoryview]:
    edit = batch[0][0]
    if edit.compute is None:
        yield from (data for _, data in batch)
        return
    computes = [each.compute for each, _ in batch if isinstance(each.compute, Separable)]
    if len(computes) > 1:
        whole = _elements(edit, b"".join(data for _, data in batch))
        result = computed_together(computes, [each.origin.elements for each, _ in batch], whole)
        if result is not None:
            yield result.view(np.uint8).data
            return
    yield from (_compute(each, _as_array(each, data), map) for each, data in batch)


def _compute(edit: TensorEdit, array: Array, run: Map) -> memoryview:
    return computed(edit, array, run).reshape(-1).view(np.uint8).data
