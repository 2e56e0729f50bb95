"""New names for tensors."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from wsurgery.anatomy import globs_for
from wsurgery.anatomy.blocks import user_block_map
from wsurgery.checkpoint import Checkpoint
from wsurgery.checkpoint.provenance import KEY, History
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.operations.tensor_edit import Result, TensorEdit, copies


def new_names(names: Iterable[str], pattern: str, replacement: str, *, chosen: Collection[str]) -> dict[str, str]:
    r"""Rename tensors as `re.sub` does: every match in a name is replaced.

    Args:
        names: all tensors.
        pattern: a Python regular expression.
        replacement: what each match becomes; `\1` and `\g<name>` are captures.
        chosen: the tensors to which it applies; the others keep their names.

    Returns:
        Old name → new name, in the order of `names`.

    Raises:
        UsageError: the pattern or the replacement is malformed, or the pattern matches no chosen name.
        WsurgeryError: two tensors would have one name, or one a name that the format cannot hold.
    """
    names = list(names)
    try:
        expression = re.compile(pattern)
        matched = [name for name in names if name in chosen and expression.search(name)]
        renamed = {name: expression.sub(replacement, name) for name in matched}
    except (re.error, IndexError, OverflowError, RecursionError) as error:
        what = f"{printable(pattern)!r} with the replacement {printable(replacement)!r}"
        raise UsageError(f"{what} is not a regular expression: {printable(str(error))}") from None
    if not renamed:
        some = ", ".join(printable(name, 60) for name in names if name in chosen)
        raise UsageError(f"{printable(pattern)!r} matches no tensor: the names here are like {printable(some)}")
    result = {name: renamed.get(name, name) for name in names}
    owner: dict[str, str] = {}
    for old, new in result.items():
        if not can_be_held(new):
            raise WsurgeryError(f"{printable(old)} would be called {printable(new)!r}, which no tensor can be")
        if new in owner:
            raise WsurgeryError(
                f"{printable(owner[new])} and {printable(old)} would both be called {printable(new)}: "
                "capture what tells them apart, or drop one first"
            )
        owner[new] = old
    return result


def renamed_history(
    history: History, tensors: Collection[str], names: Mapping[str, str], aliases: Mapping[str, str]
) -> History:
    """Let the freeze specification and the aliases of tied tensors follow their tensors.

    Args:
        history: of the checkpoint.
        tensors: all of its tensors.
        names: old name → new name, of the tensors that remain.
        aliases: the same, of the aliases.
    """
    return replace(
        history,
        freeze=frozen_after(history.freeze, dict(names)),
        others=aliases_after(history.others, history.aliases(tensors), {**names, **aliases}),
    )


def subset(checkpoint: Checkpoint, stays: Collection[str]) -> Result:
    """Keep some tensors of a checkpoint; a tied one under those of its names that stay.

    Args:
        checkpoint: open.
        stays: names of tensors, and aliases of tied ones.

    Raises:
        UsageError: none is left.
    """
    if not stays:
        raise UsageError("that is every tensor: a checkpoint without tensors is of no use")
    history = History.of(checkpoint)
    aliases = history.aliases(checkpoint.tensors)
    names: dict[str, str] = {}  # tensor → the first of its names that stays
    for name in (*checkpoint.tensors, *aliases):
        if name in stays:
            names.setdefault(aliases.get(name, name), name)
    edits = [
        TensorEdit(replace(tensor, name=names[name]), checkpoint, tensor)
        for name, tensor in checkpoint.tensors.items()
        if name in names
    ]
    ties = {alias: names[name] for alias, name in aliases.items() if alias in stays and alias != names[name]}
    others = {key: text for key, text in history.others.items() if key not in aliases} | ties
    says = [
        f"{printable(new)} stays: it was tied to {printable(old)}, which goes"
        for old, new in names.items()
        if old != new
    ]
    return Result(edits, replace(history, freeze=frozen_after(history.freeze, names), others=others), says=says)


def frozen_after(globs: Collection[str], names: dict[str, str]) -> tuple[str, ...]:
    """Rewrite a freeze specification for new names.

    Args:
        globs: the specification.
        names: old name → new name of the tensors that remain.

    Returns:
        Globs of the same tensors under their new names; `globs` as it was if it still means the same.
    """
    frozen = {new for old, new in names.items() if any(fnmatchcase(old, glob) for glob in globs)}
    useful = tuple(glob for glob in globs if any(fnmatchcase(new, glob) for new in names.values()))
    if frozen == {new for new in names.values() if any(fnmatchcase(new, glob) for glob in useful)}:
        return useful
    return tuple(globs_for(frozen, names.values()))


def blocks_after(blocks: Mapping[str, Sequence[str]], names: Mapping[str, str]) -> Mapping[str, Sequence[str]] | None:
    """Rewrite a block map for new names.

    Args:
        blocks: block name → globs.
        names: old name → new name of the tensors that remain.

    Returns:
        The map as it was if no name is new; else that of the new names, without blocks that have no tensor. None where it
        did not place every tensor in one block.
    """
    if all(old == new for old, new in names.items()):
        return blocks
    try:
        members = user_block_map(names, blocks)
    except UsageError:
        return None
    renamed = {
        block: globs_for({names[old] for old in members if members[old] == block}, names.values()) for block in blocks
    }
    return {block: globs for block, globs in renamed.items() if globs}


def aliases_after(metadata: Mapping[str, str], aliases: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    """Rewrite the aliases of tied tensors for new names.

    Args:
        metadata: the entries of other tools, the aliases among them.
        aliases: alias → the tensor that it is.
        names: old name → new name, of the tensors that remain and of their aliases.

    Returns:
        The metadata with new aliases; one whose tensor is gone is gone.
    """
    kept = {names[alias]: names[tensor] for alias, tensor in aliases.items() if tensor in names}
    return {name: text for name, text in metadata.items() if name not in aliases} | kept


def can_be_held(name: str) -> bool:
    """Whether a tensor in a file may have this name."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return name not in ("", "__metadata__")


def joined(sources: Sequence[Checkpoint]) -> Result:
    """Put checkpoints that share no tensor in one, with the first one's metadata.

    Raises:
        WsurgeryError: two have a tensor of one name.
    """
    owner: dict[str, Checkpoint] = {}
    for source in sources:
        for name in source.tensors:
            if name in owner:
                raise WsurgeryError(
                    f"{printable(name)} is in {owner[name].label} and in {source.label}: drop it from one, or rename it"
                )
            owner[name] = source
    histories = [History.of(source) for source in sources]
    aliases: dict[str, str] = {}
    frozen: set[str] = set()
    for source, history in zip(sources, histories, strict=True):
        own = history.aliases(source.tensors)
        aliases |= {alias: name for alias, name in own.items() if alias not in owner}
        frozen |= {name for name in source.tensors if any(fnmatchcase(name, glob) for glob in history.freeze)}
    first = histories[0]
    freeze = first.freeze if len(sources) == 1 else tuple(globs_for(frozen, owner))
    history = replace(first, freeze=freeze, others={**aliases, **first.others})
    return Result([edit for source in sources for edit in copies(source)], history)


def with_metadata(checkpoint: Checkpoint, entries: Sequence[str], gone: Sequence[str]) -> History:
    """Set and delete entries of the metadata.

    Args:
        checkpoint: whose history it is.
        entries: `KEY=VALUE` each.
        gone: keys.

    Raises:
        UsageError: an entry is none, is wsurgery's own, or is not there.
    """
    history = History.of(checkpoint)
    others = {"format": "pt", **history.others}
    for key in gone:
        if key in (KEY, "format"):
            why = "the history, which stays" if key == KEY else "what other tools ask for first: set another value"
            raise UsageError(f"--delete {key}: that is {why}")
        if key not in others:
            raise UsageError(
                f"--delete {printable(key)}: there is no such entry; there are {printable(', '.join(others), 500)}"
            )
        del others[key]
    for entry in entries:
        key, equals, value = entry.partition("=")
        if not equals or not can_be_held(key) or not can_be_held(value + "."):
            raise UsageError(f"--set {printable(entry, 80)}: write it as KEY=VALUE, in UTF-8")
        if key == KEY:
            raise UsageError(f"--set {key}: that is the history, which is wsurgery's own")
        others[key] = value
    return replace(history, others=others)
