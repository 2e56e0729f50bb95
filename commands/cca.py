"""`wsurgery cca`: how alike two networks' representations are, layer by layer."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsurgery.commands._shared import Device, Force, Json, Seed, Threads, command, say

if TYPE_CHECKING:
    from wsurgery.similarity.compare import LayerSimilarity


@command
def cca(
    a: Annotated[str, typer.Argument(metavar="A", help="A checkpoint.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The checkpoint to compare it with.")],
    data: Annotated[str, typer.Option(metavar="SPEC", help="A manifest, or scheme:argument?key=value.")],
    layers: Annotated[
        str | None,
        typer.Option(metavar="L,…", help="Blocks, or module paths. Default: all blocks but neck and head."),
    ] = None,
    p: Annotated[int, typer.Option("-p", min=1, help="Image patches (rows) to correlate over.")] = 10_000,
    d: Annotated[int, typer.Option("-d", min=1, help="Channels to draw, at most those that there are.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Number of draws.")] = 10,
    channels: Annotated[
        str, typer.Option(help="independent: drawn on each side; same: the same on both; all: no draw.")
    ] = "independent",
    rows: Annotated[
        str, typer.Option(help="spatial: as many positions in every image; whole: few images, all positions.")
    ] = "spatial",
    split: Annotated[str, typer.Option(help="The split to take images from.")] = "test",
    image_size: Annotated[int | None, typer.Option(min=1, help="Pixels a side. Default: the data's own.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Images to use, if there are as many.")] = 512,
    seed: Seed = 0,
    device: Device = "auto",
    arch: Annotated[str | None, typer.Option(help="Architecture, where a checkpoint does not tell.")] = None,
    threads: Threads = None,
    json: Json = False,
    output: Annotated[Path | None, typer.Option("-o", metavar="FILE", help="Write the JSON to a file.")] = None,
    force: Force = False,
) -> None:
    """Compare two networks, layer by layer, by canonical correlations of their activations on the same images.

    The floor is what the same draws give when B sees other images, the ceiling what they give for A against itself:
    read the value between the two, as `normalised` does.

    Example: wsurgery cca run1/last.safetensors run2/last.safetensors --data manifest.csv --layers conv1,block1
    """
    from contextlib import nullcontext
    from dataclasses import asdict
    from json import dumps

    from wsurgery import __version__
    from wsurgery.checkpoint.writer import AtomicFile, write_all

    with AtomicFile(output, force=force) if output else nullcontext() as stream:
        import torch

        from wsurgery.data.dataset import load_dataset
        from wsurgery.models import load
        from wsurgery.similarity.compare import compare
        from wsurgery.training.predict import choose_device

        if threads:
            torch.set_num_threads(threads)
        arguments: dict[str, Any] = {
            "p": p,
            "d": d,
            "repeats": repeats,
            "channels": channels,
            "rows": rows,
            "seed": seed,
        }
        names = layers.split(",") if layers else None
        where = choose_device(device)
        described = _describe(a), _describe(b)
        network_a, network_b = load(a, arch=arch), load(b, arch=arch)
        dataset = load_dataset(data, split=split, image_size=image_size)
        found = compare(network_a, network_b, dataset.images, layers=names, n_images=images, device=where, **arguments)
        for layer in found:
            for note in layer.notes:
                say(f"{layer.layer}: {note}")
        result = {
            "version": __version__,
            "a": described[0],
            "b": described[1],
            "data": {"spec": data, "split": split, "image_size": dataset.images.shape[1], "digest": dataset.digest},
            "arguments": {**arguments, "layers": names, "images": images, "arch": arch, "device": str(where)},
            "layers": [asdict(layer) for layer in found],
        }
        text = dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        if stream:
            write_all(stream, text.encode())
        elif json:
            typer.echo(text, nl=False)
    if not json:
        _print_table(found)


def _describe(source: str) -> dict[str, Any]:
    from wsurgery.checkpoint import open_checkpoint
    from wsurgery.checkpoint.provenance import History, describe_input

    with open_checkpoint(source) as checkpoint:
        described = describe_input(checkpoint, History(), flows=False)
    return {key: value.result() if key == "blake3" else value for key, value in described.items()}


def _print_table(found: "list[LayerSimilarity]") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    table = Table("layer", title="mean canonical correlation", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("value", "± se", "floor", "ceiling", "normalised", "channels", "rows", "dead"):
        table.add_column(heading, justify="right")
    for x in found:
        similarity = (number(score) for score in (x.value, x.se, x.floor, x.ceiling, x.normalised))
        channels = f"{x.d}/{x.c_a}" if x.c_a == x.c_b else f"{x.d}/{x.c_a},{x.c_b}"
        dead = f"{x.dead_a}" if x.dead_a == x.dead_b else f"{x.dead_a},{x.dead_b}"
        table.add_row(x.layer, *similarity, channels, str(x.p), dead)
    Console().print(table)
