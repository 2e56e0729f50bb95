"""How far each block of a network in training has moved from where it began."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

import torch
from torch import nn

from wsurgery.anatomy.blocks import place
from wsurgery.errors import UsageError


class DistanceFromInit:
    """The parameters that a training began with, of those that it moves a copy on their device."""

    def __init__(self, model: nn.Module, blocks: Mapping[str, Sequence[str]] | None = None) -> None:
        """Remember where a network begins.

        Args:
            model: the network; which parameters are frozen is known.
            blocks: a user's own block map. One that does not fit the network's own names places nothing.
        """
        shapes = {name: tuple(x.shape) for name, x in model.named_parameters()}
        self._members: dict[str, list[str]] = {}
        with suppress(UsageError):
            for name, block in place(shapes, blocks).items():
                self._members.setdefault(block, []).append(name)
        parameters = dict(model.named_parameters())
        squares = _squares(parameters.items())
        self._squares = {block: sum(squares[name] for name in names) for block, names in self._members.items()}
        self._begun = {name: x.detach().clone() for name, x in parameters.items() if x.requires_grad}

    def of(self, model: nn.Module) -> dict[str, float | None]:
        """Return ‖W − W₀‖ / ‖W₀‖ over the parameters of each block, by block, in the order in which data meets them.

        Running statistics, which no gradient moves, are not in it. None where it is not finite, or W₀ is 0 and W is not.

        Args:
            model: the network, or another with its parameters' names, such as its moving average.
        """
        now = dict(model.named_parameters())
        moved = _squares((name, now[name].detach() - begun) for name, begun in self._begun.items())
        return {
            block: _relative(sum(moved.get(name, 0.0) for name in names), self._squares[block])
            for block, names in self._members.items()
        }


def _squares(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, float]:
    """Return ‖x‖² of each tensor, by name, asking the device once and holding one at a time."""
    norms = {name: torch.linalg.vector_norm(x.detach().float()) for name, x in tensors}
    values = torch.stack([*norms.values()]).tolist() if norms else []
    return {name: value * value for name, value in zip(norms, values, strict=True)}


def _relative(moved: float, begun: float) -> float | None:
    if not moved:
        return 0.0
    found = math.sqrt(moved / begun) if begun else math.inf
    return found if math.isfinite(found) else None
