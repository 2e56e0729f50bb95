"""What a step of training needs: which tensors move, the loss, the optimiser, and its learning rate's schedule."""

from fnmatch import fnmatchcase
from inspect import signature
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class
from timm.scheduler import MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.training.settings import Settings


def freeze(model: nn.Module, globs: tuple[str, ...]) -> list[nn.Module]:
    """Take the tensors that `globs` name out of training.

    Returns:
        The modules whose running statistics are frozen: they must be in eval mode during training.

    Raises:
        WsurgeryError: a glob names no tensor of the network, or everything is frozen.
    """
    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise WsurgeryError(f"the freeze specification names {printable(glob)!r}, which matches no tensor")

    def frozen(name: str) -> bool:
        return any(fnmatchcase(name, glob) for glob in globs)

    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen(name))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise WsurgeryError("the freeze specification leaves nothing to train: freeze fewer blocks")
    return [
        module
        for prefix, module in model.named_modules()
        if "running_mean" in module._buffers and frozen(f"{prefix}.running_mean")
    ]


def masked_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the binary cross-entropy averaged over the known labels.

    Args:
        logits: (b, k).
        labels: (b, k), 0 or 1, NaN for unknown.
    """
    known = ~labels.isnan()
    losses = nn.functional.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
    return (losses * known).sum() / known.sum().clamp(min=1)


def make_optimizer(parameters: list[nn.Parameter], settings: Settings) -> torch.optim.Optimizer:
    """Make timm's optimiser for the parameters, fused into few kernels where they are on a CUDA device.

    Raises:
        UsageError: timm does not know the optimiser, or not its weight decay.
    """
    name, more = settings.optimizer, dict[str, Any]()
    try:
        on_cuda = parameters[0].device.type == "cuda"
        if on_cuda and "fused" in signature(get_optimizer_class(name, bind_defaults=False)).parameters:
            more["fused"] = True
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            parameters,
            opt=name,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            momentum=0.9,
            **more,
        )
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:  # what timm's optimisers raise
        raise UsageError(f"optimizer {printable(name)}: {printable(str(error))}") from None
    return optimizer


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
