"""Checkpoints that no file holds: tensors made when they are read, and what an edit will make of others.

What an edit gives is a `Planned` checkpoint, which the next edit takes like a file: nothing is read but headers until it is
written. However many edits there are, `flattened` joins them, so that each tensor is read once and written once.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from wsurgery.anatomy import Selection
from wsurgery.checkpoint import Checkpoint, Header, TensorInfo
from wsurgery.checkpoint.companions import ModelFolder, model_folder
from wsurgery.checkpoint.digest import bytes_digest
from wsurgery.checkpoint.dtypes import numpy_dtype
from wsurgery.checkpoint.header import format_header
from wsurgery.checkpoint.provenance import WITHOUT_OPTIONS, History, Record, Unmade, describe_input, make_record
from wsurgery.checkpoint.sink import Sink, write_all
from wsurgery.checkpoint.spool import original, spooled
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.operations.declaration import Edit
from wsurgery.operations.names import blocks_after
from wsurgery.operations.overflows import Overflows
from wsurgery.operations.random_streams import RandomStream
from wsurgery.operations.scaled import require_plain
from wsurgery.operations.tensor_edit import Result, Separable, TensorEdit, require_tensor_edits
from wsurgery.operations.tensors import require_result, tensor_edits

if TYPE_CHECKING:
    from wsurgery.operations.arrays import Array, Map

_PIECE = 1 << 20  # bytes


class Made(Checkpoint):
    """A checkpoint of tensors that are made when they are read.

    Args:
        label: what messages call it.
        tensors: name, dtype and shape of each, in order.
        read: gives a tensor's bytes, contiguous and little-endian.
        metadata: of its header.
        in_order: whether each can be read only once, in this order.
    """

    def __init__(
        self,
        label: str,
        tensors: Iterable[TensorInfo],
        read: Callable[[TensorInfo], Any],
        metadata: Mapping[str, str] | None = None,
        *,
        in_order: bool = False,
    ) -> None:
        self.label, self.name, self.path, self.seekable = label, None, None, not in_order
        placed: dict[str, TensorInfo] = {}
        end = 0
        for tensor in tensors:
            placed[tensor.name] = tensor.placed(end)
            end = placed[tensor.name].end
        self._header, self._read = Header(placed, dict(metadata or {})), read
        self._reading = Lock()  # what reads may be a file, which has one position

    @property
    def header(self) -> Header:  # type: ignore[override]
        """Tensors in order, and `__metadata__`."""
        return self._header

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Tensors by name, in order."""
        return self._header.tensors

    @property
    def header_bytes(self) -> bytes:  # type: ignore[override]
        """The header that a file of it has."""
        return format_header(self.tensors.values(), self.header.metadata)

    def read(self, tensor: TensorInfo) -> Any:
        """Make one tensor's bytes."""
        with self._reading:
            return self._read(tensor)

    def pieces(self, tensor: TensorInfo, *, skip: int = 0) -> Iterator[memoryview]:
        """Make one tensor's bytes, in pieces of at most 1 MiB; `skip` leaves out as many of the first bytes."""
        view = memoryview(self.read(tensor)).cast("B")
        for start in range(skip, len(view), _PIECE):
            yield view[start : start + _PIECE]

    def copy_to(self, tensor: TensorInfo, target: Sink) -> None:
        """Make one tensor's bytes and write them to an unbuffered stream."""
        write_all(target, self.read(tensor))

    def finish(self) -> None:
        """There is nothing to read to an end."""

    def close(self) -> None:
        """There is nothing to close."""

    def rest(self) -> None:
        """There is nothing to close."""

    def reopen(self) -> None:
        """There is nothing to open."""


class Planned(Made, Unmade):
    """What edits will make of a checkpoint.

    Attributes:
        edits: its tensors: each from a tensor of a checkpoint that is no plan itself.
        history: what its file will say of itself.
        flows: the checkpoint that flows through, if there is one.
        inputs: the checkpoints that it is made from.
        says: what was done, for people.
        beside: the folder of the model that it was made from; None if there is none.
    """

    def __init__(
        self,
        label: str,
        edits: Sequence[TensorEdit],
        history: History,
        inputs: Iterable[Checkpoint],
        *,
        flows: Checkpoint | None = None,
        name: str | None = None,
        says: Sequence[str] = (),
        warns: Callable[[], Iterable[str]] = lambda: (),
        beside: ModelFolder | None = None,
    ) -> None:
        self.beside: ModelFolder | None = beside
        if isinstance(flows, Planned):
            self.beside = flows.beside
        elif flows is not None:
            self.beside = model_folder(flows.path)
        self.edits, self.history, self.inputs = [flattened(edit) for edit in edits], history, list(inputs)
        self.flows, self.says, self._warns = flows, tuple(says), warns
        super().__init__(label, (edit.tensor for edit in edits), self.read)
        self.seekable = all(source.seekable for source in self.inputs)
        self.name = name

    @property
    def header(self) -> Header:  # type: ignore[override]
        """Tensors in order, and `__metadata__`, for which digests of inputs are waited for."""
        return Header(self.tensors, self.history.metadata())

    @cached_property
    def by_name(self) -> dict[str, TensorEdit]:
        """Its edits by the name of the tensor."""
        return {edit.tensor.name: edit for edit in self.edits}

    def places(self) -> Iterator[Path | str]:
        """Yield the files, folders and addresses that it is made from; one may come again."""
        if self.beside is not None:
            yield self.beside.path
        for source in self.inputs:
            if isinstance(source, Planned):
                yield from source.places()
            elif place := original(source).address or original(source).path:
                yield place

    def header_digest(self) -> "HeaderDigest":
        """Give BLAKE3 of the header, which is known when the digests of the inputs are."""
        return HeaderDigest(self)

    def read_array(self, name: str, run: "Map" = map) -> "Array":
        """Make one tensor as an array of its shape and own dtype."""
        edit = self.by_name[name]
        x = edit.source.read_array(edit.origin.name)
        return x if edit.compute is None else computed(edit, x, run)

    def pieces(self, tensor: TensorInfo, *, skip: int = 0) -> Iterator[memoryview]:
        """Make one tensor's bytes in pieces; what is only copied is read in pieces, too."""
        edit = self.by_name[tensor.name]
        if edit.compute is None:
            return edit.source.pieces(edit.origin, skip=skip)
        return super().pieces(tensor, skip=skip)

    def read(self, tensor: TensorInfo) -> Any:
        """Make one tensor's bytes; several threads compute theirs at once."""
        import numpy as np

        edit = self.by_name[tensor.name]
        if edit.compute is None:
            return edit.source.read(edit.origin)
        return self.read_array(tensor.name).reshape(-1).view(np.uint8).data

    def warnings(self) -> list[str]:
        """Say what turned out while it was computed, by this edit and those before it."""
        before = [line for source in self.inputs if isinstance(source, Planned) for line in source.warnings()]
        return [*before, *self._warns()]

    def finish(self) -> None:
        """Read the streams among what it is made from to their ends.

        Raises:
            WsurgeryError: one ends early or goes on after its last tensor.
        """
        for source in self.inputs:
            source.finish()

    def close(self) -> None:
        """Close what it is made from."""
        for source in self.inputs:
            source.close()

    def rest(self) -> None:
        """Close the files that it is made from until `reopen`."""
        for source in self.inputs:
            source.rest()

    def reopen(self) -> None:
        """Open what it is made from again, where it was closed."""
        for source in self.inputs:
            source.reopen()


class HeaderDigest:
    """The digest of a header that is not known before its inputs' digests are.

    Each is worked out once: among parents of parents every other one asks for it again.
    """

    def __init__(self, planned: Planned) -> None:
        self._planned = planned
        self._started, self._result = False, ""

    def start(self) -> None:
        """Begin with the digests of the inputs, unless that is done."""
        if not self._started:
            self._started = True
            self._planned.history.metadata(draft=True)

    def result(self) -> str:
        """Return BLAKE3 of the header as 64 hexadecimal digits."""
        self._result = self._result or bytes_digest(self._planned.header_bytes)
        return self._result


def flattened(edit: TensorEdit) -> TensorEdit:
    """Join an edit with that of the plan it reads from: what remains reads from no plan."""
    if not isinstance(edit.source, Planned):
        return edit
    before = edit.source.by_name[edit.origin.name]
    compute = edit.compute or before.compute
    if edit.compute and before.compute:
        compute = partial(_both, before=before, after=edit)
        if isinstance(before.compute, Separable) and isinstance(edit.compute, Separable):
            compute = Separable(compute, before.compute.stages + edit.compute.stages)
    return TensorEdit(edit.tensor, before.source, before.origin, compute)


def _both(x: "Array", run: "Map", *, before: TensorEdit, after: TensorEdit) -> "Array":
    assert after.compute is not None
    return after.compute(computed(before, x, run), run)


def computed(edit: TensorEdit, x: "Array", run: "Map") -> "Array":
    """Compute one tensor, and see that it is what the edit promised.

    Raises:
        WsurgeryError: the operation cannot work on it; the message names the tensor.
    """
    import numpy as np

    assert edit.compute is not None
    try:
        result = np.asarray(edit.compute(x, run), order="C")
        require_result(result, edit.tensor.shape, numpy_dtype(edit.tensor.dtype))
    except WsurgeryError as error:
        if hasattr(error, "tensor"):
            raise
        named = type(error)(f"{printable(edit.tensor.name)} {error}")
        named.tensor = edit.tensor.name  # type: ignore[attr-defined]
        raise named from error
    except (Exception, SystemExit) as error:  # whatever another package's code raises
        if not hasattr(error, "tensor"):
            error.tensor = f"{printable(edit.origin.name)}, {x.dtype} {x.shape}"  # type: ignore[union-attr]
        raise
    return result


def plan(
    edit: Edit,
    inputs: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    selection: Selection,
    seed: int = 0,
    digests: bool = True,
) -> Planned:
    """Apply an edit to open checkpoints; nothing is read but what their headers say.

    Args:
        edit: the edit.
        inputs: its checkpoints by parameter: one, a list, or None; of a file that it opens itself, the name.
        options: its other parameters.
        selection: the part it acts on.
        seed: of its draws.
        digests: whether the digests of input files go into the record.

    Raises:
        WsurgeryError: it cannot be done to these checkpoints.
        UsageError: it cannot mean anything.
    """
    edit.require(inputs, options, selection)
    if not 0 <= seed < 1 << 64:
        raise UsageError("--seed: a whole number from 0 to 2^64 - 1 is needed")
    options = {name: p.checked(options.get(name, p.default)) for name, p in edit.options.items()}
    named = _named(edit, inputs)
    flows = named[0][1] if named and edit.flows else None
    history = History() if flows is None else History.of(flows)
    words_of_part = selection.recorded
    blocks = (selection.block_map if edit.takes_part else None) or history.blocks
    if selection.block_map is not None and flows is not None and len(named) == 1:
        selection.place(flows.tensors)  # a map that cannot be is told, whether or not blocks are chosen by it
    selection = selection.with_map(history.blocks)
    if flows is not None and edit.takes_part:
        selection = selection.with_aliases(history.aliases(flows.tensors))
    described = [
        describe_input(each, History.of(each), flows=flows is not None and not i, option=option)
        for i, (option, each) in enumerate(named)
    ]
    inputs = {name: _in_reach(edit, name, given, flows) for name, given in inputs.items()}
    random = RandomStream(seed, edit.name, history.count(edit.name), "")
    if edit.of_tensors:
        assert flows is not None
        overflows = Overflows()
        changed = tensor_edits(edit, flows, selection, options, random, overflows)
        result = Result(changed, warns=overflows.warnings)
    else:
        known = {RandomStream: random, Selection: selection}
        made = edit.function(**inputs, **options, **{name: known[kind] for name, kind in edit.takes.items()})
        result = made if isinstance(made, Result) else Result(made)
        if edit.package:
            require_tensor_edits(edit.name, result.tensors)
    require_plain(result.tensors)
    recorded = {"seed": seed if edit.draws else None, **options, **result.recorded}
    described += result.inputs
    if not digests:
        described = [{key: value for key, value in each.items() if key != "blake3"} for each in described]
    words = edit.words(recorded, words_of_part)
    record = make_record(edit.name, words, seed=recorded["seed"], inputs=described, package=edit.package)
    after = result.history or history
    if blocks:
        names = {each.origin.name: each.tensor.name for each in result.tensors if original(each.source) is flows}
        after = replace(after, blocks=blocks_after(blocks, names))
    return Planned(
        f"the result of {edit.name}",
        result.tensors,
        after.then(record),
        dict.fromkeys([*in_turn(edit, inputs), *(each.source for each in result.tensors)]),
        flows=flows,
        name=result.name or f"{_stem(inputs)}.{_described(record)}",
        says=[*result.says, *_tied(result, flows, after, selection)],
        warns=result.warns,
        beside=result.beside,
    )


def _tied(result: Result, flows: Checkpoint | None, after: History, selection: Selection) -> Iterator[str]:
    """Say what changes that was not selected, because it is tied to what was."""
    if flows is None or not selection.arguments or not selection.aliases:
        return
    left = selection.unselected_ties(flows.tensors)
    made = {each.tensor.name for each in result.tensors if each.compute or original(each.source) is not flows}
    for alias, name in after.aliases(made).items():
        if alias in left:
            yield f"{printable(alias)} is tied to {printable(name)}: it is the same tensor, and changes with it"


def in_turn(edit: Edit, inputs: Mapping[str, Any]) -> list[Checkpoint]:
    """Return the checkpoints among the inputs of an edit, the one that flows through first."""
    return [each for _, each in _named(edit, inputs)]


def _named(edit: Edit, inputs: Mapping[str, Any]) -> list[tuple[str, Checkpoint]]:
    """Return the same, each with the option that it is given with, "" for one that stands by its place."""
    found: list[tuple[str, Checkpoint]] = []
    for parameter in sorted(edit.inputs, key=lambda parameter: parameter.name != edit.flows):
        given = inputs.get(parameter.name)
        said = parameter.declared and not parameter.is_argument and edit.name not in WITHOUT_OPTIONS
        option = parameter.option if said else ""
        found += [(option, x) for x in (given if isinstance(given, list) else [given]) if isinstance(x, Checkpoint)]
    return found


def _in_reach(edit: Edit, name: str, given: Any, flows: Checkpoint | None) -> Any:
    """Let an edit read a checkpoint in the order that it wants: a stream that does not flow through becomes a file."""
    if isinstance(given, list):
        return [_in_reach(edit, name, each, flows) for each in given]
    if not isinstance(given, Checkpoint) or given is flows:
        return given
    in_order = flows is not None and name in edit.in_order and list(given.tensors) == list(flows.tensors)
    return given if in_order else spooled(given)


def _stem(inputs: Mapping[str, Any]) -> str:
    first = next((given[0] if isinstance(given, list) else given for given in inputs.values() if given), None)
    name = first.name if isinstance(first, Checkpoint) else None
    return name.removesuffix(".safetensors") if name else "stdin"


def _described(record: Record) -> str:
    arguments = dict(zip(record["arguments"][::2], record["arguments"][1::2], strict=False))
    part = "-".join(arguments[key] for key in ("--upto", "--blocks") if key in arguments)
    return re.sub(r"[^\w.,=-]+", "_", f"{record['command']}-{part}" if part else record["command"])
