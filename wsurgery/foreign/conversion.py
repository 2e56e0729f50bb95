"""Put a state dict's tensors together under their new names."""

from collections.abc import Callable, Collection, Iterator, Mapping

import numpy as np

from wsurgery.checkpoint.dtypes import BITS
from wsurgery.checkpoint.header import TensorInfo
from wsurgery.errors import WsurgeryError, printable
from wsurgery.foreign.timm_names import Piece, TimmNames, joined_shape

Data = bytes | bytearray | memoryview


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
