"""`wsurgery shuffle`."""

from wsurgery.plugin import Array, Map, RandomStream, edit


@edit(resamples=True)
def shuffle(x: Array, *, random: RandomStream, run: Map) -> Array:
    """Permute each tensor at random.

    Example: wsurgery shuffle resnet50.safetensors > shuffle.safetensors
    """
    from wsurgery.operations.shuffle import shuffle

    return shuffle(x, random=random, run=run)
