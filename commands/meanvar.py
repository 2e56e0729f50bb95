"""`wsurgery meanvar`."""

from wsurgery.plugin import Array, Map, RandomStream, edit


@edit(resamples=True)
def meanvar(x: Array, *, random: RandomStream, run: Map) -> Array:
    """Resample each tensor iid Gaussian from its own mean and variance.

    Example: wsurgery meanvar resnet50.safetensors > meanvar.safetensors
    """
    from wsurgery.operations.meanvar import meanvar

    return meanvar(x, random=random, run=run)
