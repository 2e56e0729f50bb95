"""Running a network over a data set."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wsurgery.data.augment import normalise, to_float
from wsurgery.data.dataset import Dataset
from wsurgery.devices import arithmetic, memory_errors, memory_format
from wsurgery.errors import WsurgeryError
from wsurgery.models.inputs import fit_channels, image_statistics, logits_of
from wsurgery.processes import ALONE, Processes
from wsurgery.training.feed import Feed


def predict(
    model: nn.Module,
    dataset: Dataset,
    *,
    device: torch.device,
    batch_size: int = 128,
    processes: Processes = ALONE,
) -> NDArray[np.float32]:
    """Return the logits, (n, k) float32, of a network in eval mode; its mode is put back, and it stays on the device.

    Several processes take whole batches in turn and exchange the logits, so that each returns, bit for bit, what one
    process finds, on a CPU. float32 is multiplied as it is, on CUDA devices too.

    Raises:
        WsurgeryError: the network cannot take the images, memory ends, or a logit is NaN, which has no rank.
    """
    mean, std = image_statistics(model)
    starts = range(0, len(dataset.images), batch_size)
    own = starts[processes.rank :: processes.count]
    feed = Feed.in_order(dataset.images, own, batch_size, device)
    logits, was_training = [], [module for module in model.modules() if module.training]
    with torch.inference_mode(), arithmetic(), memory_errors(device, "use a smaller --image-size"):
        model.to(device).to(memory_format=memory_format(device)).eval()
        for i in range(len(own)):
            images = normalise(to_float(feed.take(i).images), mean, std)
            logits.append(logits_of(model, fit_channels(images, model)).float())
        found = [some.cpu().numpy() for some in logits]  # when all are computed: nothing waits for a copy
    for module in was_training:
        module.training = True
    shares = processes.to_all(found)
    result = np.concatenate([shares[i % processes.count][i // processes.count] for i in range(len(starts))])
    if np.isnan(result).any():
        raise WsurgeryError("the network's outputs are NaN: wsurgery show --stats says which tensors are not finite")
    return result
