"""Which hidden units can change places without changing a network's function.

Each axis of each tensor lies in a space. Axes in one space must be put in one order: the outputs of a convolution, the batch norm
behind it and the inputs of the next one; all that is added in a residual stream.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wsurgery.anatomy.blocks import Shapes
from wsurgery.errors import WsurgeryError, printable

Spaces = str | Sequence[str]  # of an axis: one, or several end to end

IMAGE, CLASSES = "image", "classes"  # what comes in and goes out keeps its order
_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Group:
    """Units that change places together.

    Attributes:
        name: of the group.
        spaces: name → number of units, cut in `blocks` equal blocks.
        blocks: heads of attention, or groups of a grouped convolution. They change places as wholes, in all spaces alike.
        rigid: the spaces whose blocks keep their order within; in the others the units of each block change places, too.
    """

    name: str
    spaces: Mapping[str, int]
    blocks: int = 1
    rigid: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Symmetry:
    """What can be permuted.

    Attributes:
        groups: each can be permuted by itself.
        axes: tensor → for each of its first axes the spaces that lie along it, end to end, with the length of each; those of
            no group keep their order. Tensors without an axis of a group are left out.
        notes: what was left as it is although it might be permuted, for people.
    """

    groups: Sequence[Group]
    axes: Mapping[str, tuple[tuple[tuple[str, int], ...], ...]]
    notes: Sequence[str]


class Network:
    """Tensors, and the spaces of their axes as far as they are known."""

    def __init__(self, shapes: Shapes, architecture: Mapping[str, Any], what: str) -> None:
        self.shapes, self.architecture, self.what = shapes, architecture, what
        self.sizes: dict[str, int] = {}
        self._axes: dict[str, list[Sequence[str]]] = {}
        self._blocks: dict[str, tuple[str, int, bool]] = {}  # space → group, its blocks, whether they are rigid
        self._fixed = {IMAGE, CLASSES}
        self._notes: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def outputs(self, module: str) -> int:
        """Return the number of a layer's outputs; 0 without a weight."""
        return (self.shapes.get(f"{module}.weight") or (0,))[0]

    def numbered(self, pattern: str) -> list[str]:
        """Return what the names begin with that the pattern matches, in the order of the numbers in it."""
        found = {match[0] for name in self.shapes if (match := re.match(rf"{pattern}(?=\.)", name))}
        return sorted(found, key=lambda part: [int(number) for number in re.findall(r"\d+", part)])

    def place(self, name: str, *axes: Spaces) -> None:
        """Say in which spaces the first axes of a tensor lie; a space that is new gets its size from it.

        A vector makes no space whose units change places: what else goes along with it would not be known.
        """
        shape = self.shapes.get(name, ())
        if len(shape) != len(axes) and not len(shape) > len(axes) == 2:  # a kernel's sides have no spaces
            raise self._unlike(name)
        self._axes[name] = [[each] if isinstance(each, str) else each for each in axes]
        for length, spaces in zip(shape, self._axes[name], strict=False):
            if len(spaces) == 1:
                if len(axes) == 1 and spaces[0] not in self.sizes.keys() | self._fixed:
                    raise self._unlike(name)
                self.sizes.setdefault(spaces[0], length)
            if sum(self.sizes[space] for space in spaces) != length:
                raise self._unlike(name)

    def vector(self, name: str, space: Spaces) -> None:
        """Place a vector, if there is one of this name."""
        if name in self:
            self.place(name, space)

    def layer(self, module: str, into: Spaces, out: Spaces) -> None:
        """Place a convolution or linear layer."""
        self.place(f"{module}.weight", out, into)
        self.vector(f"{module}.bias", out)

    def convolution(self, module: str, into: str, out: str) -> str:
        """Place a convolution that may be grouped; return the space of its outputs, which are the inputs' if it is depthwise."""
        outputs, inside = (*self.shapes.get(f"{module}.weight", ()), 0, 0)[:2]
        groups = self.sizes[into] // inside if inside else 0
        if groups <= 1:
            self.layer(module, into, out)
            return out
        if inside * groups != self.sizes[into] or outputs % groups:
            raise self._unlike(f"{module}.weight")
        if inside == 1 and outputs == groups:
            out = into
        else:
            self.blocks(module, groups, {into: True, out: False})
        self.fix(f"{module} inside")
        self.place(f"{module}.weight", out, f"{module} inside")
        self.vector(f"{module}.bias", out)
        return out

    def blocks(self, group: str, count: int, rigid: Mapping[str, bool]) -> None:
        """Say that spaces are cut in blocks, which change places together; of a space that is cut already, none will."""
        if not self._blocks.keys().isdisjoint(rigid):
            self.fix(*rigid)
        for space, is_rigid in rigid.items():
            self._blocks.setdefault(space, (group, count, is_rigid))

    def batch_norm(self, module: str, space: Spaces) -> None:
        """Place a batch norm. One without running statistics may be a group norm, which ties channels to their places."""
        self.norm(module, space)
        for part in _STATISTICS:
            self.place(f"{module}.{part}", space)
        if f"{module}.num_batches_tracked" in self:
            self.place(f"{module}.num_batches_tracked")

    def norm(self, module: str, space: Spaces) -> None:
        """Place a layer norm, if there is one."""
        for part in ("weight", "bias"):
            self.vector(f"{module}.{part}", space)

    def squeeze_and_excite(self, first: str, second: str, space: str) -> None:
        """Place the two layers that weigh the channels of a space, if there are any."""
        if f"{first}.weight" in self:
            self.layer(first, space, first)
            self.layer(second, first, space)

    def head(self, module: str, space: Spaces) -> None:
        """Place the classifier; without one the features are what the network puts out, and keep their order."""
        if f"{module}.weight" in self:
            self.layer(module, space, CLASSES)
        else:
            self.fix(*([space] if isinstance(space, str) else space))
            self.note("what the head would read is left as it is: there is none")

    def mlp(self, module: str, space: Spaces) -> None:
        """Place two layers, the first of which may make gates, too, and the norms between them."""
        hidden = f"{module}.fc1"
        self.place(f"{module}.fc2.weight", space, hidden)
        gated = self.outputs(hidden) == 2 * self.sizes[hidden]
        self.layer(hidden, space, [hidden, hidden] if gated else hidden)
        self.vector(f"{module}.fc2.bias", space)
        for norm in ("norm", "grn"):
            self.norm(f"{module}.{norm}", hidden)

    def fix(self, *spaces: str) -> None:
        """Say that the units of spaces keep their order."""
        self._fixed.update(spaces)

    def note(self, text: str) -> None:
        """Say once what is left as it is."""
        if text not in self._notes:
            self._notes.append(text)

    def symmetry(self, prefix: str) -> Symmetry:
        """Return what was placed.

        Raises:
            WsurgeryError: a tensor was not.
        """
        for name in self.shapes:
            if name not in self._axes:
                raise WsurgeryError(
                    f"{self.what}, it has no place for {printable(name)}: what may be permuted is not known"
                )
        members: dict[tuple[str, int], dict[str, bool]] = {}
        for space in self.sizes:
            group, count, rigid = self._blocks.get(space, (space, 1, False))
            members.setdefault((group, count), {})[space] = rigid
        groups = [
            Group(name, {space: self.sizes[space] for space in own}, count, frozenset(s for s in own if own[s]))
            for (name, count), own in members.items()
            if self._fixed.isdisjoint(own)
        ]
        free = {space for group in groups for space in group.spaces}
        axes = {
            prefix + name: tuple(tuple((space, self.sizes[space]) for space in each) for each in own)
            for name, own in self._axes.items()
            if any(not free.isdisjoint(each) for each in own)
        }
        return Symmetry(groups, axes, self._notes)

    def _unlike(self, name: str) -> WsurgeryError:
        if name not in self:
            return WsurgeryError(f"{self.what}, it should have {printable(name)}: what may be permuted is not known")
        shape = self.shapes[name]
        return WsurgeryError(
            f"{self.what}, {printable(name)} does not fit as {shape}: what may be permuted is not known"
        )
