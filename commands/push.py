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
            metavar="[URL]",
            help="s3://bucket/name, s3://bucket/folder/ for shards, hf://org/repo[@branch][/name.safetensors].",
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

    To the hub, all files of a folder go in one commit, with its README.md, or a model card that the history writes where neither
    it nor the model has one.

    An object appears when all of it is there, and what is interrupted is taken back. A process that was killed, or lost its
    connection for good, leaves an upload behind, which nobody sees and the store's owner pays for: --clean removes it. It
    removes uploads that are still going on, too.

    Of a folder here the shards, their index, the settings and the licence are copied; of a URL the weights alone.

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
    if json:
        typer.echo(json_module.dumps({"written": written}))
    else:
        say("\n".join(written))


def _copy(checkpoint: "Checkpoint", target: str, *, force: bool) -> list[str]:
    from wsurgery.checkpoint import open_output
    from wsurgery.checkpoint.companions import Companions, companions, left_behind, model_folder
    from wsurgery.checkpoint.output_folder import open_folder_output
    from wsurgery.checkpoint.shards import INDEX, WHOLE, ShardedCheckpoint, format_index
    from wsurgery.checkpoint.sink import Sink, settle
    from wsurgery.checkpoint.writer import is_there
    from wsurgery.operations.rewrite import require_own_format

    def size(each: "Checkpoint") -> int:
        return sum(tensor.nbytes for tensor in each.tensors.values())

    def copy(each: "Checkpoint", stream: Sink) -> None:
        each.reopen()
        each.copy_whole_to(stream)
        each.finish()  # before it appears
        each.rest()

    if not target.endswith("/"):
        require_own_format(target)
        with open_output(target, force=force, size=size(checkpoint)) as stream:
            copy(checkpoint, stream)
        return [target]
    shards, index = {WHOLE: checkpoint}, None
    if isinstance(checkpoint, ShardedCheckpoint):
        shards = checkpoint.shards
        index = format_index({name: [x.placed(0) for x in shard.tensors.values()] for name, shard in shards.items()})
    model = model_folder(checkpoint.path)
    more = ["README.md"] if target.startswith("hf://") else []
    beside, said = Companions({}, left_behind(checkpoint))
    if model:
        beside, said = companions(model, lambda name: not force and is_there(target + name), more=more)
    sizes = {name: size(shard) for name, shard in shards.items()}
    with open_folder_output(lambda name: target + name, sizes, index=index, beside=beside, force=force) as streams:
        for name, stream in streams.items():
            copy(shards[name], stream)
            settle(stream)
    for line in said:
        say(line)
    return [target + name for name in (*shards, *([] if index is None else [INDEX]), *beside)]


def _clean(url: str, *, json: bool) -> None:
    from wsurgery.checkpoint.upload import remove, unfinished

    if url.startswith("hf://"):
        raise UsageError(
            f"{printable(url)}: the hub keeps nothing of an upload that was not finished: there is nothing to clean"
        )
    found = [upload for upload in unfinished(url) if remove(upload)]  # and not those that have ended meanwhile
    if json:
        typer.echo(json_module.dumps({"removed": [upload._asdict() for upload in found]}))
    else:
        for upload in found:
            say(f"removed an upload of {printable(upload.url)}, begun {upload.begun} UTC")
        if not found:
            say(f"{printable(url)}: no unfinished upload")
