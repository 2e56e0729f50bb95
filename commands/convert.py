"""`wsurgery convert`."""

from typing import Annotated

from wsurgery.commands._networks import believed, fits, require_fit
from wsurgery.commands._shared import key_value
from wsurgery.plugin import Argument, InputFile, Option, Result, UsageError, edit


@edit(exports=True)
def convert(
    source: Annotated[
        InputFile | None,
        Argument(
            metavar="[IN]",
            help="A .pth, .pt, .bin, .ckpt, .pkl, .npz, .h5, .onnx or .safetensors file, or a Hugging Face folder.",
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
    arch: Annotated[
        str | None, Option(metavar="NAME", help="The timm model, where nothing tells it; the tensors must be its own.")
    ] = None,
    arg: Annotated[list[str] | None, Option(metavar="KEY=VALUE", help="More arguments of --arch, as of init.")] = None,
    keep_names: Annotated[bool, Option("--keep-names", help="Leave the tensors' names alone.")] = False,
) -> Result:
    """Turn a checkpoint as downloaded into clean safetensors: no wrapper, no prefix, timm's names where they are known.

    Taken off are torch's own wrappers, wherever in a name they stand (DataParallel, compile, FSDP, activation checkpoints,
    AveragedModel), attributes such as model. and backbone., and what is of the training: losses and metrics beside a
    Lightning module's network, and the second encoder, queue and projection head of MoCo, DINO, MAE, SimCLR and BYOL. What
    is left out is said. Known are the names of torchvision (ViT, Swin, ConvNeXt, EfficientNet, MobileNet, VGG, DenseNet with
    dots, a ResNet in nn.Sequential; its other ResNets and DenseNets have timm's names), Hugging Face transformers (ResNet,
    ViT, DeiT, DINOv2, BEiT, Swin, ConvNeXt), Google's .npz files of ViT and BiT, Keras's DenseNet, and EfficientNet-lite. Of
    Keras's .h5 and of ONNX initialisers, with h5py and onnx (the extras keras and onnx), other names stay as found, and kernels
    become (out, in, kh, kw); in Keras 3's .weights.h5, where arrays have numbers, those of layers of Keras's own classes.
    .keras archives are not read. Pickles, of whole networks and of numpy arrays, too, are read without running the code in
    them: objects that are no tensors are left out, and a file that names what runs commands is refused. Tensors that
    safetensors cannot hold (sparse, quantised, complex128) are left out, and said. Tied tensors are written once.

    A network is recorded that config.json, a trainer, or names and shapes tell, if its tensors are those of timm's.

    The way back: -o FILE.pth, .pt or .bin writes what torch.load reads with weights_only=True, -o FILE.npz what numpy.load
    reads, of any input, as files here and not in a store, with the names that it has here (--keep-names leaves them alone).

    Example: wsurgery convert efficientnet-lite0-57934424.pth -o lite0.safetensors

    Example: wsurgery convert lite0.safetensors -o lite0.pth
    """
    from dataclasses import replace
    from functools import partial
    from pathlib import Path

    from wsurgery.anatomy.architecture import choose_architecture, describe_architecture, read_config
    from wsurgery.checkpoint.companions import model_folder
    from wsurgery.foreign.conversion import converting
    from wsurgery.foreign.state_dict import StateDict, open_state_dict
    from wsurgery.foreign.timm_names import TimmNames, same_names, to_timm

    if arg and arch is None:
        raise UsageError("--arg is of the network that --arch names: add --arch")
    file = None if source in (None, "-") else str(source)
    config = read_config(Path(file) if file and "://" not in file else None)

    def timm_names(state: StateDict) -> TimmNames:
        return to_timm({name: tensor.shape for name, tensor in state.tensors.items()}, config)

    def names_for(state: StateDict) -> TimmNames:
        if not keep_names:
            return timm_names(state)
        return same_names({name: tensor.shape for name, tensor in state.tensors.items()})

    with converting(partial(open_state_dict, source, key=key), names_for) as converted:
        state, names = converted.state, converted.names
        architecture = choose_architecture(names.shapes, recorded=state.history.architecture, config=config, arch=arch)
        known = timm_names(state) if keep_names and (arch or config) else names
        doubts: list[str] = []
        if arch is not None and architecture is not None and "model" not in architecture:
            if known.architecture and known.architecture[0] == arch:
                architecture["args"] = {**known.architecture[1], **architecture["args"]}
            architecture["args"] = {**architecture["args"], **dict(map(key_value, arg or []))}
            require_fit(architecture, known.shapes)
        elif architecture is not None and architecture != state.history.architecture:
            architecture = believed(architecture, known.shapes, "config.json", doubts)
        if architecture is None:
            known_name, known_args = names.architecture or ("", {})
            said = (
                describe_architecture(name, names.shapes, known_args if name == known_name else {})
                for name in state.said
            )
            architecture = next((one for one in said if fits(one, names.shapes)), None)
        if architecture is None and names.architecture is not None:
            architecture = describe_architecture(names.architecture[0], names.shapes, names.architecture[1])
            architecture = believed(architecture, names.shapes, "its names and sizes", doubts)
        stem = Path(file.partition("?")[0]).stem if file else "stdin"  # a query may be secret
        beside = model_folder(Path(file), renamed=set(names.pieces) != set(state.tensors)) if file else None
        result = converted.result(architecture, inputs=[state.source], name=f"{stem}.converted", beside=beside)
        return replace(result, says=[*result.says, *doubts])
