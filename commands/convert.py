"""`wsurgery convert`."""

from pathlib import Path
from typing import Annotated

import typer

from wsurgery.commands._conversion import write_converted
from wsurgery.commands._shared import Output, command


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
    from wsurgery.checkpoint.provenance import make_record
    from wsurgery.foreign.state_dict import open_state_dict
    from wsurgery.foreign.timm_names import same_names, to_timm

    arguments = [word for option, value in (("--key", key), ("--arch", arch)) if value for word in (option, value)]
    arguments += ["--keep-names"] if keep_names else []
    with open_state_dict(source, key=key) as state:
        config = read_config(Path(source) if source and source != "-" else None)
        shapes = {name: tensor.shape for name, tensor in state.tensors.items()}
        names = same_names(shapes) if keep_names else to_timm(shapes, config)
        architecture = choose_architecture(names.shapes, recorded=state.history.architecture, config=config, arch=arch)
        if architecture is None and names.architecture is not None:
            architecture = describe_architecture(names.architecture[0], names.shapes, names.architecture[1])
        record = make_record("convert", arguments, seed=None, inputs=[state.source])
        history = replace(state.history, architecture=architecture).then(record)
        stem = Path(source.partition("?")[0]).stem if source and source != "-" else "stdin"  # a query may be secret
        write_converted(state, names, history, output, default=f"{stem}.converted.safetensors")
