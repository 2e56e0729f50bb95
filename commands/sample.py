"""`wsurgery sample`."""

from wsurgery.plugin import Array, Map, RandomStream, edit


@edit(resamples=True)
def sample(x: Array, *, random: RandomStream, run: Map) -> Array:
    """Draw each tensor's elements iid from its own values.

    Example: wsurgery sample resnet50.safetensors --blocks block3,block4 > sample.safetensors
    """
    from wsurgery.operations.sample import sample

    return sample(x, random=random, run=run)
