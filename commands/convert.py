"""`wsurgery convert`."""

from typing import Annotated

from wsurgery.plugin import Argument, InputFile, Option, Result, edit


@edit()
def convert(
    source: Annotated[
        InputFile | None,
        Argument(
            metavar="[IN]", help="A .pth, .pt, .bin, .ckpt, .pkl, .npz or .safetensors file, or a Hugging Face folder."
        ),
    ] = None,
    *,
    key: Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="Which of the file's state dicts, a.b.c for one in others, or what its names begin with. Default: the first of "
            "state_dict, model, model_state_dict, model_ema, ema, …; it is printed, and what else there is.",
        ),
    ] = None,
    arch: Annotated[str | None, Option(metavar="NAME", help="The timm model, where nothing tells it.")] = None,
    keep_names: Annotated[bool, Option("--keep-names", help="Leave the tensors' names alone.")] = False,
) -> Result:
    """Turn a checkpoint as downloaded into clean safetensors: no wrapper, no prefix, timm's names where they are known.

    Taken off are torch's own wrappers, wherever in a name they stand (DataParallel, compile, FSDP, activation checkpoints,
    AveragedModel), attributes such as model. and backbone., and what is of the training: losses and metrics beside a
    Lightning module's network, and the second encoder, queue and projection head of MoCo, DINO, MAE, SimCLR and BYOL. What
    is left out is said. Known are the names of torchvision (ViT, Swin, ConvNeXt, EfficientNet, MobileNet, VGG, DenseNet with
    dots, a ResNet in nn.Sequential; its other ResNets and DenseNets have timm's names), Hugging Face transformers (ResNet,
    ViT, DeiT, DINOv2, BEiT, Swin, ConvNeXt), Google's .npz files of ViT and BiT, and EfficientNet-lite. Pickles, of whole
    networks and of numpy arrays, too, are read without running the code in them: objects that are no tensors are left out,
    and a file that names what runs commands is refused. Tied tensors are written once.

    Example: wsurgery convert efficientnet-lite0-57934424.pth -o lite0.safetensors
    """
    from functools import partial
    from pathlib import Path

    from wsurgery.anatomy.architecture import choose_architecture, describe_architecture, read_config
    from wsurgery.foreign.conversion import converting
    from wsurgery.foreign.state_dict import StateDict, open_state_dict
    from wsurgery.foreign.timm_names import TimmNames, same_names, to_timm

    file = None if source in (None, "-") else str(source)
    config = read_config(Path(file) if file else None)

    def names_for(state: StateDict) -> TimmNames:
        shapes = {name: tensor.shape for name, tensor in state.tensors.items()}
        return same_names(shapes) if keep_names else to_timm(shapes, config)

    with converting(partial(open_state_dict, source, key=key), names_for) as converted:
        state, names = converted.state, converted.names
        architecture = choose_architecture(names.shapes, recorded=state.history.architecture, config=config, arch=arch)
        if architecture is None and names.architecture is not None:
            architecture = describe_architecture(names.architecture[0], names.shapes, names.architecture[1])
        stem = Path(file.partition("?")[0]).stem if file else "stdin"  # a query may be secret
        return converted.result(architecture, inputs=[state.source], name=f"{stem}.converted")
