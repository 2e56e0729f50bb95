"""A state dict from a checkpoint as it is found: a file or folder of torch.save, .npz or safetensors, in any wrapper."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np

from wsurgery.archives import ArrayHeader, one_line_errors, open_archive, open_array, read_array
from wsurgery.checkpoint.digest import bytes_digest
from wsurgery.checkpoint.dtypes import dtype_name
from wsurgery.checkpoint.header import MAX_HEADER, TensorInfo
from wsurgery.checkpoint.opening import STDIN, open_checkpoint
from wsurgery.checkpoint.provenance import History, Record, describe_file, describe_input
from wsurgery.checkpoint.shards import INDEX, WEIGHTS, names_in, read_shard_names
from wsurgery.checkpoint.unchanged import FileState, file_state, require_unchanged
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.foreign.finding import architecture_said, checked_name, find_tensors
from wsurgery.foreign.other_libraries import HDF5_MAGIC, open_hdf5, open_onnx
from wsurgery.foreign.pickles import ZIP_MAGIC, TorchFile, is_legacy
from wsurgery.foreign.stored import StoredTensor
from wsurgery.untrusted import open_regular

_BIN, _BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


@dataclass(frozen=True)
class StateDict:
    """Tensors by name, in file order, each read when it is asked for.

    Attributes:
        label: what messages call the file.
        tensors: name → dtype and shape; last those that the file only names as another's aliases.
        read: gives a tensor's bytes, contiguous and little-endian, by name.
        source: the description of the file for a record.
        history: what the file says about itself; empty unless it is safetensors.
        notes: what was chosen and what was left out, for people.
        finish: to be called after the last tensor; raises if a stream goes on.
        aliases: name → the name of the tensor that it is: tied weights.
        said: names that the file's other entries give the network.
    """

    label: str
    tensors: dict[str, TensorInfo]
    read: "Callable[[str], bytes | bytearray | memoryview]"
    source: Record
    history: History = field(default_factory=History)
    notes: tuple[str, ...] = ()
    finish: Callable[[], None] = lambda: None
    aliases: Mapping[str, str] = field(default_factory=dict)
    said: Sequence[str] = ()


@contextmanager
def open_state_dict(source: str | Path | None, *, key: str | None = None) -> Iterator[StateDict]:
    """Open a checkpoint of any format that is known here.

    Args:
        source: a file, or a folder as the Hugging Face hub keeps them (`model.safetensors` or `pytorch_model.bin`, whole
            or in shards with an index); `-` or None for a safetensors stream on standard input.
        key: which of the dicts in the file to take, `a.b.c` for one in others. Default: the first of `WRAPPERS`, or the
            only one.

    Raises:
        WsurgeryError: the file is damaged, holds no state dict, or asks for Python code to be run.
        UsageError: `key` is not there, or is needed.
    """
    path = None if source is None or str(source) == STDIN or "://" in str(source) else Path(source)
    files = _bin_files(path) if path is not None and path.is_dir() else []
    if len(files) == 1 and files[0].name != _BIN and path is not None and not (path / _BIN_INDEX).is_file():
        path = source = files[0]
    prefix, state = b"", None
    if path is not None and path.is_file():  # not so for a named pipe, whose first bytes would be lost
        with open_regular(path) as stream:
            prefix, state = stream.read(512), file_state(stream.fileno())
    label = printable(str(path))
    is_safetensors = prefix[8:9] == b"{"  # a header's length may begin with anything
    if prefix[257:262] == b"ustar" and not is_safetensors:
        raise WsurgeryError(
            f"{label} is a tar archive: unpack it, or load it with torch and save its state_dict() again"
        )
    if path is not None and path.is_dir() and files:
        yield from _folder(path, files, key)
    elif path is not None and (prefix.startswith(HDF5_MAGIC) or path.suffix == ".onnx"):
        if key is not None:
            raise UsageError(f"{label} has no wrappers: leave out --key")
        with (open_onnx if path.suffix == ".onnx" else open_hdf5)(path, label) as (tensors, read):
            for name in tensors:
                checked_name(name)
            yield _unchanged(StateDict(label, tensors, read, describe_file(path)), {path: state})
    elif path is not None and path.suffix == ".npz":
        if key is not None:
            raise UsageError(f"{label} is an .npz file, which has no wrappers: leave out --key")
        with ExitStack() as stack:
            with one_line_errors(label):
                archive = stack.enter_context(open_archive(path))
            yield _unchanged(_npz(archive, path, label), {path: state})
    elif path is not None and (prefix.startswith(ZIP_MAGIC) or is_legacy(prefix[:32]) or _is_pickle(prefix)):
        with TorchFile(path) as file:
            yield _unchanged(_torch(file, path, key), {path: state})
    else:
        with open_checkpoint(source) as checkpoint:
            if key is not None:
                raise UsageError(f"{checkpoint.label} is a safetensors file, which has no wrappers: leave out --key")
            history = History.of(checkpoint)
            described = describe_input(checkpoint, history, flows=True)
            tensors, others = checkpoint.tensors, history.others
            aliases = history.aliases(tensors)
            yield StateDict(
                checkpoint.label,
                tensors | {name: replace(tensors[kept], name=name) for name, kept in aliases.items()},
                lambda name: memoryview(checkpoint.read(tensors[aliases.get(name, name)])),
                described,
                replace(history, others={name: text for name, text in others.items() if name not in aliases}),
                finish=checkpoint.finish,
                aliases=aliases,
            )


def _is_pickle(prefix: bytes) -> bool:
    """Whether a file begins as a pickle of protocol 2 or later does, and not as a header of a likely length."""
    return prefix[:1] == b"\x80" and 2 <= prefix[1] <= 5 and int.from_bytes(prefix[:8], "little") > MAX_HEADER


def _torch(file: TorchFile, path: Path, key: str | None) -> StateDict:
    try:
        found, notes = find_tensors(file.content, key)
        tensors = {name: stored.info(name) for name, stored in found.items()}
    except WsurgeryError as error:
        raise type(error)(f"{file.label} {error}") from None
    return StateDict(
        file.label,
        tensors,
        lambda name: file.read(found[name], name),
        describe_file(path),
        notes=tuple(notes),
        aliases=_tied(found),
        said=architecture_said(file.content),
    )


def _unchanged(state_dict: StateDict, states: Mapping[Path, FileState | None]) -> StateDict:
    """Have it seen in the end that nobody wrote to the files meanwhile."""

    def finish() -> None:
        for path, state in states.items():
            require_unchanged(printable(str(path)), path, state)

    return replace(state_dict, finish=finish)


def _tied(tensors: Mapping[str, StoredTensor]) -> dict[str, str]:
    """Find tensors that are one: name → the first such name in the alphabet, which safetensors' save_model keeps, too."""
    kept: dict[object, str] = {}
    views = {name: (t.storage, t.offset, t.shape, t.stride, t.dtype, t.flipped) for name, t in tensors.items()}
    for name in sorted(tensors):
        if 0 not in tensors[name].shape:
            kept.setdefault(views[name], name)
    return {name: first for name, view in views.items() if (first := kept.get(view, name)) != name}


def _bin_files(folder: Path) -> list[Path]:
    """List the pickles in a folder as the hub keeps it, or the one that it has; none if there is a safetensors file."""
    if names_in(folder, (".safetensors", INDEX)):
        return []
    index = folder / _BIN_INDEX
    if not index.is_file():
        found = [_BIN] if (folder / _BIN).is_file() else names_in(folder, WEIGHTS)
        if len(found) > 1:
            raise WsurgeryError(
                f"{printable(str(folder))} is a folder with {len(found)} checkpoints: name one of {_listed(found)}"
            )
        return [folder / name for name in found]
    label = printable(str(index))
    names = read_shard_names(
        index, label, lambda name: f"{label} names the file {name}: a shard is a file in the folder"
    )
    for name in names:
        if not (folder / name).is_file():
            raise WsurgeryError(f"{printable(str(folder))} lacks {printable(name)}, which its index names")
    return [folder / name for name in names]


def _listed(names: list[str]) -> str:
    return printable(", ".join(names[:10]))


def _folder(folder: Path, paths: list[Path], key: str | None) -> Iterator[StateDict]:
    """Give the shards of torch.save as one state dict, shard by shard."""
    states = {path: file_state(path) for path in paths}
    with ExitStack() as stack:
        shards = [_torch(stack.enter_context(TorchFile(path)), path, key) for path in paths]
        holder: dict[str, StateDict] = {}
        for shard in shards:
            if twice := holder.keys() & shard.tensors.keys():
                raise WsurgeryError(f"{shard.label} holds {printable(min(twice))}, as another shard does")
            holder |= dict.fromkeys(shard.tensors, shard)
        digests = [shard.source["blake3"] for shard in shards]
        whole = StateDict(
            printable(str(folder)),
            {name: tensor for shard in shards for name, tensor in shard.tensors.items()},
            lambda name: holder[name].read(name),
            {
                "name": folder.resolve().name,
                "size": sum(shard.source["size"] for shard in shards),
                "blake3": bytes_digest("".join(digests).encode()),
            },
            notes=tuple(dict.fromkeys(note for shard in shards for note in shard.notes)),
            aliases={name: kept for shard in shards for name, kept in shard.aliases.items()},
        )
        yield _unchanged(whole, states)


def _npz(archive: ZipFile, path: Path, label: str) -> StateDict:
    tensors, members = {}, {}
    for member in archive.namelist():
        name = member.removesuffix(".npy")
        with one_line_errors(f"{label}: {printable(name)}"), open_array(archive, member) as (header, _):
            tensors[name] = _described(checked_name(name), header)
        members[name] = member
    if not tensors:
        raise WsurgeryError(f"{label} holds no arrays: save them with np.savez(FILE, NAME=ARRAY, ...)")

    def read(name: str) -> memoryview:
        with one_line_errors(f"{label}: {printable(name)}"):
            found = np.asarray(read_array(archive, members[name]), order="C")
            return found.astype(found.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8).data

    return StateDict(label, tensors, read, describe_file(path))


def _described(name: str, header: ArrayHeader) -> TensorInfo:
    try:
        return TensorInfo(name, dtype_name(header.dtype.newbyteorder("<")), header.shape, 0, 0).placed(0)
    except TypeError as error:
        raise WsurgeryError(f"cannot be written: {error}") from None
