"""`wsurgery new-head`."""

from dataclasses import replace
from typing import Annotated

from wsurgery.plugin import Checkpoint, History, Option, RandomStream, Result, edit


@edit()
def new_head(
    checkpoint: Checkpoint,
    *,
    num_classes: Annotated[int, Option(min=1, max=1_000_000, help="Outputs of the new classifier.")],
    random: RandomStream,
) -> Result:
    """Replace the classifier by a fresh random one for another number of classes (the same number redraws it).

    Example: wsurgery new-head resnet50.safetensors --num-classes 5 --seed 1 > five.safetensors
    """
    from wsurgery.operations.new_head import new_head

    history = History.of(checkpoint)
    made = new_head(checkpoint, architecture=history.architecture, num_classes=num_classes, random=random)
    return replace(made, history=history.with_architecture(num_classes=num_classes))
