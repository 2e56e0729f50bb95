"""`wsurgery new-head`."""

from typing import Annotated

from wsurgery.plugin import Checkpoint, Option, RandomStream, Result, edit


@edit()
def new_head(
    checkpoint: Checkpoint,
    *,
    num_classes: Annotated[int, Option(min=1, max=1_000_000, help="Outputs of the new classifier.")],
    random: RandomStream,
) -> Result:
    """Replace the classifier by a fresh random one for another number of classes (the same number redraws it).

    An embedding that is tied to the classifier stays, tied to it no longer.

    Example: wsurgery new-head resnet50.safetensors --num-classes 5 --seed 1 > five.safetensors
    """
    from wsurgery.operations.new_head import new_head

    return new_head(checkpoint, num_classes=num_classes, random=random)
