"""`wsurgery convert`."""

from pathlib import Path
from typing import Annotated

import typer

from wsurgery.commands._shared import Output, command, say
from wsurgery.errors import printable


@command
def convert(
    source: Annotated[
        str | None,
        typer.Argument(metavar="[IN]", help="A .pth, .pt, .bin, .npz or .safetensors file, or a Hugging Face folder."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Which of the file's state dicts. Default: the first of state_dict, model, model_state_dict, model_ema, "
            "ema, …; it is printed, and what else there is.",
        ),
    ] = None,
    keep_names: Annotated[bool, typer.Option("--keep-names", help="Leave the tensors' names alone.")] = False,
    arch: Annotated[str | None, typer.Option(metavar="NAME", help="The timm model, where nothing tells it.")] = None,
    *,
    output: Output,
) -> None:
    """Turn a checkpoint as downloaded into clean safetensors: no wrapper, no prefix, timm's names where they are known.

    Known are the names of torchvision (ViT, Swin, ConvNeXt, EfficientNet, MobileNet, VGG; its ResNets and DenseNets have
    timm's names), Hugging Face transformers (ResNet, ViT, DeiT, DINOv2, BEiT, Swin, ConvNeXt), Google's .npz files of ViT
    and BiT, and EfficientNet-lite. Pickles are read without running the code in them; what is more than tensors,
    containers, numbers and strings is refused. Tied tensors are written once.

    Example: wsurgery convert efficientnet-lite0-57934424.pth -o lite0.safetensors
    """
    from dataclasses import replace

    from wsurgery.anatomy.architecture import choose_architecture, describe_architecture, read_config
    from wsurgery.anatomy.timm_names import same_names, to_timm
    from wsurgery.checkpoint import open_output
    from wsurgery.checkpoint.header import format_header
    from wsurgery.checkpoint.provenance import make_record
    from wsurgery.checkpoint.state_dict import open_state_dict
    from wsurgery.checkpoint.writer import write_all
    from wsurgery.operations.conversion import assembled, described, new_aliases
    from wsurgery.progress import Progress

    arguments = [word for option, value in (("--key", key), ("--arch", arch)) if value for word in (option, value)]
    arguments += ["--keep-names"] if keep_names else []
    with open_state_dict(source, key=key) as state:
        config = read_config(Path(source) if source and source != "-" else None)
        shapes = {name: tensor.shape for name, tensor in state.tensors.items()}
        names = same_names(shapes) if keep_names else to_timm(shapes, config)
        aliases = new_aliases(names, state.aliases, state.history.metadata())
        tensors = described(names, state.tensors, aliases)
        architecture = choose_architecture(names.shapes, recorded=state.history.architecture, config=config, arch=arch)
        if architecture is None and names.architecture is not None:
            architecture = describe_architecture(names.architecture[0], names.shapes, names.architecture[1])
        for note in state.notes:
            say(note)
        if names.prefix:
            say(f"stripped the prefix {names.prefix}")
        if names.lineage:
            say(f"renamed from {names.lineage} to timm's names")
        if names.left_out:
            more = f" and {len(names.left_out) - 3} more" if len(names.left_out) > 3 else ""
            say(f"left out what timm's network has not: {printable(', '.join(names.left_out[:3]))}{more}")
        for alias, kept in aliases.items():
            say(f"{printable(alias)} is {printable(kept)}: written once, and recorded")
        if architecture:
            say(f"recorded the architecture {printable(architecture['name'])}")
        else:
            say("the architecture is not known: --arch NAME records it for train, eval and cca")
        record = make_record("convert", arguments, seed=None, inputs=[state.source])
        others = {**state.history.others, **aliases}
        history = replace(state.history, architecture=architecture, others=others).then(record)
        stem = (
            Path(source.partition("?")[0]).stem if source and source != "-" else "stdin"
        )  # no query: it may hold a secret
        with (
            output.destination(f"{stem}.converted.safetensors") as path,
            open_output(path, force=output.force) as stream,
            Progress(sum(tensor.nbytes for tensor in tensors), "writing") as progress,
        ):
            write_all(stream, format_header(tensors, history.metadata()))
            for data in assembled(names, state.tensors, aliases, state.read):
                write_all(stream, data)
                progress.advance(len(data))
            state.finish()
