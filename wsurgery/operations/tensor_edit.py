"""What an edit makes: where each tensor of its result comes from, and what is done to it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wsurgery.checkpoint import Checkpoint, TensorInfo
from wsurgery.checkpoint.provenance import History, Record

if TYPE_CHECKING:
    from wsurgery.operations.arrays import Compute


@dataclass(frozen=True)
class TensorEdit:
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
    compute: "Compute | None" = None


def copy(tensor: TensorInfo, source: Checkpoint) -> TensorEdit:
    """Leave a tensor as it is."""
    return TensorEdit(tensor, source, tensor)


def copies(checkpoint: Checkpoint) -> list[TensorEdit]:
    """Leave all tensors of a checkpoint as they are."""
    return [copy(tensor, checkpoint) for tensor in checkpoint.tensors.values()]


@dataclass(frozen=True)
class Result:
    """What an edit makes, if it is more than a tensor after another.

    Attributes:
        tensors: the result, in its order.
        history: that of the checkpoint that flows through, with changes; of a source, its own. None: as it was.
        recorded: options whose value in the record is another than what was given; None leaves one (or the seed) out.
        inputs: what a source has read, for the record.
        says: what was done, for people.
        warns: gives what turned out while it was computed, for people.
        name: of the file that is written where no name is given, without its ending.
    """

    tensors: Sequence[TensorEdit]
    history: History | None = None
    recorded: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[Record] = ()
    says: Sequence[str] = ()
    warns: Callable[[], Iterable[str]] = lambda: ()
    name: str | None = None
