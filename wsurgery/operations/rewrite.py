"""Stream a checkpoint through edits: one tensor at a time, all cores, in the memory of a few tensors."""

import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from mmap import mmap
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from wsurgery.checkpoint import Checkpoint, TensorInfo, open_output
from wsurgery.checkpoint.dtypes import numpy_dtype
from wsurgery.checkpoint.header import format_header
from wsurgery.checkpoint.provenance import History
from wsurgery.checkpoint.reader import SMALL
from wsurgery.checkpoint.shards import INDEX, ShardedCheckpoint, format_index, part_of, split_by_size
from wsurgery.checkpoint.writer import AtomicFile, write_all
from wsurgery.errors import WsurgeryError, printable
from wsurgery.operations.random_streams import CHUNK
from wsurgery.progress import Progress

Array = NDArray[Any]
Map = Callable[[Callable[[int], Any], Iterable[int]], Iterable[Any]]  # the built-in `map`, or a thread pool's
Compute = Callable[[Array, Map], Array]

DEFAULT_SHARD_SIZE = 5_000_000_000  # bytes, the Hugging Face hub's
_AHEAD = 8 << 20  # bytes of tensors of one chunk that may be in work at once
_BATCH = 1 << 20  # bytes of small tensors that are one piece of work
_OVERHEAD = 1024  # bytes that a tensor in work takes beside its own


@dataclass(frozen=True)
class Edit:
    """One tensor of the output.

    Attributes:
        tensor: its name, dtype and shape as written.
        source: the checkpoint that its bytes come from.
        origin: the tensor there.
        compute: what is done to it; it gets the tensor in its own dtype and shape, and a `map` over chunks. None copies
            the bytes.
    """

    tensor: TensorInfo
    source: Checkpoint
    origin: TensorInfo
    compute: Compute | None = None


@dataclass(frozen=True)
class Folder:
    """A sharded output.

    Attributes:
        path: the folder, made if it is missing.
        shard_size: bytes at which a shard is full. None keeps the shards of `like`.
        like: the sharded checkpoint whose file names and grouping are kept, by tensor name.
        part: `K/N` writes the K-th of N groups of shards only; the parts together are the whole, byte for byte.
    """

    path: Path
    shard_size: int | None = None
    like: Checkpoint | None = None
    part: str | None = None

    def shards(self, edits: Sequence[Edit]) -> dict[str, list[Edit]]:
        """Say which tensors go in which file."""
        by_name = {edit.tensor.name: edit for edit in edits}
        if isinstance(self.like, ShardedCheckpoint) and self.shard_size is None:
            groups: dict[str, list[Edit]] = {name: [] for name in self.like.shards}
            for edit in edits:
                groups[self.like.shard_of[edit.origin.name]].append(edit)
            return {name: group for name, group in groups.items() if group}
        placed = (edit.tensor.placed(0) for edit in edits)
        split = split_by_size(placed, self.shard_size or DEFAULT_SHARD_SIZE)
        return {name: [by_name[tensor.name] for tensor in group] for name, group in split.items()}


def rewrite(
    edits: Sequence[Edit],
    history: History,
    output: Path | Folder | None,
    *,
    force: bool = False,
    threads: int | None = None,
) -> None:
    """Write the edited tensors, in the order of `edits`, to a file, a folder of shards or (None) standard output.

    Edits that read from one stream must stand in its order. The result does not depend on `threads`. Each file appears
    whole or not at all; the shards of a folder all appear when the last one is written, their index after them, so that
    a folder may be its own input.

    Raises:
        WsurgeryError: an input ends early, or an operation cannot work on a tensor.
        UsageError: the output exists and `force` is off.
    """
    threads = threads or len(os.sched_getaffinity(0))
    if not isinstance(output, Folder):
        with open_output(output, force=force) as stream:
            _write(edits, history, stream, threads)
            _finish(edits)
        return
    shards = output.shards(edits)
    chosen = part_of(list(shards), output.part) if output.part else list(shards)
    output.path.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:  # left in reverse: the index, which makes a checkpoint of the shards, appears last
        # Every part writes the same index.
        index = stack.enter_context(AtomicFile(output.path / INDEX, force=force or output.part is not None))
        streams = {name: stack.enter_context(AtomicFile(output.path / name, force=force)) for name in chosen}
        for name, stream in streams.items():
            _write(shards[name], history, stream, threads)
            os.fsync(stream.fileno())  # so that afterwards all appear within a moment
        infos = {name: [edit.tensor.placed(0) for edit in group] for name, group in shards.items()}
        write_all(index, format_index(infos))
        _finish(edits)


def _finish(edits: Sequence[Edit]) -> None:
    """Require that the streams among the sources end where they should, before the output appears."""
    for source in dict.fromkeys(edit.source for edit in edits):
        source.finish()


def _write(edits: Sequence[Edit], history: History, stream: BinaryIO, threads: int) -> None:
    tensors = [edit.tensor for edit in edits]
    # The digests of inputs are computed while their bytes are copied, where the header can still be written after that.
    late = stat.S_ISREG(os.fstat(stream.fileno()).st_mode) and stream.fileno() != 1
    total = sum(tensor.nbytes for tensor in tensors)
    with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(1) as io, Progress(total, "writing") as progress:
        write_all(stream, format_header(tensors, history.metadata(draft=late)))
        written: Future[None] | None = None
        for edit, data in _results(edits, pool, io):
            if written:
                written.result()
            if data is None:
                edit.source.copy_to(edit.origin, stream)
                written = None
                progress.advance(edit.tensor.nbytes)
            else:
                written = io.submit(write_all, stream, data)
                progress.advance(len(data))
                del data  # so that its memory is free as soon as it is written
        if written:
            written.result()
        if late:
            stream.seek(0)
            write_all(stream, format_header(tensors, history.metadata()))


def _results(
    edits: Sequence[Edit], pool: ThreadPoolExecutor, io: ThreadPoolExecutor
) -> Iterator[tuple[Edit, bytes | memoryview | None]]:
    """Yield edits with their new bytes, or with None where the bytes are to be copied; many small ones with the last of them.

    Tensors of one chunk are computed several at a time, and small ones in batches; large ones one after another in chunks.
    While a large one is in work, the one thread of `io` writes the result before it and then reads the next, so that three
    tensors are in memory.
    """
    pending = _Pending(pool)
    ahead: Future[Array] | None = None
    for i, edit in enumerate(edits):
        if max(edit.origin.nbytes, edit.tensor.nbytes) <= SMALL:
            pending.add(edit, edit.source.read(edit.origin))
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
        self._work: deque[tuple[Edit, int, Future[bytes | memoryview]]] = deque()
        self._bytes = 0  # in work
        self._batch: list[tuple[Edit, bytearray | mmap]] = []
        self._batch_bytes = 0

    def add(self, edit: Edit, data: bytearray | mmap) -> None:
        """Take in a small tensor, whose bytes were read; what is to be copied, too."""
        self._batch.append((edit, data))
        self._batch_bytes += edit.tensor.nbytes + _OVERHEAD
        if self._batch_bytes > _BATCH:
            self._submit_batch()

    def submit(self, edit: Edit, size: int, work: Callable[[], bytes | memoryview]) -> None:
        """Have the result of an edit, or of several of which it is the last, computed: `size` bytes."""
        self._submit_batch()
        self._work.append((edit, size, self._pool.submit(work)))
        self._bytes += size

    def _submit_batch(self) -> None:
        if batch := self._batch:
            size, self._batch, self._batch_bytes = self._batch_bytes, [], 0
            self.submit(batch[-1][0], size, partial(_compute_batch, batch))

    def finished(self, allowed: int) -> Iterator[tuple[Edit, bytes | memoryview]]:
        """Yield results until no more than `allowed` bytes are in work."""
        if not allowed:
            self._submit_batch()
        while self._work and self._bytes > allowed:
            edit, size, future = self._work.popleft()
            self._bytes -= size
            yield edit, future.result()


def _read(edit: Edit) -> Array:
    return _as_array(edit, edit.source.read(edit.origin))


def _as_array(edit: Edit, data: bytearray | mmap) -> Array:
    try:
        return np.frombuffer(data, numpy_dtype(edit.origin.dtype)).reshape(edit.origin.shape)
    except TypeError as error:  # sub-byte elements
        raise WsurgeryError(
            f"{printable(edit.origin.name)}: {error}: leave it out with --except, or drop it first"
        ) from None


def _compute_batch(batch: Sequence[tuple[Edit, bytearray | mmap]]) -> bytes:
    return b"".join(
        data if edit.compute is None else _compute(edit, _as_array(edit, data), map) for edit, data in batch
    )


def _compute(edit: Edit, array: Array, run: Map) -> memoryview:
    assert edit.compute is not None
    try:
        result = np.asarray(edit.compute(array, run), order="C")
    except WsurgeryError as error:
        raise type(error)(f"{printable(edit.tensor.name)} {error}") from None
    if result.shape != edit.tensor.shape or result.dtype != numpy_dtype(edit.tensor.dtype):
        raise RuntimeError(
            f"{edit.tensor.name}: the operation gave {result.dtype} {result.shape}, promised {edit.tensor}"
        )
    return result.reshape(-1).view(np.uint8).data
