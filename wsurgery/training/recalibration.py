"""Batch norm's running statistics from images, for weights that they do not belong to: averaged, frozen or fresh ones."""

from contextlib import ExitStack

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from wsurgery.data.augment import normalise, to_float
from wsurgery.data.dataset import Dataset
from wsurgery.devices import arithmetic, memory_errors, memory_format
from wsurgery.errors import UsageError
from wsurgery.models.inputs import fit_channels, image_statistics, run
from wsurgery.training.feed import Feed


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms that have running statistics."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


def recalibrate(network: nn.Module, dataset: Dataset, *, device: torch.device, batch_size: int = 512) -> list[str]:
    """Set the running statistics of every batch norm to those of the images, and its counter to the batches of them.

    The images pass once, each batch norm normalising by its batch as in training, everything else as in evaluation. Of up to
    `batch_size` images the statistics are exactly theirs; of more the mean over batches as equal as they can be, each image
    counting the same (Izmailov et al. 2018, section 3.3; `torch.optim.swa_utils.update_bn` counts each batch the same). A batch
    norm that is called several times has the mean over its calls.

    Args:
        network: its mode is put back, and it stays on the device.
        dataset: n images, at least 2.
        device: where it runs.
        batch_size: images at a time.

    Returns:
        The names of the batch norms that no image reaches, which stay as they were.

    Raises:
        UsageError: the network has no batch norm with running statistics, or the images are fewer than two.
        WsurgeryError: it cannot take the images, or memory ends.
    """
    norms = batch_norms(network)
    if not norms:
        raise UsageError("the network has no batch norm with running statistics: nothing to recalibrate")
    mean, std = image_statistics(network)
    n = len(dataset.images)
    if n < 2:
        raise UsageError(f"batch norm's statistics need two images at least, and {n} of those asked for could be read")
    size = -(-n // -(-n // batch_size))  # no small last one: of a single image no variance is known
    starts = range(0, n, size)
    feed = Feed.in_order(dataset.images, starts, size, device)
    was_training = [module for module in network.modules() if module.training]
    before = [(norm.momentum, {name: x.clone() for name, x in norm.named_buffers()}) for norm in norms]
    network.to(device).to(memory_format=memory_format(device)).eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.training = True
    seen = dict.fromkeys(norms, 0)  # images, again in each call
    with ExitStack() as stack:

        def count(norm: _BatchNorm, given: object) -> None:
            seen[norm] += batch
            norm.momentum = batch / seen[norm]

        for norm in norms:
            stack.callback(norm.register_forward_pre_hook(count).remove)
        with torch.inference_mode(), arithmetic(), memory_errors(device, "use fewer --images"):
            for i, start in enumerate(starts):
                batch = min(size, n - start)
                run(network, fit_channels(normalise(to_float(feed.take(i).images), mean, std), network))
    network.eval()
    for norm, (momentum, statistics) in zip(norms, before, strict=True):
        norm.momentum = momentum
        if not seen[norm]:
            norm.load_state_dict(statistics, strict=False)
    for module in was_training:
        module.training = True
    return [name for name, module in network.named_modules() if module in seen and not seen[module]]
