"""`wsurgery convert`."""

from collections.abc import Mapping
from typing import Annotated, Any

from wsurgery.commands._shared import key_value, say
from wsurgery.errors import printable
from wsurgery.plugin import Argument, InputFile, Option, Result, UsageError, WsurgeryError, edit


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
    become (out, in, kh, kw); .keras archives are not read. Pickles, of whole
    networks and of numpy arrays, too, are read without running the code in them: objects that are no tensors are left out,
    and a file that names what runs commands is refused. Tied tensors are written once.

    The way back: -o FILE.pth, .pt or .bin writes what torch.load reads with weights_only=True, -o FILE.npz what numpy.load
    reads, of any input, with the names that it has here (--keep-names leaves them alone).

    Example: wsurgery convert efficientnet-lite0-57934424.pth -o lite0.safetensors

    Example: wsurgery convert lite0.safetensors -o lite0.pth
    """
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
        if arch is not None and architecture is not None and "model" not in architecture:
            known = timm_names(state) if keep_names else names
            if known.architecture and known.architecture[0] == arch:
                architecture["args"] = {**known.architecture[1], **architecture["args"]}
            architecture["args"] = {**architecture["args"], **dict(map(key_value, arg or []))}
            _require_fit(architecture, known.shapes)
        elif architecture is None:
            known_name, known_args = names.architecture or ("", {})
            said = (
                describe_architecture(name, names.shapes, known_args if name == known_name else {})
                for name in state.said
            )
            architecture = next((one for one in said if _fits(one, names.shapes)), None)
        if architecture is None and names.architecture is not None:
            architecture = describe_architecture(names.architecture[0], names.shapes, names.architecture[1])
        stem = Path(file.partition("?")[0]).stem if file else "stdin"  # a query may be secret
        beside = model_folder(Path(file), renamed=set(names.pieces) != set(state.tensors)) if file else None
        return converted.result(architecture, inputs=[state.source], name=f"{stem}.converted", beside=beside)


def _require_fit(architecture: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that tensors are those of the network that the user named.

    Raises:
        UsageError: they are not, or there is no such network.
    """
    name = printable(architecture["name"])
    misfit = _misfit(architecture, shapes)
    if misfit is None:
        say(f"timm is not installed: whether these are the tensors of {name} was not checked")
    elif misfit:
        raise UsageError(
            f"--arch {name}: {misfit}: name the network that it is of, or add --arg KEY=VALUE; --key takes another entry"
        )


def _fits(architecture: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a network that a file names is one of timm's, and these are its tensors."""
    try:
        return _misfit(architecture, shapes) == ""
    except WsurgeryError:  # no such network, or one far larger than the file
        return False


def _misfit(architecture: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Say what is not as timm's network has it, nothing if all is; None if that cannot be known.

    Raises:
        UsageError: there is no such network.
    """
    from wsurgery.operations.architectures import find_layout

    if layout := find_layout(architecture):
        own = layout.shapes
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
