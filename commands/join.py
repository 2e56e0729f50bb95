"""`wsurgery join`."""

from typing import Annotated

from wsurgery.plugin import Argument, Checkpoint, Result, edit


@edit()
def join(
    sources: Annotated[list[Checkpoint], Argument(metavar="A B ...", help="Checkpoints; A may be -, standard input.")],
) -> Result:
    """Put checkpoints that share no tensor together in one: those of A, then those of B, and so on.

    The architecture and what other tools say in the metadata are A's; what is frozen or tied stays so.

    Example: wsurgery join encoder.safetensors decoder.safetensors > whole.safetensors
    """
    from wsurgery.operations.names import joined

    return joined(sources)
