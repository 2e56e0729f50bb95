"""The weights of convolutions and linear layers, and which block of a checkpoint is its head."""

from collections.abc import Mapping

from wsurgery.anatomy import HEAD, Selection, first_convolution, role_map
from wsurgery.anatomy.roles import LAYERS
from wsurgery.checkpoint import Checkpoint, TensorInfo
from wsurgery.checkpoint.dtypes import is_float, numpy_dtype
from wsurgery.checkpoint.provenance import History
from wsurgery.errors import UsageError, WsurgeryError, printable


def placed(checkpoint: Checkpoint, tied: Mapping[str, TensorInfo] | None = None) -> dict[str, str]:
    """Return tensor name → block name, by the block map in the history if it has a head, else by the rules.

    Args:
        checkpoint: open.
        tied: its tensors by other names, which the rules place, too; a user's map has no place for them.
    """
    own = History.of(checkpoint).blocks
    if own and HEAD in own:
        return Selection(block_map=own).place(checkpoint.tensors)
    return Selection().place({**checkpoint.tensors, **(tied or {})})


def image_convolution(checkpoint: Checkpoint) -> str:
    """Name the convolution that meets the image, by the block map in the history, if there is one, else by the rules.

    Raises:
        UsageError: as `first_convolution`.
    """
    blocks = Selection(block_map=History.of(checkpoint).blocks or None).place(checkpoint.tensors)
    try:
        return first_convolution({name: tensor.shape for name, tensor in checkpoint.tensors.items()}, blocks)
    except UsageError as error:
        raise UsageError(f"{checkpoint.label}: {error}") from None


def layer_weights(checkpoint: Checkpoint, selection: Selection, *, head: bool) -> set[str]:
    """Name the selected weights of convolutions and linear layers; of `only` and `role` all floating-point tensors they chose.

    Args:
        checkpoint: open.
        selection: of its tensors.
        head: whether the head is among them without `only` or `role`.

    Raises:
        UsageError: there are none.
        WsurgeryError: one has elements smaller than a byte.
    """
    tensors = checkpoint.tensors
    chosen = {name for name in selection.names(tensors) if is_float(tensors[name].dtype)}
    if not (selection.only or selection.role):
        roles, blocks = role_map(tensors), {} if head else placed(checkpoint)
        chosen = {name for name in chosen if roles[name] in LAYERS and blocks.get(name) != HEAD}
    if not chosen:
        where = "" if head else " below the head"
        raise UsageError(
            f"the part has no weight of a convolution or linear layer{where}: choose tensors with --only or --role"
        )
    for name in sorted(chosen):
        try:
            numpy_dtype(tensors[name].dtype)
        except TypeError as error:  # elements smaller than a byte
            raise WsurgeryError(f"{checkpoint.label}: {printable(name)}: {error}: leave it out with --except") from None
    return chosen
