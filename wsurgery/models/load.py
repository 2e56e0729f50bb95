"""From an architecture's name to a network, from a checkpoint to a network, and back."""

import contextlib
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import nn

from wsurgery.anatomy.architecture import Architecture, choose_architecture, describe_architecture, read_config
from wsurgery.checkpoint import Checkpoint, open_checkpoint
from wsurgery.checkpoint.dtypes import dtype_name
from wsurgery.checkpoint.header import TensorInfo
from wsurgery.checkpoint.opening import STDIN
from wsurgery.checkpoint.provenance import History
from wsurgery.checkpoint.trained import TrainedOn, trained_on
from wsurgery.checkpoint.writer import write_checkpoint
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.models.bounds import SPARE, SPARE_OF_OWN, counted, on_meta, require_small_arguments
from wsurgery.models.own import Model, OwnModel, find_model
from wsurgery.operations.layers import placed
from wsurgery.operations.planning import Made

_DTYPES = {
    torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_NOT_TRAINED = {
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ", torch.complex64: "C64",
}  # fmt: skip
_ALL_DTYPES = _DTYPES | _NOT_TRAINED
_ALL_TORCH_DTYPES = {name: dtype for dtype, name in _ALL_DTYPES.items()}
_TORCH_DTYPES = {name: dtype for dtype, name in _DTYPES.items()}

# Arguments with which timm reads or fetches files: a checkpoint's metadata is untrusted.
_LOADS_FILES = {"pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}

_SIZES = ("num_classes", "in_chans")

# How the images of pretrained weights are made: all that a checkpoint may say in timm's pretrained_cfg.
_IMAGES = ("input_size", "fixed_input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")


def create(architecture: Architecture, *, model: Model | None = None, seed: int = 0) -> nn.Module:
    """Build a network with fresh random weights, as timm initialises it, or as another callable does.

    Args:
        architecture: `name` as timm knows it; `num_classes` and `in_chans`, the model's own where missing; `args`, more
            keyword arguments of the model; `pretrained_cfg`, how its images are made, for the model's `pretrained_cfg`.
        model: what makes the network instead of timm: a callable, or what `--model` takes. The network gets timm's
            attributes `num_classes`, `in_chans` and `pretrained_cfg` where it has none.
        seed: of the weights; torch's own generator is left as it is.

    Raises:
        UsageError: timm does not know the name (similar ones are listed), or the arguments build no network.
    """
    name = architecture["name"]
    args = architecture.get("args", {})
    if loading := sorted(_LOADS_FILES & args.keys()):
        raise UsageError(f"{printable(name)}: {loading[0]} would load another file, which no checkpoint may ask for")
    given = {key: architecture[key] for key in _SIZES if architecture.get(key) is not None}
    if twice := sorted(given.keys() & args.keys()):
        raise UsageError(f"{printable(name)}: {twice[0]} is {given[twice[0]]} already: leave it out of the arguments")
    images = _image_settings(architecture)
    if model is not None:
        own = find_model(model)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # and no other: those of CUDA devices are somebody's
            network = own.build({**given, **args})
        _add_timm_attributes(network, images, given.get("num_classes"))
        return network
    if recorded := architecture.get("model"):
        raise UsageError(f"{printable(name)} is made with --model {printable(recorded)}: add it")
    if not timm.is_model(name):
        similar = get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
        hint = f"; similar: {', '.join(similar)}" if similar else ""
        raise UsageError(f"timm has no model {printable(name)!r}{hint}")
    with torch.random.fork_rng(devices=[]):
        try:
            torch.default_generator.manual_seed(seed)
            made: nn.Module = timm.create_model(name, pretrained_cfg_overlay=images, **given, **args)
        except (WsurgeryError, MemoryError, ModuleNotFoundError):
            raise
        except Exception as error:  # whatever timm's models raise: there is no list
            reason = printable(str(error) or type(error).__name__)
            raise UsageError(f"{printable(name)} cannot be built: {reason}") from None
    return made


def state_shapes(
    architecture: Architecture, shapes: Mapping[str, tuple[int, ...]], label: str = "the file"
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a timm network's tensors, by name; it takes no memory for them.

    Args:
        architecture: the network.
        shapes: of the tensors in a file, which bound how large it may be.
        label: what messages call the file.

    Raises:
        WsurgeryError: it is far larger than the file.
        UsageError: as `create`.
    """
    require_small_arguments(label, shapes, architecture)
    with counted(label, shapes, SPARE), on_meta():
        return {name: tuple(value.shape) for name, value in create(architecture).state_dict().items()}


def _add_timm_attributes(network: nn.Module, images: dict[str, Any], num_classes: int | None) -> None:
    """Give a network that is not timm's what timm's say of themselves, where it does not.

    Its outputs are as many as it was made with; else sizes are read off its tensors.
    """
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    described = describe_architecture("", shapes)
    last = next((shape for shape in reversed(shapes.values()) if len(shape) > 1), (0,))  # in the order of definition
    for key, value in (
        ("num_classes", num_classes or described["num_classes"] or last[0]),
        ("in_chans", described.get("in_chans", 3)),
    ):
        if not isinstance(getattr(network, key, None), int):
            setattr(network, key, value)
    own = getattr(network, "pretrained_cfg", None)
    if images or own is None:
        network.pretrained_cfg = {**(own if isinstance(own, dict) else {}), **images}  # type: ignore[assignment]


def _image_settings(architecture: Architecture) -> dict[str, Any]:
    settings = architecture.get("pretrained_cfg", {})
    said = f"{printable(architecture['name'])}: its metadata has a pretrained_cfg"
    if not isinstance(settings, dict):
        raise UsageError(f"{said} that is not one")
    for key in {"mean", "std"} & settings.keys():
        x = settings[key]
        numbers = isinstance(x, (list, tuple)) and all(
            type(entry) in (int, float) and math.isfinite(entry) for entry in x
        )
        if not numbers or len(x) not in (1, 3) or (key == "std" and min(x) <= 0):
            raise UsageError(f"{said} whose {key} is {printable(str(x), 80)}: it has a number for each channel")
    return {key: tuple(x) if isinstance(x := settings[key], list) else x for key in _IMAGES if key in settings}


def architecture_of(checkpoint: Checkpoint, name: str | None = None, model: Model | None = None) -> Architecture:
    """Say which network a checkpoint is for.

    A model that is given counts; its arguments are those of the metadata, if they are a callable's of the same name. Else a
    name that is given counts; without one, or where they agree, the checkpoint's metadata, then timm's config.json beside
    it; last, the start of the file's name (`resnet50.a1_in1k.safetensors`) if all tensors fit. Names and shapes alone
    cannot tell such twins as resnet50 and resnetblur50: without any of these the network is not guessed.

    Raises:
        UsageError: nothing says, or the metadata names another person's model, which is not imported for that.
    """
    shapes = {key: tensor.shape for key, tensor in checkpoint.tensors.items()}
    recorded = History.of(checkpoint).architecture
    if model is not None:
        if name is not None:
            raise UsageError("--arch names a model of timm and --model one of your own: choose one")
        return _architecture_of_own(find_model(model), shapes, recorded, placed(checkpoint))
    if recorded is not None and "model" in recorded:
        if name is None:
            raise UsageError(f"{checkpoint.label} was made with --model {printable(recorded['model'])}: add it")
        recorded = None
    config = read_config(checkpoint.path if recorded is None else None)
    if found := choose_architecture(shapes, recorded=recorded, config=config, arch=name):
        return found
    said = "does not say its architecture"
    called = (checkpoint.name or "").partition(".")[0]
    if timm.is_model(called):
        described = describe_architecture(called, shapes)
        if state_shapes(described, shapes, checkpoint.label) == shapes:
            return described
        said = f"has the name of {called} but other tensors"
    raise UsageError(f"{checkpoint.label} {said}: add --arch NAME (a timm model), or --model FILE.py:CALLABLE")


def _architecture_of_own(
    own: OwnModel, shapes: Mapping[str, tuple[int, ...]], recorded: Architecture | None, blocks: Mapping[str, str]
) -> Architecture:
    if recorded is not None and "model" in recorded and recorded["name"] == own.name:
        return {**recorded, "model": own.said}
    found = {**describe_architecture(own.name, shapes, blocks=blocks), "model": own.said}
    if not found["num_classes"]:  # no head is known: the callable's own number
        del found["num_classes"]
    found = {key: value for key, value in found.items() if key not in _SIZES or own.takes(key)}
    images = (recorded or {}).get("pretrained_cfg")
    return found if images is None else {**found, "pretrained_cfg": images}


def models_for(checkpoints: Sequence[str | Path], model: Model | None) -> list[Model | None]:
    """Say for which of several checkpoints `--model` is: if one does not say that it is timm's, for such only; else for all.

    Args:
        checkpoints: as `open_checkpoint` takes them; standard input is not read.
        model: what `--model` says.

    Returns:
        `model` or None for each.
    """
    if model is None or len(checkpoints) == 1:
        return [model] * len(checkpoints)
    of_timm = [_is_of_timm(checkpoint) for checkpoint in checkpoints]
    return [None if known and not all(of_timm) else model for known in of_timm]


def _is_of_timm(path: str | Path) -> bool:
    if str(path) == STDIN:
        return False
    with contextlib.suppress(UsageError), open_checkpoint(path) as checkpoint:
        architecture_of(checkpoint)
        return True
    return False


def load(path: str | Path, arch: str | None = None, *, model: Model | None = None) -> nn.Module:
    """Return the network of a checkpoint, with its weights, in eval mode.

    Args:
        path: a safetensors file, a folder of them, or `-` for standard input.
        arch: a timm name, for files that do not say theirs.
        model: for a network that timm does not know, what makes it: a callable, which is given `num_classes` and the other
            arguments in the metadata, or as `--model` takes it: `FILE.py:CALLABLE`, `package.module:CALLABLE` or a name.

    Raises:
        WsurgeryError: the file's tensors are not those of the architecture; the message names the first one.
    """
    with open_checkpoint(path) as checkpoint:
        return load_checkpoint(checkpoint, arch, model=model)


def load_checkpoint(checkpoint: Checkpoint, arch: str | None = None, *, model: Model | None = None) -> nn.Module:
    """Return the network of an open checkpoint, as `load` does.

    Blocks that its metadata describes are the network's attribute `block_globs`, where `wsurgery.similarity` finds them, and
    what it was trained on is its attribute `trained_on`, a `wsurgery.checkpoint.trained.TrainedOn`.
    """
    network = create_for(checkpoint, architecture_of(checkpoint, arch, model), model=model)
    history = History.of(checkpoint)
    if history.blocks:
        network.block_globs = history.blocks  # type: ignore[assignment]
    see_as_trained(network, trained_on(history.log))
    return network.eval()


def see_as_trained(network: nn.Module, trained: TrainedOn | None) -> None:
    """Have a network normalise images as in a training, and say what it was; None leaves it as it is."""
    if trained is not None:
        own = getattr(network, "pretrained_cfg", None)
        statistics = {"mean": trained.mean, "std": trained.std}
        network.trained_on = trained  # type: ignore[assignment]
        network.pretrained_cfg = {**(own if isinstance(own, dict) else {}), **statistics}  # type: ignore[assignment]


def open_branches(network: nn.Module) -> None:
    """Set the weights of norms that are all zero to 1: those that close residual blocks as training begins.

    timm's `zero_init_last` (Goyal et al. 2017, section 5.1). A network that has none stays as it is.
    """
    for module in network.modules():
        kind = type(module).__name__.lower()
        if "norm" in kind and "response" not in kind:  # ConvNeXt V2's, at 0, lets all through
            for name, parameter in module.named_parameters(recurse=False):
                if name == "weight" and not parameter.any():
                    nn.init.ones_(parameter)


def create_for(checkpoint: Checkpoint, architecture: Architecture, *, model: Model | None = None) -> nn.Module:
    """Build the network of a checkpoint and copy its tensors into it.

    What a checkpoint's metadata asks for is no larger than what the file holds: a network of timm is built on torch's `meta`
    device first, which takes no memory, and held against the file's names and shapes; on the way there each tensor is
    counted.

    Args:
        checkpoint: open.
        architecture: as `architecture_of` says it.
        model: as in `create`.

    Raises:
        WsurgeryError: the file's tensors are not those of the architecture; the message names the first one.
        UsageError: the arguments build no network.
    """
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    require_small_arguments(checkpoint.label, shapes, architecture)
    if model is None:
        with counted(checkpoint.label, shapes, SPARE), on_meta(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            valueless = create(architecture).state_dict()
        _find_tied(valueless, checkpoint)
        network = create(architecture)
    else:  # not on `meta`, which is not everybody's
        with counted(checkpoint.label, shapes, SPARE_OF_OWN if architecture.get("args") else math.inf):
            network = create(architecture, model=model)
    load_into(network, checkpoint)
    return network


def load_into(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy a checkpoint's tensors into a network of exactly the same names and shapes.

    Tied tensors are found by the aliases in the metadata, as `safetensors.torch.save_model` writes them. The counter of a
    batch norm may be missing, as PyTorch before 0.4.1 had none: the network keeps its own.

    Raises:
        WsurgeryError: a name, a shape or a dtype does not fit; the message names the first one.
    """
    own, tensors = model.state_dict(), checkpoint.tensors
    tied = _find_tied(own, checkpoint)
    state = {}
    for name, tensor in tensors.items():
        if tensor.dtype not in _TORCH_DTYPES:
            raise WsurgeryError(f"{checkpoint.label}: {printable(name)} is {tensor.dtype}: run wsurgery cast first")
        data = checkpoint.read(tensor)
        state[name] = _tensor(data, tensor.dtype, tensor.shape)
    state |= {name: state[kept] for name, kept in tied.items()}
    counters = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
    model.load_state_dict(counters | state, strict=True)


def _find_tied(own: Mapping[str, torch.Tensor], checkpoint: Checkpoint) -> dict[str, str]:
    """Find the tied tensors of a network in a checkpoint: name → the one of the file that it is.

    Raises:
        WsurgeryError: as `load_into`.
    """
    tensors, metadata = checkpoint.tensors, checkpoint.header.metadata
    tied = {name: kept for name in own if name not in tensors and (kept := metadata.get(name)) in tensors}
    for name in (*own, *tensors):
        mine, theirs = own.get(name), tensors.get(tied.get(name, name))
        if theirs is None and name.endswith("num_batches_tracked"):
            continue
        if mine is None or theirs is None:
            where = "the file and not in the network" if mine is None else "the network and not in the file"
            raise WsurgeryError(f"{checkpoint.label}: {printable(name)} is in {where}: {_remedy(own, tensors)}")
        if tuple(mine.shape) != theirs.shape:
            raise WsurgeryError(
                f"{checkpoint.label}: {printable(name)} is {theirs.shape}, the network wants {tuple(mine.shape)}"
            )
    return tied


def _remedy(own: Collection[str], tensors: Collection[str]) -> str:
    """Ask what is wrong where names differ: the network, or how its tensors are called."""
    if 2 * len(set(own) & set(tensors)) >= min(len(own), len(tensors)):
        return "is the architecture right?"
    first, mine = (printable(next(iter(names), "none"), 60) for names in (tensors, own))
    return (
        f"its names are like {first}, the network's like {mine}: wsurgery convert or wsurgery rename makes them agree"
    )


def as_tensors(arrays: Mapping[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
    """Return arrays as tensors of the same types, which share their memory.

    Raises:
        WsurgeryError: torch has no such type.
    """
    state = {}
    for name, x in arrays.items():
        dtype = dtype_name(x.dtype)
        if dtype not in _ALL_TORCH_DTYPES:
            raise WsurgeryError(f"{printable(name)} is {dtype}, which torch has not: cast it first")
        state[name] = _tensor(x.reshape(-1).view(np.uint8), dtype, x.shape)
    return state


def _tensor(data: Any, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    flat = (
        torch.frombuffer(data, dtype=_ALL_TORCH_DTYPES[dtype])
        if len(data)
        else torch.empty(0, dtype=_ALL_TORCH_DTYPES[dtype])
    )
    return flat.reshape(shape)


def as_checkpoint(state: Mapping[str, torch.Tensor], label: str) -> Made:
    """Give a state dict, on any device, the form of an open checkpoint; it is not copied before it is read.

    Raises:
        WsurgeryError: something in it is no dense tensor of a type that safetensors has.
    """

    def read(tensor: TensorInfo) -> Any:
        host = state[tensor.name].detach().cpu().resolve_conj().resolve_neg().contiguous()
        return host.reshape(-1).view(torch.uint8).numpy().data

    tensors = [
        TensorInfo(name, _dtype_of(value, f"{label}: {printable(name)}"), tuple(value.shape), 0, 0).placed(0)
        for name, value in state.items()
    ]
    return Made(label, tensors, read, {"format": "pt"})


def _dtype_of(value: Any, label: str) -> str:
    """Return the safetensors name of a tensor's type."""
    if not isinstance(value, torch.Tensor):
        what = f"a {type(value).__name__} among torch tensors"
    elif value.layout is not torch.strided:
        what = "a sparse tensor"
    elif value.is_meta:
        what = "on the device meta, which holds no values"
    elif value.dtype not in _ALL_DTYPES:
        what = f"of {value.dtype}, a type that safetensors does not have"
    else:
        return _ALL_DTYPES[value.dtype]
    raise WsurgeryError(f"{label} is {what}: convert it, or leave it out")


def save(state: Mapping[str, torch.Tensor], history: History, path: Path | None, *, force: bool = False) -> None:
    """Write a state dict as a checkpoint, atomically to a file or (None) to standard output, in the order of `state`."""
    checkpoint = as_checkpoint(state, "the network")
    tensors = [(tensor, checkpoint.read(tensor)) for tensor in checkpoint.tensors.values()]
    write_checkpoint(path, tensors, history.metadata(), force=force)
