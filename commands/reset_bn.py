"""`wsurgery reset-bn`."""

from functools import partial

from wsurgery.plugin import Checkpoint, Selection, TensorEdit, UsageError, edit


@edit()
def reset_bn(checkpoint: Checkpoint, selection: Selection) -> list[TensorEdit]:
    """Set batch norm to the identity: weight and running variance 1, bias, running mean and counter 0.

    Example: wsurgery reset-bn resnet50.safetensors -o identity.safetensors
    """
    from wsurgery.anatomy import role_map
    from wsurgery.operations.batch_norm import batch_norm_identity
    from wsurgery.operations.resampling import constant

    tensors, roles = checkpoint.tensors, role_map(checkpoint.tensors)
    chosen = {name for name in selection.names(tensors) if roles[name] == "batch_norm"}
    if not chosen:
        raise UsageError(f"{checkpoint.label} has no batch norm in the selected part: nothing to reset")
    identity = {name: constant(partial(batch_norm_identity, part=name.rpartition(".")[2])) for name in chosen}
    return [TensorEdit(tensor, checkpoint, tensor, identity.get(name)) for name, tensor in tensors.items()]
