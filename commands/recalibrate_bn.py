"""`wsurgery recalibrate-bn`."""

from functools import partial
from typing import TYPE_CHECKING, Annotated

from wsurgery.commands._shared import ModelOption
from wsurgery.plugin import (
    Array,
    Checkpoint,
    History,
    Map,
    Option,
    Result,
    TensorEdit,
    TensorInfo,
    copies,
    edit,
)

if TYPE_CHECKING:
    from wsurgery.operations.overflows import Overflows


@edit()
def recalibrate_bn(
    checkpoint: Checkpoint,
    *,
    data: Annotated[str, Option(metavar="SPEC", help="A manifest, or scheme:argument?key=value.")],
    split: Annotated[str, Option(help="The split that the images are of.")] = "train",
    images: Annotated[
        int, Option(min=2, help="How many, in whole patients; up to 512 at once, more in batches.")
    ] = 512,
    image_size: Annotated[int | None, Option(min=1, help="Pixels a side. Default: as in training.")] = None,
    skip_bad: Annotated[bool, Option(help="Leave out images that are missing or cannot be read.")] = False,
    arch: Annotated[str | None, Option(help="The timm model, if the checkpoint does not say it.")] = None,
    model: ModelOption = None,
) -> Result:
    """Set batch norm's running mean and variance to those of images, as they come through the network.

    A frozen batch norm normalises by its running statistics: after `init`, `meanvar` or `reset-bn` these are 0 and 1, and
    after `average` or `lerp` they belong to none of the weights. Weights and biases stay as they are.
    Between two networks, this is REPAIR (Jordan et al. 2022, arXiv 2211.08403) for layers that batch norm follows: the means
    and deviations behind it are those of the two, interpolated, where its weights have one sign in both.

    Example: wsurgery recalibrate-bn random.safetensors --data manifest.csv -o calibrated.safetensors
    """
    import torch

    from wsurgery.buffers import BATCH_NORM_STATISTICS
    from wsurgery.checkpoint.spool import spooled
    from wsurgery.data.dataset import load_dataset
    from wsurgery.data.sources import portable_name
    from wsurgery.devices import threads_used
    from wsurgery.errors import printable
    from wsurgery.models import as_checkpoint
    from wsurgery.models.load import load_checkpoint
    from wsurgery.operations.overflows import Overflows
    from wsurgery.training.recalibration import recalibrate
    from wsurgery.training.recorded import record_of, rendering_of

    again = spooled(checkpoint)
    network = load_checkpoint(again, arch, model=model)
    trained = record_of(network)
    size = image_size or (trained.image_size if trained else None)
    few = load_dataset(
        data,
        split=split,
        image_size=size,
        at_most=images,
        skip_bad=skip_bad,
        trained=rendering_of(trained),
    )
    with threads_used(None):  # which is as many as the command was told to use
        unreached = recalibrate(network, few, device=torch.device("cpu"))
    made = as_checkpoint(network.state_dict(), checkpoint.label)
    statistics = {
        name for name in again.tensors if name.rpartition(".")[2] in BATCH_NORM_STATISTICS and name in made.tensors
    }

    def measured(tensor: TensorInfo) -> TensorEdit:
        origin = made.tensors[tensor.name]
        compute = partial(_cast, tensor=tensor, overflows=overflows) if tensor.dtype != origin.dtype else None
        return TensorEdit(tensor, made, origin, compute)

    overflows = Overflows()
    edits = [measured(each.tensor) if each.tensor.name in statistics else each for each in copies(again)]
    says = [f"{len(few.images):,} images, digest {few.digest[:12]}"]
    if unreached:
        says.append(
            f"{printable(unreached[0])} (and {len(unreached) - 1} more) is reached by no image, and stays as it was"
        )
    recorded = {"data": portable_name(data, few.rendering)}
    return Result(edits, History.of(checkpoint), recorded=recorded, says=says, warns=overflows.warnings)


def _cast(x: Array, run: Map, *, tensor: TensorInfo, overflows: "Overflows") -> Array:
    from wsurgery.checkpoint.dtypes import numpy_dtype

    return overflows.cast(tensor.name, x, dtype=numpy_dtype(tensor.dtype), run=run)
