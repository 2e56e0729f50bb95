"""A state dict of any format as clean safetensors: its tensors put together under their new names."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from wsurgery.anatomy.architecture import Architecture
from wsurgery.anatomy.blocks import NECK, UNPLACED, Shapes, block_map
from wsurgery.checkpoint.dtypes import BITS
from wsurgery.checkpoint.header import TensorInfo
from wsurgery.errors import WsurgeryError, printable
from wsurgery.foreign.state_dict import StateDict
from wsurgery.foreign.timm_names import Piece, TimmNames, joined_shape
from wsurgery.operations.names import frozen_after
from wsurgery.operations.planning import Made
from wsurgery.operations.tensor_edit import Result, copies

Data = bytes | bytearray | memoryview


class Converted(Made):
    """The tensors of a state dict under their new names, read once and in the order of its file.

    Args:
        opened: opens the state dict.
        names: says, for it, what its tensors become.
    """

    def __init__(
        self, opened: Callable[[], AbstractContextManager[StateDict]], names: Callable[[StateDict], TimmNames]
    ) -> None:
        self._open, self._stack = opened, ExitStack()
        self.state = self._stack.enter_context(opened())
        with _closing_if_it_fails(self._stack):
            self.names = names(self.state)
            self.aliases = new_aliases(self.names, self.state.aliases, self.state.history.metadata())
            tensors = described(self.names, self.state.tensors, self.aliases)
        super().__init__(self.state.label, tensors, self._next, in_order=True)
        self._data = self._assembled()

    def _assembled(self) -> Iterator[tuple[str, Data]]:
        return zip(self.tensors, assembled(self.names, self.state.tensors, self.aliases, self.state.read), strict=True)

    def _next(self, tensor: TensorInfo) -> Data:
        """Pass over what comes before a tensor: a later edit of a chain may have left it out."""
        return next(data for name, data in self._data if name == tensor.name)

    def result(self, architecture: Architecture | None, **more: Any) -> Result:
        """Return it as what an edit makes.

        Args:
            architecture: of the network, if it is known.
            more: other fields of `Result`, the history among them, to which the architecture and the aliases are added.
        """
        history = replace(more.pop("history", self.state.history), architecture=architecture)
        same_names = self.tensors.keys() <= self.state.tensors.keys()
        blocks = history.blocks if same_names else None
        new = {piece.name: name for name, pieces in self.names.pieces.items() for piece in pieces}
        freeze = history.freeze if same_names else frozen_after(history.freeze, new)
        history = replace(history, others={**history.others, **self.aliases}, blocks=blocks, freeze=freeze)
        return Result(copies(self), history, says=list(self._says(architecture, blocks)), **more)

    def _says(self, architecture: Architecture | None, blocks: object) -> Iterator[str]:
        names = self.names
        yield from self.state.notes
        if names.prefix:
            yield f"stripped the prefix {names.prefix}"
        if names.lineage:
            yield f"renamed from {names.lineage} to timm's names"
        if names.inner:
            yield f"took {', '.join(names.inner)} out of names"
        for what, left_out in (
            ("is of the training", names.beside),
            ("timm's network has not", names.left_out),
        ):
            if left_out:
                more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
                yield f"left out what {what}: {printable(', '.join(left_out[:3]))}{more}; --keep-names keeps it"
        for alias, kept in self.aliases.items():
            yield f"{printable(alias)} is {printable(kept)}: written once, and recorded"
        if lost := () if blocks else _without_block({name: tensor.shape for name, tensor in self.tensors.items()}):
            yield (
                f"{len(lost)} of {len(self.tensors)} tensors have no known block, {printable(lost[0], 80)} first: where a "
                "command takes --upto or --blocks, --block-map FILE says them; or transfuse --into what init --model made of it"
            )
        if architecture:
            yield f"recorded the architecture {printable(architecture['name'])}"
        else:
            yield "the architecture is not known: wsurgery convert --arch NAME records it; train, eval and cca take --model, too"

    def finish(self) -> None:
        """Read a stream to its end.

        Raises:
            WsurgeryError: it ends early or goes on after the last tensor.
        """
        self.state.finish()

    def close(self) -> None:
        """Close the file."""
        self._stack.close()

    def rest(self) -> None:
        """Close the file until `reopen`."""
        self.close()

    def reopen(self) -> None:
        """Open the file again, and begin anew."""
        self._stack.close()
        self.state = self._stack.enter_context(self._open())
        self._data = self._assembled()


def _without_block(shapes: Shapes) -> list[str]:
    """Return the tensors whose names tell no block: where none tells a numbered one, those of the neck, too."""
    blocks = block_map(shapes)
    numbered = any(block.startswith("block") for block in blocks.values())
    return [name for name, block in blocks.items() if block == UNPLACED or (block == NECK and not numbered)]


@contextmanager
def converting(
    opened: Callable[[], AbstractContextManager[StateDict]], names: Callable[[StateDict], TimmNames]
) -> Iterator[Converted]:
    """Open a state dict for conversion; it stays open for whoever writes it, and is closed if what is done here fails."""
    converted = Converted(opened, names)
    with _closing_if_it_fails(converted):
        yield converted


@contextmanager
def _closing_if_it_fails(opened: ExitStack | Converted) -> Iterator[None]:
    try:
        yield
    except BaseException:
        opened.close()
        raise


def new_aliases(names: TimmNames, aliases: Mapping[str, str], reserved: Collection[str]) -> dict[str, str]:
    """Say which tensors of the result are another one: those that were, if they are neither joined nor rearranged.

    Args:
        names: what the tensors become.
        aliases: name → the name of the tensor that it is, in the file.
        reserved: keys of the metadata, where aliases are recorded, that are taken.
    """
    whole = {
        pieces[0].name: new for new, pieces in names.pieces.items() if len(pieces) == 1 and _is_untouched(pieces[0])
    }
    return {
        whole[alias]: whole[kept]
        for alias, kept in aliases.items()
        if alias in whole and kept in whole and whole[alias] not in reserved
    }


def described(names: TimmNames, tensors: Mapping[str, TensorInfo], aliases: Mapping[str, str]) -> list[TensorInfo]:
    """Describe the tensors to write, in the order in which they are complete when the file is read through.

    Args:
        names: what the tensors become.
        tensors: those of the file, in its order.
        aliases: as `new_aliases` gives them: these are not written.

    Raises:
        WsurgeryError: tensors that are to be joined have several dtypes.
    """
    place = {name: i for i, name in enumerate(tensors)}
    result = []
    for new, pieces in sorted(names.pieces.items(), key=lambda item: max(place[piece.name] for piece in item[1])):
        dtypes = sorted({tensors[piece.name].dtype for piece in pieces})
        if len(dtypes) > 1:
            raise WsurgeryError(
                f"{printable(pieces[0].name)} is joined with others to {printable(new)}, but they are {', '.join(dtypes)}: "
                "convert with --keep-names, then cast"
            )
        if new not in aliases:
            result.append(TensorInfo(new, dtypes[0], joined_shape(pieces), 0, 0).placed(0))
    return result


def assembled(
    names: TimmNames, tensors: Mapping[str, TensorInfo], aliases: Mapping[str, str], read: Callable[[str], Data]
) -> Iterator[Data]:
    """Yield the bytes of the tensors that `described` describes, reading each tensor of the file once and in its order."""
    target = {piece.name: new for new, pieces in names.pieces.items() if new not in aliases for piece in pieces}
    held: dict[str, Data] = {}
    for name in tensors:
        if name not in target:
            continue
        held[name] = read(name)
        pieces = names.pieces[target[name]]
        if all(piece.name in held for piece in pieces):
            parts = [_stored(held.pop(piece.name), piece, tensors[piece.name].dtype) for piece in pieces]
            yield parts[0] if len(parts) == 1 else b"".join(parts)


def _stored(data: Data, piece: Piece, dtype: str) -> Data:
    if _is_untouched(piece):
        return data
    # As unsigned integers: bytes are moved, never interpreted.
    array = np.frombuffer(data, f"u{BITS[dtype] // 8}").reshape(piece.before).transpose(piece.axes)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _is_untouched(piece: Piece) -> bool:
    return piece.axes == tuple(range(len(piece.axes)))
