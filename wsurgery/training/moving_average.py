"""`--ema`: a moving average of a network's weights and running statistics."""

from copy import deepcopy

import torch
from torch import nn


class MovingAverage:
    """What timm's ModelEmaV3 is, but that it averages a tied tensor once a step, however many names it has.

    Attributes:
        network: a copy, in eval mode, whose tensors are the averages; of integers, the last ones.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = deepcopy(network).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, *, is_first: bool) -> None:
        """Move by `1 - decay` towards a network with the same tensors; at the first step all the way."""
        own, theirs = (each.state_dict(keep_vars=True).values() for each in (self.network, network))
        pairs = list({id(mine): (mine, x) for mine, x in zip(own, theirs, strict=True)}.values())
        moving = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_(
            [mine for mine, _ in moving], [x for _, x in moving], weight=1.0 if is_first else 1.0 - self.decay
        )
        for mine, x in pairs:
            if not mine.is_floating_point():
                mine.copy_(x)
