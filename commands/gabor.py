"""`wsurgery gabor`."""

from wsurgery.plugin import Checkpoint, TensorEdit, edit


@edit()
def gabor(checkpoint: Checkpoint) -> list[TensorEdit]:
    """Put Gabor filters in the first convolution, with the standard deviation of the weights they replace.

    Example: wsurgery init cbr_small | wsurgery gabor > gabor.safetensors
    """
    from wsurgery.operations.gabor import gabor
    from wsurgery.operations.layers import image_convolution

    first = image_convolution(checkpoint)
    return [
        TensorEdit(tensor, checkpoint, tensor, (lambda x, run: gabor(x)) if name == first else None)
        for name, tensor in checkpoint.tensors.items()
    ]
