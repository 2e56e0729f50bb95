"""`wsurgery adapt`."""

from typing import Annotated

from wsurgery.plugin import Checkpoint, History, Option, Result, UsageError, edit


@edit()
def adapt(
    checkpoint: Checkpoint,
    *,
    in_chans: Annotated[int | None, Option(min=1, max=10_000, help="Channels of the new images.")] = None,
    img_size: Annotated[int | None, Option(min=1, help="Side of the new images, in pixels.")] = None,
) -> Result:
    """Adapt a network to images with other channels or of another size, as timm does when it loads weights.

    One channel gets the sum of the first convolution's; more repeat them in turn. Tables of positions are resampled.

    Example: wsurgery adapt vit.safetensors --in-chans 1 --img-size 384 > grey384.safetensors
    """
    from wsurgery.operations.adapt import adapt_edits

    if in_chans is None and img_size is None:
        raise UsageError("to what? Give --in-chans, --img-size or both")
    edits = adapt_edits(checkpoint, in_chans=in_chans, img_size=img_size)
    history = History.of(checkpoint)
    args = (history.architecture or {}).get("args", {})
    channels = {} if in_chans is None else {"in_chans": in_chans}
    size = {} if img_size is None else {"args": {**args, "img_size": img_size}}
    return Result(edits, history.with_architecture(**channels, **size))
