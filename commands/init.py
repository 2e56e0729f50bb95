"""`wsurgery init`."""

import ast
from typing import Annotated, Any

import typer

from wsurgery.commands._shared import Output, Seed, command
from wsurgery.errors import UsageError


@command
def init(
    arch: Annotated[str, typer.Argument(metavar="ARCH", help="A timm model, cbr_large_t, cbr_large_w, cbr_small, ...")],
    num_classes: Annotated[int | None, typer.Option(min=0, help="Outputs. Default: the model's own.")] = None,
    in_chans: Annotated[int | None, typer.Option(min=1, help="Channels of the image. Default: 3.")] = None,
    width: Annotated[
        float | None, typer.Option(min=0, help="Factor on the widths of a CBR network, or of a ResNet's stages.")
    ] = None,
    arg: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="More arguments of the model.")] = None,
    seed: Seed = 0,
    *,
    output: Output,
) -> None:
    """Make a fresh random network, with timm's distributions.

    The CBR networks and plain ResNets are made without PyTorch: the same bytes on every machine.

    Example: wsurgery init cbr_small --num-classes 5 --width 0.25 --seed 1 > random.safetensors
    """
    from wsurgery.checkpoint.provenance import History, make_record
    from wsurgery.operations.architectures import find_layout, width_arguments
    from wsurgery.operations.random_network import write_random_network

    args: dict[str, Any] = dict(_key_value(word) for word in arg or [])
    arguments = [arch]
    for option, value in (("--num-classes", num_classes), ("--in-chans", in_chans), ("--width", width)):
        arguments += [] if value is None else [option, str(value)]
    arguments += [word for given in arg or [] for word in ("--arg", given)]
    if width is not None:
        widths = width_arguments(arch, width)
        if twice := sorted(widths.keys() & args.keys()):
            raise UsageError(f"--width and --arg {twice[0]} both say how wide {arch} is: give one of them")
        args |= widths
    architecture = {"name": arch, "num_classes": num_classes, "in_chans": in_chans, "args": args}
    record = make_record("init", arguments, seed=seed, inputs=[])
    with output.destination(f"{arch}.init.safetensors") as path:
        if layout := find_layout(architecture):
            history = History(layout.architecture).then(record)
            write_random_network(layout, history, path, seed=seed, force=output.force, threads=output.threads)
        else:
            from wsurgery.models import create, save

            model = create(architecture, seed=seed)
            architecture |= {
                "num_classes": int(getattr(model, "num_classes", num_classes or 0)),
                "in_chans": in_chans or int(getattr(model, "in_chans", 3)),
            }
            save(model.state_dict(), History(architecture).then(record), path, force=output.force)


def _key_value(word: str) -> tuple[str, Any]:
    key, equals, value = word.partition("=")
    if not (equals and key.isidentifier()):
        raise UsageError(f"--arg {word}: write it as KEY=VALUE")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value
