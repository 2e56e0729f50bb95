"""`wsurgery gabor`."""

from wsurgery.plugin import Checkpoint, TensorEdit, edit


@edit()
def gabor(checkpoint: Checkpoint) -> list[TensorEdit]:
    """Put Gabor filters in the first convolution, with the standard deviation of the weights they replace.

    Example: wsurgery init cbr_small | wsurgery gabor > gabor.safetensors
    """
    from wsurgery.anatomy import first_convolution
    from wsurgery.operations.gabor import gabor

    first = first_convolution({name: tensor.shape for name, tensor in checkpoint.tensors.items()})
    return [
        TensorEdit(tensor, checkpoint, tensor, (lambda x, run: gabor(x)) if name == first else None)
        for name, tensor in checkpoint.tensors.items()
    ]
