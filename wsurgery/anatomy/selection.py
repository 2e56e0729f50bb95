"""The part of a checkpoint that a command acts on."""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from wsurgery.anatomy.blocks import UNPLACED, find_block, place
from wsurgery.anatomy.roles import ROLES, Described, matches_role, role_map
from wsurgery.errors import UsageError, printable


@dataclass(frozen=True)
class Selection:
    """What the selectors of the command line say. Each one given narrows the part; none at all means everything."""

    upto: str | None = None  # this block, or this part of the numbered blocks (50%), and all before it
    blocks: str | None = None  # block names, comma-separated; ^ before one leaves it out
    role: str | None = None  # roles, comma-separated
    only: tuple[str, ...] = ()  # globs of tensor names: at least one must match
    except_: tuple[str, ...] = ()  # globs of tensor names: none may match
    block_map: Mapping[str, Sequence[str]] | None = None  # a user's own: block name → globs of tensor names
    aliases: Mapping[str, str] = field(
        default_factory=dict
    )  # tied tensors: another name → the one that stands in the file

    def __post_init__(self) -> None:
        for option, value in (("upto", self.upto), ("blocks", self.blocks), ("role", self.role)):
            if value == "":  # a variable of the shell that is not set
                raise UsageError(f"--{option} is empty: say which, or leave it out for all")

    def with_map(self, blocks: Mapping[str, Sequence[str]] | None) -> "Selection":
        """Return the selection with a block map, if it has none of its own."""
        return self if blocks is None or self.block_map is not None else replace(self, block_map=blocks)

    def with_aliases(self, aliases: Mapping[str, str]) -> "Selection":
        """Return the selection for a checkpoint with tied tensors, each of which is selected by any of its names."""
        return replace(self, aliases=aliases) if aliases else self

    @property
    def arguments(self) -> list[str]:
        """The selectors as typed."""
        return self._words(None)

    @property
    def recorded(self) -> list[str]:
        """The selectors and the block map, by its content, so that a record needs no file."""
        return self._words(self.block_map)

    def _words(self, blocks: Mapping[str, Sequence[str]] | None) -> list[str]:
        single = [("--upto", self.upto), ("--blocks", self.blocks), ("--role", self.role)]
        if blocks is not None:
            content = json.dumps(blocks, separators=(",", ":"))
            single.append(("--block-map", content.replace("/", "\\u002f")))  # a word with a slash may not be replayed
        many = [("--only", glob) for glob in self.only] + [("--except", glob) for glob in self.except_]
        return [word for option, value in single + many if value is not None for word in (option, value)]

    def place(self, tensors: Mapping[str, Described]) -> dict[str, str]:
        """Return tensor name → block name, by the user's block map or else by `anatomy.block_map`."""
        return place({name: tensor.shape for name, tensor in tensors.items()}, self.block_map)

    def names(self, tensors: Mapping[str, Described], *, beside: Iterable[str] = ()) -> set[str]:
        """Return the names of the selected tensors.

        Args:
            tensors: of a checkpoint.
            beside: names in other checkpoints, of which a glob of `--except` may be instead.

        Raises:
            UsageError: a block, role or glob that matches nothing, or selectors that together leave nothing.
        """
        aliases = self._aliases_in(tensors)
        return {aliases.get(name, name) for name in self._all_names(tensors, beside)}

    def every_name(self, tensors: Mapping[str, Described]) -> set[str]:
        """Return the selected names, those that are aliases of tied tensors among them.

        Raises:
            UsageError: as `names`.
        """
        chosen = self._all_names(tensors)
        if self.block_map is not None:  # by which an alias goes with its tensor
            chosen |= {alias for alias, name in self.aliases.items() if name in chosen}
        return chosen

    def unselected_ties(self, tensors: Mapping[str, Described]) -> set[str]:
        """Return the aliases that are selected without the tensor that they are, or not selected with it."""
        chosen = self._all_names(tensors)
        return {alias for alias, name in self._aliases_in(tensors).items() if (alias in chosen) != (name in chosen)}

    def _aliases_in(self, tensors: Mapping[str, Described]) -> dict[str, str]:
        if self.block_map is not None:  # it has no place for them
            return {}
        return {alias: name for alias, name in self.aliases.items() if name in tensors and alias not in tensors}

    def _all_names(self, tensors: Mapping[str, Described], beside: Iterable[str] = ()) -> set[str]:
        """The selected names, aliases among them."""
        aliases = self._aliases_in(tensors)
        tensors = {**tensors, **{alias: tensors[name] for alias, name in aliases.items()}} if aliases else tensors
        chosen = set(tensors)
        if self.upto or self.blocks:
            blocks = self.place(tensors)
            if self.upto:
                chosen &= _upto(_last_block(self.upto, blocks), blocks)
            if self.blocks:
                wanted = _wanted(self.blocks.split(","), blocks)
                chosen &= {name for name, block in blocks.items() if block in wanted}
        if self.role:
            chosen &= _with_roles(self.role.split(","), tensors)
        if self.only:
            chosen &= set().union(*(_matching(glob, tensors) for glob in self.only))
        for glob in self.except_:
            left_out = {aliases.get(name, name) for name in _matching(glob, {**tensors, **dict.fromkeys(beside)})}
            chosen -= left_out | {alias for alias, name in aliases.items() if name in left_out}
        if not chosen and tensors:
            raise UsageError("the selectors together leave no tensor: wsurgery show lists blocks, roles and names")
        return chosen


def globs_for(names: Collection[str], universe: Iterable[str]) -> list[str]:
    """Write `names` as the shortest globs, module by module, that match nothing else in `universe`."""
    chosen = set(names)
    globs: list[str] = []

    def visit(prefix: str, inside: list[str]) -> None:
        if chosen.issuperset(inside):
            globs.append(f"{_escape(prefix)}*")
            return
        parts: dict[str, list[str]] = {}
        for name in inside:
            parts.setdefault(name[len(prefix) :].partition(".")[0], []).append(name)
        for part, members in parts.items():
            if prefix + part in chosen:
                globs.append(_escape(prefix + part))
            below = [name for name in members if name.startswith(f"{prefix}{part}.")]
            if not chosen.isdisjoint(below):
                visit(f"{prefix}{part}.", below)

    if chosen:
        visit("", list(universe))
    return globs


def _last_block(word: str, blocks: Mapping[str, str]) -> str:
    """Find the block that `--upto` names: `50%` is the last of the first half of the numbered ones, at least the first."""
    percent = re.fullmatch(r"(\d+(?:\.\d+)?)%", word)
    if not percent:
        return find_block(word, blocks)
    numbered = [block for block in dict.fromkeys(blocks.values()) if re.fullmatch(r"block\d+", block)]
    if not numbered or not 0 < float(percent[1]) <= 100:
        have = ", ".join(dict.fromkeys(blocks.values()))
        raise UsageError(
            f"--upto {word}: give more than 0% and at most 100% of numbered blocks; this network has {have}"
        )
    return numbered[max(1, int(len(numbered) * float(percent[1]) / 100 + 0.5)) - 1]


def _wanted(words: Sequence[str], blocks: Mapping[str, str]) -> set[str]:
    """Return the blocks that are named, or all, without those that are named behind a ^."""
    without = {find_block(word[1:], blocks) for word in words if word.startswith("^")}
    named = {find_block(word, blocks) for word in words if not word.startswith("^")}
    return (named or {*blocks.values()}) - without


def _upto(last: str, blocks: Mapping[str, str]) -> set[str]:
    lost = [name for name, block in blocks.items() if block == UNPLACED]
    if lost:
        raise UsageError(
            f"{printable(lost[0])} (and {len(lost) - 1} more) has no known place in the network, so --upto {last} "
            "would be a guess: say where it stands with --block-map, or name the part with --only"
        )
    order = list(dict.fromkeys(blocks.values()))
    kept = set(order[: order.index(last) + 1])
    return {name for name, block in blocks.items() if block in kept}


def _with_roles(wanted: Iterable[str], tensors: Mapping[str, Described]) -> set[str]:
    roles = role_map(tensors)
    chosen: set[str] = set()
    for role in wanted:
        found = {name for name, actual in roles.items() if matches_role(actual, role, tensors[name].shape)}
        if not found:
            present = ", ".join(known for known in ROLES if known in roles.values())
            raise UsageError(f"no tensor has the role {printable(role)!r}: the roles here are {present}")
        chosen |= found
    return chosen


def _matching(glob: str, names: Iterable[str]) -> set[str]:
    found = {name for name in names if fnmatchcase(name, glob)}
    if not found:
        some = ", ".join(printable(name, 60) for name in list(names)[:3])
        raise UsageError(f"{printable(glob)!r} matches no tensor: the names here are like {some}")
    return found


def _escape(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
