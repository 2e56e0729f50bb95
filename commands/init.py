"""`wsurgery init`."""

from dataclasses import replace
from typing import Annotated, Any

from wsurgery.commands._shared import ModelOption, key_value
from wsurgery.plugin import Argument, Checkpoint, History, Option, RandomStream, Result, UsageError, copies, edit


@edit(starts=True)
def init(
    arch: Annotated[
        str | None, Argument(metavar="[ARCH]", help="A timm model, cbr_large_t, cbr_large_w, cbr_small, ...")
    ] = None,
    *,
    model: ModelOption = None,
    num_classes: Annotated[int | None, Option(min=0, max=1_000_000, help="Outputs. Default: the model's own.")] = None,
    in_chans: Annotated[int | None, Option(min=1, max=10_000, help="Channels of the image. Default: 3.")] = None,
    width: Annotated[
        float | None, Option(min=0, help="Factor on the widths of a CBR network, or of a ResNet's stages.")
    ] = None,
    arg: Annotated[list[str] | None, Option(metavar="KEY=VALUE", help="More arguments of the model.")] = None,
    mean: Annotated[
        str | None,
        Option(
            metavar="R,G,B",
            help="Mean to normalise images with, of values 0 to 1. Default: the network's, or ImageNet's.",
        ),
    ] = None,
    std: Annotated[str | None, Option(metavar="R,G,B", help="Standard deviation, likewise.")] = None,
    no_zero_init_last: Annotated[
        bool,
        Option(
            "--no-zero-init-last", help="Start each residual block's last norm at 1, where the network has 0: open."
        ),
    ] = False,
    from_: Annotated[
        Checkpoint | None,
        Option("--from", metavar="LARGER", help="Take evenly spaced weights of a larger network of the family."),
    ] = None,
    random: RandomStream,
) -> Result:
    """Make a fresh random network, with timm's distributions, or as the callable of --model makes it.

    The CBR networks and plain ResNets are made without PyTorch: the same bytes on every machine.

    --from selects weights (Xu et al. 2024, "Initializing Models with Larger Ones", arXiv 2311.18823): each tensor from that
    of its name, so of each stage the first layers, and along each dimension evenly spaced. The head, and what has no
    counterpart, is drawn.

    Example: wsurgery init cbr_small --num-classes 5 --width 0.25 --seed 1 > random.safetensors

    Example: wsurgery init --model cifar_resnet.py:resnet20 --num-classes 5 --seed 1 > random.safetensors

    Example: wsurgery init resnet18 --width 0.5 --num-classes 5 --from resnet18.safetensors > half.safetensors
    """
    from wsurgery.operations.weight_selection import select_weights

    fresh = _fresh(
        arch, model, num_classes, in_chans, random,
        width=width, arg=arg, mean=mean, std=std, no_zero_init_last=no_zero_init_last,
    )  # fmt: skip
    return fresh if from_ is None else select_weights(fresh, from_)


def _fresh(
    arch: str | None,
    model: Any,
    num_classes: int | None,
    in_chans: int | None,
    random: RandomStream,
    *,
    width: float | None,
    arg: list[str] | None,
    mean: str | None,
    std: str | None,
    no_zero_init_last: bool,
) -> Result:
    from wsurgery.anatomy.architecture import normalisation
    from wsurgery.operations.architectures import find_layout, width_arguments
    from wsurgery.operations.random_network import random_network

    if (arch is None) == (model is None):
        raise UsageError("name one of ARCH, a timm model, and --model, a network of your own")
    args: dict[str, Any] = dict(key_value(word) for word in arg or [])
    images = normalisation(mean, std)
    more = {"pretrained_cfg": images} if images else {}
    if arch is None:
        if width is not None:
            raise UsageError(
                "--width is for networks that wsurgery knows: write --arg KEY=VALUE, as the callable takes it"
            )
        return _own(model, num_classes, in_chans, args, more, random, opened=no_zero_init_last)
    if width is not None:
        widths = width_arguments(arch, width)
        if twice := sorted(widths.keys() & args.keys()):
            raise UsageError(f"--width and --arg {twice[0]} both say how wide {arch} is: give one of them")
        args |= widths
    architecture = {"name": arch, "num_classes": num_classes, "in_chans": in_chans, "args": args, **more}
    if layout := find_layout(architecture):
        layout = replace(layout, zeros=frozenset()) if no_zero_init_last else layout
        return Result(random_network(layout, random), History({**layout.architecture, **more}), name=f"{arch}.init")
    from wsurgery.models import as_checkpoint, create
    from wsurgery.models.load import open_branches

    network = create(architecture, seed=random.seed)
    if no_zero_init_last:
        open_branches(network)
    architecture |= {
        "num_classes": int(getattr(network, "num_classes", num_classes or 0)),
        "in_chans": in_chans or int(getattr(network, "in_chans", 3)),
    }
    return Result(
        copies(as_checkpoint(network.state_dict(), "a fresh network")), History(architecture), name=f"{arch}.init"
    )


def _own(
    model: Any,
    num_classes: int | None,
    in_chans: int | None,
    args: dict[str, Any],
    more: dict[str, Any],
    random: RandomStream,
    *,
    opened: bool,
) -> Result:
    """Make a network that timm does not know; what is recorded is what its callable is given again."""
    from wsurgery.models import as_checkpoint, create
    from wsurgery.models.load import open_branches
    from wsurgery.models.own import find_model
    from wsurgery.models.traced import traced_blocks

    own = find_model(model)
    architecture: dict[str, Any] = {"name": own.name, "args": args, "model": own.said, **more}
    given = {"num_classes": num_classes, "in_chans": in_chans}
    architecture |= {key: value for key, value in given.items() if value is not None}
    network = create(architecture, model=model, seed=random.seed)
    if opened:
        open_branches(network)
    if own.takes("num_classes") and num_classes is None:
        architecture["num_classes"] = network.num_classes
    return Result(
        copies(as_checkpoint(network.state_dict(), "a fresh network")),
        History(architecture, blocks=traced_blocks(network)),
        name=f"{own.name}.init",
        recorded={"model": own.said},
    )
