"""`wsurgery meanvar`."""

from typing import Annotated, Literal

from wsurgery.plugin import Array, Map, Option, RandomStream, edit


@edit(resamples=True)
def meanvar(
    x: Array,
    *,
    per: Annotated[
        Literal["tensor", "filter", "channel"] | None,
        Option(
            help="Of what mean and variance are: the whole tensor (default), each output filter, each input channel."
        ),
    ] = None,
    random: RandomStream,
    run: Map,
) -> Array:
    """Resample each tensor iid Gaussian from its own mean and variance.

    Tensors of one dimension have no filters or channels: theirs are of the whole, whatever --per says.

    Example: wsurgery meanvar resnet50.safetensors > meanvar.safetensors

    Example: wsurgery meanvar resnet50.safetensors --per filter --role conv > by-filter.safetensors
    """
    from wsurgery.operations.meanvar import meanvar

    return meanvar(x, random=random, run=run, per=per)
