"""`wsurgery push`."""

import json as json_module
from typing import TYPE_CHECKING, Annotated

import typer

from wsurgery.commands._shared import Force, Json, command, say
from wsurgery.errors import UsageError, printable

if TYPE_CHECKING:
    from wsurgery.checkpoint import Checkpoint


@command
def push(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN", help="A safetensors file, a folder of shards, a URL, or -. With --clean, the URL."
        ),
    ],
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[URL]", help="s3://bucket/name, s3://bucket/folder/ for shards, hf://org/repo[@branch][/name]."
        ),
    ] = None,
    force: Force = False,
    clean: Annotated[
        bool,
        typer.Option("--clean", help="Remove what killed uploads to URL, or to all in the folder URL/, left behind."),
    ] = False,
    json: Json = False,
) -> None:
    """Copy a checkpoint as it is to a store; all commands that write checkpoints take such an address for -o, too.

    To the hub, all files of a folder go in one commit, with a model card that the history writes unless there is a README.md.

    An object appears when all of it is there, and what is interrupted is taken back. A process that was killed, or lost its
    connection for good, leaves an upload behind, which nobody sees and the store's owner pays for: --clean removes it. It
    removes uploads that are still going on, too.

    Of a folder the shards, their index, the settings and the licence are copied.

    Example: wsurgery push net.safetensors s3://bucket/nets/net.safetensors

    Example: wsurgery push net.safetensors hf://org/net

    Example: wsurgery push --clean s3://bucket/nets/
    """
    if clean:
        _clean(source if target is None else target, json=json)
        return
    if target is None or "://" not in target:
        raise UsageError("push copies to a store: write wsurgery push IN s3://bucket/name, or hf://org/repo")
    from wsurgery.checkpoint import open_checkpoint
    from wsurgery.checkpoint.hub_api import is_repo

    if is_repo(target):
        target += "/"
    with open_checkpoint(source) as checkpoint:
        written = _copy(checkpoint, target, force=force)
        checkpoint.finish()
    if json:
        typer.echo(json_module.dumps({"written": written}))
    else:
        say("\n".join(written))


def _copy(checkpoint: "Checkpoint", target: str, *, force: bool) -> list[str]:
    from contextlib import ExitStack

    from wsurgery.checkpoint import open_output
    from wsurgery.checkpoint.companions import companions, model_folder
    from wsurgery.checkpoint.shards import INDEX, WHOLE, ShardedCheckpoint, format_index
    from wsurgery.checkpoint.sink import Sink, settle, write_all
    from wsurgery.checkpoint.writer import is_there

    def size(each: "Checkpoint") -> int:
        return sum(tensor.nbytes for tensor in each.tensors.values())

    shards = checkpoint.shards if isinstance(checkpoint, ShardedCheckpoint) else {WHOLE: checkpoint}
    if not target.endswith("/"):
        with open_output(target, force=force, size=size(checkpoint)) as stream:
            checkpoint.copy_whole_to(stream)
        return [target]
    beside = model_folder(checkpoint.path)
    others = companions(beside, lambda name: not force and is_there(target + name)) if beside else {}
    with ExitStack() as stack:  # left in reverse: the index, which makes a checkpoint of the shards, appears last

        def opened(name: str, size: int = 0) -> Sink:
            return stack.enter_context(open_output(target + name, force=force, size=size))

        if len(shards) > 1:
            infos = {name: [x.placed(0) for x in shard.tensors.values()] for name, shard in shards.items()}
            write_all(opened(INDEX), format_index(infos))
        for name, content in others.items():
            write_all(opened(name), content)
        for name, shard in shards.items():
            stream = opened(name, size(shard))
            shard.reopen()
            shard.copy_whole_to(stream)
            shard.finish()
            shard.rest()
            settle(stream)
    return [target + name for name in (*shards, *([INDEX] if len(shards) > 1 else []), *others)]


def _clean(url: str, *, json: bool) -> None:
    from wsurgery.checkpoint.upload import remove, unfinished

    if url.startswith("hf://"):
        raise UsageError(
            f"{printable(url)}: the hub keeps nothing of an upload that was not finished: there is nothing to clean"
        )
    found = unfinished(url)
    for upload in found:
        remove(upload)
    if json:
        typer.echo(json_module.dumps({"removed": [upload._asdict() for upload in found]}))
    else:
        for upload in found:
            say(f"removed an upload of {printable(upload.url)}, begun {upload.begun} UTC")
        if not found:
            say(f"{printable(url)}: no unfinished upload")
