"""`wsurgery covariance`."""

from typing import Annotated, Literal

from wsurgery.plugin import Array, Map, Option, RandomStream, edit


@edit(resamples=True)
def covariance(
    x: Array,
    *,
    of: Annotated[
        Literal["space", "filter", "channel"],
        Option(help="Of the kernel's positions, of all the weights of a filter, or of the input channels."),
    ],
    random: RandomStream,
    run: Map,
) -> Array:
    """Resample each tensor Gaussian with the mean and covariance of its kernels, filters or channels.

    A weight is (out, in, kh, kw). Its kernels are out * in samples of kh * kw numbers (Trockman, Willmott and Kolter
    2022), its filters out samples of in * kh * kw numbers, its channels out * kh * kw samples of in numbers. Samples of one
    number, such as the kernels of linear and 1 x 1 layers, and vectors, are resampled as by meanvar.

    Example: wsurgery covariance resnet50.safetensors --of space > covariance.safetensors
    """
    from wsurgery.operations.covariance import covariance

    return covariance(x, of=of, random=random, run=run)
