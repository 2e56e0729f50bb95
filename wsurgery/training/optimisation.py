"""What a step of training needs: which tensors move, the loss, the optimiser, and its learning rate's schedule."""

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.scheduler import MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from wsurgery.anatomy import role_map
from wsurgery.anatomy.roles import LAYERS
from wsurgery.checkpoint import TensorInfo
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.lazy_dynamo import without_dtensor
from wsurgery.training.settings import Settings

with without_dtensor():
    from timm.optim import create_optimizer_v2, get_optimizer_class


def freeze(model: nn.Module, globs: tuple[str, ...], more: Collection[str] = ()) -> list[nn.Module]:
    """Take the tensors that `globs` name, and those of the names in `more`, out of training.

    Of the names of a tied tensor one is enough.

    Returns:
        The modules that hold a frozen buffer, as running statistics or spectral norm's vectors: they themselves, not what
        is in them, must be in eval mode during training.

    Raises:
        WsurgeryError: a glob names no tensor of the network, or everything is frozen.
    """
    tensors = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name, _ in tensors):
            raise WsurgeryError(f"the freeze specification names {printable(glob)!r}, which matches no tensor")
    # By what they are: a tied tensor has several names.
    frozen = {id(x) for name, x in tensors if name in more or any(fnmatchcase(name, glob) for glob in globs)}
    for parameter in model.parameters():
        if id(parameter) in frozen:  # what the network itself has frozen stays so
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        which = "the freeze specification leaves" if not more else "--lr-scale and the freeze specification leave"
        raise WsurgeryError(f"{which} nothing to train: freeze fewer blocks")
    return [
        module
        for module in model.modules()
        if any(id(x) in frozen for name, x in module._buffers.items() if name not in module._non_persistent_buffers_set)
    ]


def zeros_of_layers(model: nn.Module) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """Find the trained weights of convolutions and linear layers that are zero; norms and biases begin so, and are none.

    Returns:
        Each tensor that has some, and where they are: a mask of its shape.
    """
    state = (*model.named_parameters(), *model.named_buffers())
    roles = role_map({name: TensorInfo(name, "F32", tuple(x.shape), 0, 0) for name, x in state})
    trained = [x for name, x in model.named_parameters() if x.requires_grad and roles[name] in LAYERS]
    return [(x, zero) for x in trained if (zero := x.detach() == 0).any()]


def masked_loss(logits: torch.Tensor, labels: torch.Tensor, pos_weight: torch.Tensor | None = None) -> torch.Tensor:
    """Return the binary cross-entropy averaged over the known labels.

    Args:
        logits: (b, k).
        labels: (b, k), 0 or 1, NaN for unknown.
        pos_weight: (k,), by which the loss of a positive is multiplied; None is 1.
    """
    known = ~labels.isnan()
    losses = nn.functional.binary_cross_entropy_with_logits(
        logits, labels.nan_to_num(), reduction="none", pos_weight=pos_weight
    )
    return (losses * known).sum() / known.sum().clamp(min=1)


def softmax_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of classes that exclude each other.

    Args:
        logits: (b, k).
        labels: (b, k), of which exactly one a row is 1.
    """
    return nn.functional.cross_entropy(logits, (labels == 1).int().argmax(1))


def positive_weights(
    chosen: str | Sequence[tuple[str, float]], names: Sequence[str], labels: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return how much a positive of each of the k labels counts, (k,).

    Args:
        chosen: `auto`, negatives over positives, and 1 for a label that lacks either; or pairs of label and weight.
        names: the labels.
        labels: (n, k), of the training images: 0, 1, or NaN for unknown.

    Raises:
        UsageError: a label that is not there.
    """
    if isinstance(chosen, str):  # auto
        positives, negatives = ((labels == value).sum(0) for value in (1, 0))
        both = (positives > 0) & (negatives > 0)
        return np.where(both, negatives / positives.clip(1), 1).astype(np.float32)
    weights = dict(chosen)
    if missing := [name for name in weights if name not in names]:
        there = printable(", ".join(names), 1000)
        raise UsageError(f"--pos-weight {printable(missing[0])}: no such label; the labels are {there}")
    return np.array([weights.get(name, 1) for name in names], np.float32)


def make_optimizer(
    parameters: list[nn.Parameter], settings: Settings, scales: Sequence[float] | None = None
) -> torch.optim.Optimizer:
    """Make timm's optimiser for the parameters, fused into few kernels where they are on a CUDA device.

    Args:
        parameters: which move.
        settings: its name and numbers.
        scales: of the learning rate, one for each parameter. Those of one scale are a group; that of scale 1 is the first.

    Raises:
        UsageError: timm does not know the optimiser, or not its weight decay.
    """
    name, more = settings.optimizer, dict[str, Any]()
    try:
        if parameters[0].device.type == "cuda" and has_fused(name):
            more["fused"] = True
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            parameters if scales is None else _groups(parameters, scales, settings.lr),
            opt=name,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            momentum=0.9,
            **more,
        )
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:  # what timm's optimisers raise
        raise UsageError(f"optimizer {printable(name)}: {printable(str(error))}") from None
    return optimizer


def has_fused(name: str) -> bool:
    """Whether an optimiser of timm's has fused kernels; of `lookahead_adam` and the like, what follows the prefix."""
    try:
        kind = get_optimizer_class(name.rpartition("_")[2], bind_defaults=False)
    except ValueError:  # as making it says
        return False
    return "fused" in signature(kind).parameters


def _groups(parameters: list[nn.Parameter], scales: Sequence[float], lr: float) -> list[dict[str, Any]]:
    # Not timm's `lr_scale`, which only its schedules heed; they begin from the group's own rate, too.
    return [
        {"params": [x for x, own in zip(parameters, scales, strict=True) if own == scale], "lr": lr * scale}
        for scale in sorted(set(scales), key=lambda scale: (scale != 1, -scale))
    ]


def make_scheduler(optimizer: torch.optim.Optimizer, settings: Settings, *, epoch_steps: int) -> Scheduler | None:
    """Make the schedule of the settings' warm-up and decay, by steps; None where they have neither."""
    if not (settings.warmup_epochs or settings.decay_epochs):
        return None
    return MultiStepLRScheduler(
        optimizer,
        decay_t=[epoch * epoch_steps + 1 for epoch in settings.decay_epochs],  # timm decays a step early
        decay_rate=0.1,
        warmup_t=settings.warmup_epochs * epoch_steps,
        warmup_lr_init=0.0,
        warmup_prefix=False,  # epochs count from the beginning, not from the end of the warm-up
        t_in_epochs=False,
    )
