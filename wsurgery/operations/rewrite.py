"""Stream a checkpoint through edits: one tensor at a time, all cores, in the memory of a few tensors."""

import os
import re
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from wsurgery.checkpoint import Checkpoint, open_output
from wsurgery.checkpoint.dtypes import numpy_dtype
from wsurgery.checkpoint.header import format_header
from wsurgery.checkpoint.provenance import History
from wsurgery.checkpoint.shards import INDEX, ShardedCheckpoint, format_index, part_of, split_by_size
from wsurgery.checkpoint.writer import AtomicFile, write_all
from wsurgery.cores import cores
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.operations.arrays import Array, Map
from wsurgery.operations.planning import Planned, computed
from wsurgery.operations.random_streams import CHUNK
from wsurgery.operations.tensor_edit import TensorEdit
from wsurgery.progress import Progress

DEFAULT_SHARD_SIZE = 5_000_000_000  # bytes, the Hugging Face hub's
_AHEAD = 8 << 20  # bytes of small tensors that may be in work at once


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

    def shards(self, edits: Sequence[TensorEdit]) -> dict[str, list[TensorEdit]]:
        """Say which tensors go in which file."""
        by_name = {edit.tensor.name: edit for edit in edits}
        if isinstance(self.like, ShardedCheckpoint) and self.shard_size is None:
            groups: dict[str, list[TensorEdit]] = {name: [] for name in self.like.shards}
            for edit in edits:
                groups[self.like.shard_of[edit.origin.name]].append(edit)
            return {name: group for name, group in groups.items() if group}
        placed = (edit.tensor.placed(0) for edit in edits)
        split = split_by_size(placed, self.shard_size or DEFAULT_SHARD_SIZE)
        return {name: [by_name[tensor.name] for tensor in group] for name, group in split.items()}


def destination(
    output: str | None, shard_size: int | str | None, part: str | None, *, like: Checkpoint | None
) -> Path | Folder | None:
    """Say what is written: a file, a folder of shards (a name that ends in `/`, or a folder that exists), or (None) a stream.

    Args:
        output: its name.
        shard_size: of a folder; a number of bytes, or as `5GB`.
        part: of a folder, `K/N`.
        like: what flows through, whose shards are kept.

    Raises:
        UsageError: `shard_size` or `part` of what is no folder, or a size that is none.
    """
    if output is not None and (output.endswith(("/", os.sep)) or Path(output).is_dir()):
        return Folder(Path(output), None if shard_size is None else _bytes(str(shard_size)), like, part)
    if shard_size or part:
        raise UsageError("--shard-size and --part need a folder: -o DIR/")
    return None if output is None else Path(output)


def _bytes(size: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKMGT]?)B?", size)
    amount = int(float(match[1]) * 1000 ** " kMGT".index(match[2].replace("K", "k") or " ")) if match else 0
    if amount < 1:
        raise UsageError(f"--shard-size {size}: write it as 5GB, 500MB or a number of bytes")
    return amount


def rewrite(
    planned: Planned,
    output: Path | Folder | None,
    *,
    force: bool = False,
    threads: int | None = None,
) -> None:
    """Write what edits make, in its order, to a file, a folder of shards or (None) standard output.

    Tensors that come from one stream must stand in its order. The result does not depend on `threads`. Each file appears
    whole or not at all; the shards of a folder all appear when the last one is written, their index after them, so that
    a folder may be its own input.

    Raises:
        WsurgeryError: an input ends early, or an operation cannot work on a tensor.
        UsageError: the output exists and `force` is off.
    """
    threads = threads or cores()
    if not isinstance(output, Folder):
        with open_output(output, force=force) as stream:
            _write(planned.edits, planned.history, stream, threads)
            planned.finish()  # before the output appears
        return
    shards = output.shards(planned.edits)
    chosen = part_of(list(shards), output.part) if output.part else list(shards)
    output.path.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:  # left in reverse: the index, which makes a checkpoint of the shards, appears last
        # Every part writes the same index.
        index = stack.enter_context(AtomicFile(output.path / INDEX, force=force or output.part is not None))
        streams = {name: stack.enter_context(AtomicFile(output.path / name, force=force)) for name in chosen}
        for name, stream in streams.items():
            _write(shards[name], planned.history, stream, threads)
            os.fsync(stream.fileno())  # so that afterwards all appear within a moment
        infos = {name: [edit.tensor.placed(0) for edit in group] for name, group in shards.items()}
        write_all(index, format_index(infos))
        planned.finish()


def _write(edits: Sequence[TensorEdit], history: History, stream: BinaryIO, threads: int) -> None:
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
            else:
                written = io.submit(write_all, stream, data)
                del data  # so that its memory is free as soon as it is written
            progress.advance(edit.tensor.nbytes)
        if written:
            written.result()
        if late:
            stream.seek(0)
            write_all(stream, format_header(tensors, history.metadata()))


def arrays(planned: Planned, threads: int | None = None) -> Iterator[tuple[str, Array]]:
    """Yield the name and the array of each tensor that edits make, in its order; a few are in memory.

    Raises:
        WsurgeryError: an input ends early, or an operation cannot work on a tensor.
    """
    with ThreadPoolExecutor(threads or cores()) as pool, ThreadPoolExecutor(1) as io:
        for edit, data in _results(planned.edits, pool, io):
            content = edit.source.read(edit.origin) if data is None else data
            yield edit.tensor.name, np.frombuffer(content, numpy_dtype(edit.tensor.dtype)).reshape(edit.tensor.shape)
    planned.finish()


def _results(
    edits: Sequence[TensorEdit], pool: ThreadPoolExecutor, io: ThreadPoolExecutor
) -> Iterator[tuple[TensorEdit, memoryview | None]]:
    """Yield each edit with its new bytes, or with None where the bytes are to be copied.

    Small tensors are computed several at a time, large ones one after another in chunks. While a large one is in work, the
    one thread of `io` writes the result before it and then reads the next, so that three tensors are in memory.
    """
    pending: deque[tuple[TensorEdit, Future[memoryview]]] = deque()
    ahead: Future[Array] | None = None
    for edit, following in zip(edits, [*edits[1:], None], strict=True):
        if edit.compute is None:
            yield from _drain(pending, 0)
            yield edit, None
            continue
        array = ahead.result() if ahead else _read(edit)
        ahead = None
        if array.size > CHUNK:
            yield from _drain(pending, 0)
            if following and following.compute:
                ahead = io.submit(_read, following)
            yield edit, _compute(edit, array, pool.map)
        else:
            pending.append((edit, pool.submit(_compute, edit, array, map)))
            yield from _drain(pending, _AHEAD)
        del array
    yield from _drain(pending, 0)


def _read(edit: TensorEdit) -> Array:
    try:
        return edit.source.read_array(edit.origin.name)
    except TypeError as error:  # sub-byte elements
        raise WsurgeryError(
            f"{printable(edit.origin.name)}: {error}: leave it out with --except, or drop it first"
        ) from None


def _drain(
    pending: deque[tuple[TensorEdit, Future[memoryview]]], allowed: int
) -> Iterator[tuple[TensorEdit, memoryview]]:
    while pending and sum(edit.tensor.nbytes for edit, _ in pending) + len(pending) * 1024 > allowed:
        edit, future = pending.popleft()
        yield edit, future.result()


def _compute(edit: TensorEdit, array: Array, run: Map) -> memoryview:
    return computed(edit, array, run).reshape(-1).view(np.uint8).data
