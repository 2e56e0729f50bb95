"""Whether tensors are those of the network that something says they are of."""

from collections.abc import Mapping
from typing import Any

from wsurgery.commands._shared import say
from wsurgery.errors import UsageError, WsurgeryError, printable

Shapes = Mapping[str, tuple[int, ...]]


def require_fit(architecture: dict[str, Any], shapes: Shapes) -> None:
    """Check that tensors are those of the network that the user named.

    Raises:
        UsageError: they are not, or there is no such network.
    """
    name = printable(architecture["name"])
    wrong = misfit(architecture, shapes)
    if wrong is None:
        say(f"timm is not installed: whether these are the tensors of {name} was not checked")
    elif wrong:
        raise UsageError(
            f"--arch {name}: {wrong}: name the network that it is of, or add --arg KEY=VALUE; --key takes another entry"
        )


def fits(architecture: dict[str, Any], shapes: Shapes) -> bool:
    """Whether a network that a file names is one of timm's, and these are its tensors."""
    try:
        return misfit(architecture, shapes) == ""
    except WsurgeryError:  # no such network, or one far larger than the file
        return False


def believed(
    architecture: dict[str, Any], shapes: Shapes, who: str, says: list[str], *, builds: bool = True
) -> dict[str, Any] | None:
    """Return a network that a stranger's file or the sizes tell, or None, and why, where these are not its tensors.

    Args:
        architecture: the network.
        shapes: tensor name → shape.
        who: what tells it, `config.json`.
        says: what is to be said, to which the reason is added.
        builds: whether timm is asked, which takes seconds; else only networks are known that need no torch.
    """
    try:
        wrong = misfit(architecture, shapes, builds=builds)
    except WsurgeryError as error:
        wrong = str(error)
    if not wrong:
        return architecture
    says.append(f"not recorded as {printable(architecture['name'])}, which it is by {who}: {wrong}")
    return None


def misfit(architecture: dict[str, Any], shapes: Shapes, *, builds: bool = True) -> str | None:
    """Say what is not as timm's network has it, nothing if all is; None if that cannot be known.

    Raises:
        UsageError: there is no such network.
        WsurgeryError: it is far larger than the file.
    """
    from wsurgery.operations.architectures import find_layout

    if layout := find_layout(architecture):
        own = layout.shapes
    elif not builds:
        return None
    else:
        try:
            from wsurgery.models.load import state_shapes
        except ModuleNotFoundError:
            return None
        own = state_shapes(architecture, shapes)
    for name in (*own, *shapes):
        if own.get(name) != shapes.get(name) and not name.endswith("num_batches_tracked"):
            here, there = (str(known[name]) if name in known else "not" for known in (shapes, own))
            return f"{printable(name)} is {here} in the file and {there} in the network"
    return ""
