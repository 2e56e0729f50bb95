"""`wsurgery shuffle`."""

from typing import Annotated, Literal

from wsurgery.plugin import Array, Map, Option, RandomStream, edit


@edit(resamples=True)
def shuffle(
    x: Array,
    *,
    within: Annotated[
        Literal["tensor", "filter", "position"] | None,
        Option(
            help="Values change places in the whole tensor (default), in each output filter, in each kernel position."
        ),
    ] = None,
    axis: Annotated[
        Literal["out", "in", "space"] | None,
        Option(help="Whole output filters, input channels or kernel positions change places; with --within, both do."),
    ] = None,
    random: RandomStream,
    run: Map,
) -> Array:
    """Permute each tensor at random.

    Tensors of one dimension have no filters or positions for --within, and are shuffled whole; each tensor has a permutation
    of its own.

    Example: wsurgery shuffle resnet50.safetensors > shuffle.safetensors

    Example: wsurgery shuffle resnet50.safetensors --within position > by-position.safetensors
    """
    from wsurgery.operations.shuffle import shuffle, shuffle_axis

    if within or not axis:
        x = shuffle(x, random=random, run=run, within=within)
    return shuffle_axis(x, axis=axis, random=random) if axis else x
