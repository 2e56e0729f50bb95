"""`wsurgery adapt`."""

from typing import Annotated

from wsurgery.plugin import Checkpoint, History, Option, Result, UsageError, edit


@edit()
def adapt(
    checkpoint: Checkpoint,
    *,
    in_chans: Annotated[int | None, Option(min=1, max=10_000, help="Channels of the new images.")] = None,
    img_size: Annotated[
        str | None, Option(metavar="N|HxW", help="Side of the new images in pixels, or their height and width."), int
    ] = None,
) -> Result:
    """Adapt a network to images with other channels or of another size, as timm does when it loads weights.

    One channel gets the sum of the first convolution's; more repeat them in turn. Tables of positions are resampled; what
    they were for, if not for square images, is read in the metadata (img_size of the architecture).

    Example: wsurgery adapt vit.safetensors --in-chans 1 --img-size 384 > grey384.safetensors
    """
    from wsurgery.operations.adapt import adapt_edits, parse_sides

    if in_chans is None and img_size is None:
        raise UsageError("to what? Give --in-chans, --img-size or both")
    sides = None if img_size is None else parse_sides(str(img_size))
    history = History.of(checkpoint)
    edits = adapt_edits(checkpoint, in_chans=in_chans, img_size=sides, architecture=history.architecture)
    args = (history.architecture or {}).get("args", {})
    channels = {} if in_chans is None else {"in_chans": in_chans}
    size = {}
    if sides is not None:
        size = {"args": {**args, "img_size": sides[0] if sides[0] == sides[1] else list(sides)}}
    return Result(edits, history.with_architecture(**channels, **size))
