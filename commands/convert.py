"""`wsurgery convert`."""

from pathlib import Path
from typing import Annotated

import typer

from wsurgery.commands._shared import Output, command, say


@command
def convert(
    source: Annotated[
        str | None, typer.Argument(metavar="[IN]", help="A .pth, .pt, .bin, .npz or .safetensors file.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which of the file's state dicts. Default: the likeliest, which is printed."),
    ] = None,
    keep_names: Annotated[bool, typer.Option("--keep-names", help="Leave the tensors' names alone.")] = False,
    arch: Annotated[
        str | None, typer.Option(metavar="NAME", help="The timm model, where the names do not tell it.")
    ] = None,
    *,
    output: Output,
) -> None:
    """Turn a checkpoint as downloaded into clean safetensors: no wrapper, no prefix, timm's names where they are known.

    Pickles are read without running the code in them; what is more than tensors, containers, numbers and strings is
    refused.

    Example: wsurgery convert efficientnet-lite0-57934424.pth -o lite0.safetensors
    """
    from dataclasses import replace

    from wsurgery.anatomy.timm_names import TimmNames, describe_architecture, to_timm
    from wsurgery.checkpoint import open_output
    from wsurgery.checkpoint.header import format_header
    from wsurgery.checkpoint.provenance import make_record
    from wsurgery.checkpoint.state_dict import open_state_dict
    from wsurgery.checkpoint.writer import write_all
    from wsurgery.progress import Progress

    arguments = [word for option, value in (("--key", key), ("--arch", arch)) if value for word in (option, value)]
    arguments += ["--keep-names"] if keep_names else []
    with open_state_dict(source, key=key) as state:
        shapes = {name: tensor.shape for name, tensor in state.tensors.items()}
        timm = TimmNames({name: name for name in shapes}, None, "") if keep_names else to_timm(shapes)
        tensors = [replace(tensor, name=timm.names[name]) for name, tensor in state.tensors.items()]
        history, name = state.history, arch or timm.architecture
        if name:
            architecture = describe_architecture(name, {tensor.name: tensor.shape for tensor in tensors})
            history = replace(history, architecture=architecture)
        for note in state.notes:
            say(note)
        if timm.prefix:
            say(f"stripped the prefix {timm.prefix}")
        if timm.architecture:
            say(f"renamed to timm's {timm.architecture}")
        elif not history.architecture:
            say("the architecture is not known from the names: --arch NAME records it for train, eval and cca")
        record = make_record("convert", arguments, seed=None, inputs=[state.source])
        total = sum(tensor.nbytes for tensor in tensors)
        stem = Path(source).stem if source and source != "-" else "stdin"
        with (
            output.destination(f"{stem}.converted.safetensors") as path,
            open_output(path, force=output.force) as stream,
            Progress(total, "writing") as progress,
        ):
            write_all(stream, format_header(tensors, history.then(record).metadata()))
            for original, tensor in state.tensors.items():
                write_all(stream, state.read(original))
                progress.advance(tensor.nbytes)
            state.finish()
