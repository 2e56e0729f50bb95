"""`wsurgery set-metadata`."""

from typing import Annotated

from wsurgery.plugin import Checkpoint, Option, Result, UsageError, copies, edit


@edit()
def set_metadata(
    checkpoint: Checkpoint,
    *,
    set_: Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help="Set an entry; repeatable.")] = None,
    delete: Annotated[list[str] | None, Option(metavar="KEY", help="Take an entry away; repeatable.")] = None,
) -> Result:
    """Set and delete entries of the metadata that other tools read, such as license or modelspec.title.

    The entry `wsurgery`, the history, is left alone, and `format` can be set and not deleted. `show --metadata` lists all.

    Example: wsurgery set-metadata a.safetensors --set license=apache-2.0 --delete author > licensed.safetensors
    """
    from wsurgery.operations.names import with_metadata

    if not (set_ or delete):
        raise UsageError(
            "what? Give --set KEY=VALUE, --delete KEY or both; wsurgery show --metadata lists what there is"
        )
    return Result(copies(checkpoint), with_metadata(checkpoint, set_ or [], delete or []))
