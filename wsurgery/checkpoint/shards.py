"""A checkpoint in several files: a folder with a `model.safetensors.index.json`, as the Hugging Face hub stores it."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from mmap import mmap
from pathlib import Path
from threading import Lock
from typing import Any

from wsurgery.checkpoint.header import Header, TensorInfo, format_header
from wsurgery.checkpoint.reader import Checkpoint
from wsurgery.checkpoint.sink import Sink
from wsurgery.checkpoint.unchanged import FileState
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.untrusted import open_regular, read_regular

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
MAX_INDEX = 200_000_000  # bytes: twice the largest header
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_NO_INDEX = "{} is not an index: it has no weight_map"


class ShardedCheckpoint(Checkpoint):
    """The shards of a folder as one checkpoint, read at any place. Tensors come shard by shard, in file order.

    Attributes:
        shard_of: tensor name → file name of its shard.
    """

    def __init__(self, label: str, shard_of: dict[str, str], folder: Path | None = None) -> None:
        self.path, self.label, self.seekable = folder, label, True
        self.name = (folder.name or folder.resolve().name or "/") if folder else None  # of "." the folder's own
        self._reading = Lock()  # one shard is open
        self.shard_of = shard_of
        self.shards: dict[str, Checkpoint] = {}
        tensors: dict[str, TensorInfo] = {}
        names = sorted(set(shard_of.values()))
        try:
            for name, shard in zip(names, self._open_shards(names), strict=True):
                self.shards[name] = shard
                shard.rest()  # a terabyte has more shards than a process may hold open
                _require_indexed(shard, name, self.shard_of)
                tensors |= shard.tensors
            lost = self.shard_of.keys() - tensors.keys()
            if lost:
                name = min(lost)
                raise WsurgeryError(
                    f"{self.label}: {printable(name)} is not in {self.shard_of[name]}, where its index says"
                )
        except BaseException:
            self.close()
            raise
        self.header_bytes = b"".join(shard.header_bytes for shard in self.shards.values())
        metadata = next(iter(self.shards.values())).header.metadata if self.shards else {}
        self.header = Header(tensors, metadata)

    def _open_shards(self, names: list[str]) -> Iterator[Checkpoint]:
        assert self.path is not None
        for name in names:
            file = self.path / name
            try:
                stream = open_regular(file)
            except FileNotFoundError:
                raise WsurgeryError(f"{self.label} lacks {printable(name)}, which its index names") from None
            yield Checkpoint(stream, file)

    @property
    def files(self) -> dict[Path, FileState | None]:
        """The shards, in the order of their names, and their states when they were opened; none for a URL."""
        return {file: state for shard in self.shards.values() for file, state in shard.files.items()}

    def read(self, tensor: TensorInfo) -> bytearray | mmap:
        """Read one tensor's bytes."""
        with self._reading:
            return self._shard_with(tensor).read(tensor)

    def pieces(self, tensor: TensorInfo, *, skip: int = 0) -> Iterator[memoryview]:
        """Read one tensor's bytes in pieces of at most 1 MiB; each is valid until the next is asked for."""
        return self._shard_with(tensor).pieces(tensor, skip=skip)

    def copy_to(self, tensor: TensorInfo, target: Sink) -> None:
        """Copy one tensor's bytes to an unbuffered stream, inside the kernel where it can."""
        with self._reading:
            self._shard_with(tensor).copy_to(tensor, target)

    @property
    def _whole_header(self) -> bytes:
        return format_header(self.tensors.values(), self.header.metadata)

    def _shard_with(self, tensor: TensorInfo) -> Checkpoint:
        shard = self.shards[self.shard_of[tensor.name]]
        if shard.stream.closed:
            self.finish()
            self.close()
            shard._reopen()
        return shard

    def finish(self) -> None:
        """See that nobody wrote to what was read.

        Raises:
            WsurgeryError: somebody did.
        """
        for shard in self.shards.values():
            shard.finish()

    def _rest(self) -> None:
        self.close()

    def _reopen(self) -> None:
        """A shard is opened when it is read."""

    def close(self) -> None:
        """Close every shard."""
        for shard in self.shards.values():
            shard.close()


def open_folder(folder: Path) -> Checkpoint:
    """Open the checkpoint in a folder: its shards, its `model.safetensors`, or the one safetensors file that it has.

    Raises:
        WsurgeryError: there is none, there are several, or the index and the shards do not agree.
    """
    if (folder / INDEX).is_file():
        return ShardedCheckpoint(printable(str(folder)), _read_index(folder / INDEX), folder)
    if (folder / WHOLE).is_file():
        return Checkpoint(open_regular(folder / WHOLE), folder / WHOLE)
    label = printable(str(folder))
    if shards := _shards_without_index(folder, label):
        return ShardedCheckpoint(label, shards, folder)
    for ending in (".safetensors.index.json", ".safetensors"):
        found = names_in(folder, (ending,))
        if len(found) > 1:
            raise WsurgeryError(f"{label} is a folder with {len(found)} checkpoints: name one of {_listed(found)}")
        if found:
            path = folder / found[0]
            if ending.endswith(".json"):
                return ShardedCheckpoint(label, _read_index(path), folder)
            return Checkpoint(open_regular(path), path)
    others = names_in(folder, WEIGHTS)
    hint = f"run wsurgery convert on {_listed(others)}" if others else "name a file in it"
    raise WsurgeryError(f"{label} is a folder with no safetensors file, such as {WHOLE}: {hint}")


def _shards_without_index(folder: Path, label: str) -> dict[str, str]:
    """Read what an index would say off the shards themselves, if they have the names of shards and are all there.

    Raises:
        WsurgeryError: one is missing, or a tensor stands in two of them.
    """
    found: dict[tuple[str, int], dict[int, str]] = {}
    for name in names_in(folder, (".safetensors",)):
        if match := SHARD.fullmatch(name):
            found.setdefault((match[1], int(match[3])), {})[int(match[2])] = name
    if len(found) != 1:
        return {}
    ((stem, count), names) = next(iter(found.items()))
    if lost := [number for number in range(1, count + 1) if number not in names]:
        name = f"{printable(stem)}-{lost[0]:05d}-of-{count:05d}.safetensors"
        raise WsurgeryError(f"{label} lacks shard {lost[0]} of {count} ({name}), and has no index")
    shard_of: dict[str, str] = {}
    for name in names.values():
        with Checkpoint(open_regular(folder / name), folder / name) as shard:
            for tensor in shard.tensors:
                if tensor in shard_of:
                    raise WsurgeryError(
                        f"{label}: {printable(tensor)} is in {shard_of[tensor]} and in {printable(name)}"
                    )
                shard_of[tensor] = name
    return shard_of


# How weights of other formats end, and what trainers keep beside them in files that end so.
WEIGHTS = (".bin", ".pth", ".pt", ".ckpt", ".th", ".npz", ".h5", ".onnx")
_NO_WEIGHTS = ("training_args.", "optimizer.", "scheduler.", "scaler.", "rng_state")


def names_in(folder: Path, endings: tuple[str, ...]) -> list[str]:
    """Return the names of the files in a folder that end so, sorted; a trainer's bookkeeping is none."""
    names = (path.name for path in folder.iterdir() if path.is_file())
    return sorted(name for name in names if name.endswith(endings) and not name.startswith(_NO_WEIGHTS))


def _listed(names: list[str]) -> str:
    return printable(", ".join(names[:10])) + (", …" if len(names) > 10 else "")


def split_by_size(tensors: Iterable[TensorInfo], shard_size: int) -> dict[str, list[TensorInfo]]:
    """Fill shards one after another, none larger than `shard_size` bytes unless one tensor is.

    Returns:
        File name (`model-00001-of-00003.safetensors`) → its tensors.
    """
    groups: list[list[TensorInfo]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.nbytes > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, 1)}


def format_index(shards: dict[str, list[TensorInfo]]) -> bytes:
    """Write the index of a sharded checkpoint."""
    weight_map = {tensor.name: name for name, group in shards.items() for tensor in group}
    total = sum(tensor.nbytes for group in shards.values() for tensor in group)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return json.dumps(index, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def part_of(names: list[str], part: str) -> list[str]:
    """Return the K-th of N groups of shards; the groups are contiguous and together are all.

    Raises:
        UsageError: `part` is not K/N with 1 ≤ K ≤ N.
    """
    k, slash, n = part.partition("/")
    if not (slash and k.isdecimal() and n.isdecimal() and len(n) < 19 >= len(k) and 1 <= int(k) <= int(n)):
        raise UsageError(f"--part {printable(part)}: write it as K/N, from 1/N to N/N")
    first, last = ((int(k) - 1) * len(names) // int(n), int(k) * len(names) // int(n))
    return names[first:last]


def _read_index(path: Path) -> dict[str, str]:
    return parse_index(read_regular(path, MAX_INDEX), printable(str(path)))


def read_shard_names(path: Path, label: str, complain: Callable[[str], str]) -> list[str]:
    """Return the names of the shards in an index, whatever their format, sorted.

    Args:
        path: the index.
        label: what messages call it.
        complain: gives the message for a name, escaped, that is not one of a file beside the index.

    Raises:
        WsurgeryError: it is not an index, or names such a file.
    """
    weight_map = _parse_weight_map(read_regular(path, MAX_INDEX), label)
    try:
        names = sorted(set(weight_map.values()))
    except TypeError:  # lists, or a mixture
        raise WsurgeryError(_NO_INDEX.format(label)) from None
    for name in names:
        if not _is_beside(name):
            raise WsurgeryError(complain(printable(str(name))))
    return names


def parse_index(content: bytes, label: str) -> dict[str, str]:
    """Return tensor name → file name of its shard.

    Raises:
        WsurgeryError: it is not an index, or names a file outside its folder.
    """
    weight_map = _parse_weight_map(content, label)
    for tensor, file in weight_map.items():
        if not _is_beside(file) or not file.endswith(".safetensors"):
            raise WsurgeryError(
                f"{label} places {printable(tensor)} in {printable(str(file))}: a shard is a .safetensors file in the folder"
            )
    return weight_map


def _parse_weight_map(content: bytes, label: str) -> dict[str, Any]:
    if len(content) > MAX_INDEX:
        raise WsurgeryError(f"{label} is more than {MAX_INDEX:,} bytes: no index is as large")
    try:
        return dict(json.loads(content)["weight_map"].items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise WsurgeryError(_NO_INDEX.format(label)) from None


def _is_beside(name: object) -> bool:
    """Whether it is the name of a file in the same folder."""
    return isinstance(name, str) and name == Path(name).name and name not in ("", "..") and "\0" not in name


def _require_indexed(shard: Checkpoint, name: str, shard_of: dict[str, str]) -> None:
    for tensor in shard.tensors:
        if shard_of.get(tensor) != name:
            raise WsurgeryError(f"{shard.label} holds {printable(tensor)}, which the index does not place there")
