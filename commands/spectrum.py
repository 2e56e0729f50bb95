"""`wsurgery spectrum`."""

from typing import Annotated, Literal

from wsurgery.plugin import Array, Map, Option, RandomStream, edit


@edit(resamples=True)
def spectrum(
    x: Array,
    *,
    keep: Annotated[
        Literal["left", "right", "none"],
        Option(help="The singular vectors that stay: of the outputs (left), of what a filter reads (right), none."),
    ] = "none",
    random: RandomStream,
    run: Map,
) -> Array:
    """Keep the singular values of each tensor, and replace its singular vectors by Haar-random ones.

    A weight is the matrix (out, in * kh * kw). Tensors of one dimension have no singular vectors, and are left alone.

    Example: wsurgery spectrum resnet50.safetensors > spectrum.safetensors
    """
    from wsurgery.operations.spectrum import spectrum

    return spectrum(x, keep=keep, random=random, run=run)
