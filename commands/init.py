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
    width: Annotated[float | None, typer.Option(min=0, help="Factor on the widths of a CBR network.")] = None,
    arg: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="More arguments of the model.")] = None,
    seed: Seed = 0,
    *,
    output: Output,
) -> None:
    """Make a fresh random network.

    Example: wsurgery init cbr_small --num-classes 5 --width 0.25 --seed 1 > random.safetensors
    """
    from wsurgery.checkpoint.provenance import History, make_record
    from wsurgery.models import create, save

    args: dict[str, Any] = dict(_key_value(word) for word in arg or [])
    arguments = [arch]
    for option, value in (("--num-classes", num_classes), ("--in-chans", in_chans), ("--width", width)):
        arguments += [] if value is None else [option, str(value)]
    arguments += [word for given in arg or [] for word in ("--arg", given)]
    if width is not None:
        if not arch.startswith("cbr_"):
            raise UsageError(f"--width is for the CBR networks: give {arch} its widths with --arg")
        args["width"] = width
    model = create({"name": arch, "num_classes": num_classes, "in_chans": in_chans, "args": args}, seed=seed)
    architecture = {
        "name": arch,
        "num_classes": int(getattr(model, "num_classes", num_classes or 0)),
        "in_chans": in_chans or int(getattr(model, "in_chans", 3)),
        "args": args,
    }
    history = History(architecture).then(make_record("init", arguments, seed=seed, inputs=[]))
    with output.destination(f"{arch}.init.safetensors") as path:
        save(model.state_dict(), history, path, force=output.force)


def _key_value(word: str) -> tuple[str, Any]:
    key, equals, value = word.partition("=")
    if not (equals and key.isidentifier()):
        raise UsageError(f"--arg {word}: write it as KEY=VALUE")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value
