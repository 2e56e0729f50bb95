"""What an edit makes: where each tensor of its result comes from, and what is done to it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wsurgery.checkpoint import Checkpoint, TensorInfo
from wsurgery.checkpoint.companions import ModelFolder
from wsurgery.checkpoint.provenance import History, Record
from wsurgery.errors import WsurgeryError, printable

if TYPE_CHECKING:
    from wsurgery.operations.arrays import Array, Compute, Map

Several = Callable[["Array", Sequence[tuple[str, int]]], "Array | None"]


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


@dataclass(frozen=True, slots=True)
class Separable:
    """A `compute` by which each element depends on itself alone, so that many small tensors may be computed at once.

    Attributes:
        one: what is done to the tensor.
        stages: the same in steps, each with the name that the tensor has there. A step takes the elements of several tensors
            of one dtype, end to end, (n,), with their names and sizes. It gives as many, or None where they have to go
            one by one: a message may have to name one. Tensors with the same steps may go together.
    """

    one: "Compute"
    stages: tuple[tuple[Several, str], ...]

    def __call__(self, x: "Array", run: "Map") -> "Array":
        """Compute the one tensor."""
        return self.one(x, run)

    @property
    def steps(self) -> tuple[Several, ...]:
        """The steps alone."""
        return tuple(step for step, _ in self.stages)


def computed_together(computes: Sequence[Separable], sizes: Sequence[int], x: "Array") -> "Array | None":
    """Compute small tensors, of one dtype and with the same steps, whose elements lie end to end in `x`, (n,).

    None if they have to go one by one.
    """
    result: Array | None = x
    for i, step in enumerate(computes[0].steps):
        if result is not None:
            result = step(result, [(each.stages[i][1], size) for each, size in zip(computes, sizes, strict=True)])
    return result


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
        beside: the folder that a source was read from, whose settings and licence go along into an output folder.
        name: of the file that is written where no name is given, without its ending.
    """

    tensors: Sequence[TensorEdit]
    history: History | None = None
    recorded: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[Record] = ()
    says: Sequence[str] = ()
    warns: Callable[[], Iterable[str]] = lambda: ()
    beside: ModelFolder | None = None
    name: str | None = None


def require_tensor_edits(edit: str, made: Any) -> None:
    """Require that what an edit of checkpoints returned is a list of `TensorEdit`, one for each name.

    Raises:
        WsurgeryError: it is something else; the message names the edit.
    """
    due = "an edit of checkpoints returns a list of TensorEdit, or a Result with one"
    if not isinstance(made, (list, tuple)):
        raise WsurgeryError(f"{edit} returned a {type(made).__name__}: {due}")
    names = set()
    for each in made:
        if not isinstance(each, TensorEdit):
            raise WsurgeryError(f"{edit} returned a list with a {type(each).__name__} in it: {due}")
        if each.tensor.name in names:
            raise WsurgeryError(f"{edit} made {printable(each.tensor.name)} twice: {due}, each name once")
        names.add(each.tensor.name)
