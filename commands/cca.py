"""`wsurgery cca`: how alike two networks' representations are, layer by layer."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsurgery.commands._images import SkipBad, say_skipped
from wsurgery.commands._shared import Device, Force, Json, Seed, Threads, command, say, table_console

if TYPE_CHECKING:
    from wsurgery.similarity.results import LayerSimilarity

_OF_NETWORKS = ("data", "layers", "p", "rows", "split", "image_size", "skip_bad", "images", "device", "arch")


@command
def cca(
    context: typer.Context,
    a: Annotated[str, typer.Argument(metavar="A", help="A checkpoint.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The checkpoint to compare it with.")],
    data: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="A manifest, or scheme:argument?key=value. Needed but with --activations."),
    ] = None,
    activations: Annotated[
        bool,
        typer.Option(
            "--activations",
            help="A and B are .npy files, rows × channels, row i of both the same input; no network is run. All rows are "
            "used, and for the floor B is rolled by half of them.",
        ),
    ] = False,
    metric: Annotated[
        str,
        typer.Option(
            metavar="M,…",
            help="mean_cca, svcca (99 % of the variance), pwcca (weighted by A), r2_cca, adjusted_r2_cca, linear_cka, "
            "unbiased_cka, procrustes. All of them from the same draws, in one pass.",
        ),
    ] = "mean_cca",
    compat: Annotated[
        str | None,
        typer.Option(
            metavar="svcca", help="svcca: the mean of cca_coef1 as github.com/google/svcca has it, epsilon 1e-10."
        ),
    ] = None,
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
    skip_bad: SkipBad = False,
    images: Annotated[int, typer.Option(min=1, help="Images to use, if there are as many.")] = 512,
    fast: Annotated[
        bool,
        typer.Option("--fast", help="With --activations: multiply in float32, where that holds 1e-6, else in float64."),
    ] = False,
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

    Example: wsurgery cca --activations a.npy b.npy --channels all --metric mean_cca,linear_cka
    """
    from contextlib import nullcontext
    from dataclasses import asdict
    from json import dumps

    from wsurgery import __version__
    from wsurgery.checkpoint.writer import AtomicFile, write_all
    from wsurgery.errors import UsageError, printable

    if activations:
        for name in _OF_NETWORKS:
            source = context.get_parameter_source(name)
            if source is not None and source.name == "COMMANDLINE":
                raise UsageError(f"{'-p' if name == 'p' else '--' + name.replace('_', '-')} is not for --activations")
    elif fast:
        raise UsageError("--fast is for --activations: networks pass over their images only once")
    elif data is None:
        raise UsageError("--data SPEC is needed, or --activations with two .npy files")
    if compat not in (None, "svcca"):
        raise UsageError(f"--compat is svcca, not {printable(compat)}")
    if compat and metric != "mean_cca":
        raise UsageError("--compat svcca is a definition of mean_cca: leave --metric out")
    metrics = ["google_svcca"] if compat else metric.split(",")
    with AtomicFile(output, force=force) if output else nullcontext() as stream:
        import torch
        from threadpoolctl import threadpool_limits

        from wsurgery.similarity.files import compare_files

        if threads:
            torch.set_num_threads(threads)
            threadpool_limits(threads)  # of numpy's and scipy's libraries, which are loaded by now
        shared: dict[str, Any] = {"d": d, "repeats": repeats, "channels": channels, "metrics": metrics, "seed": seed}
        result: dict[str, Any] = {"version": __version__}
        if data is None:
            found = compare_files(Path(a), Path(b), fast=fast, **shared)
            result |= {"a": _describe_file(a), "b": _describe_file(b), "arguments": {**shared, "fast": fast}}
        else:
            from wsurgery.data.dataset import load_dataset
            from wsurgery.models import load
            from wsurgery.similarity.compare import compare
            from wsurgery.training.predict import choose_device

            arguments = {**shared, "p": p, "rows": rows}
            names = layers.split(",") if layers else None
            where = choose_device(device)
            result |= {"a": _describe(a), "b": _describe(b)}
            network_a, network_b = load(a, arch=arch), load(b, arch=arch)
            dataset = load_dataset(data, split=split, image_size=image_size, skip_bad=skip_bad)
            say_skipped(split, dataset.skipped)
            found = compare(
                network_a, network_b, dataset.images, layers=names, n_images=images, device=where, **arguments
            )
            result["data"] = {
                "spec": data, "split": split, "image_size": dataset.images.shape[1], "digest": dataset.digest,
            }  # fmt: skip
            result["arguments"] = {
                **arguments, "layers": names, "images": images, "arch": arch, "device": str(where)
            }  # fmt: skip
        for note in dict.fromkeys(f"{layer.layer}: {note}" for layer in found for note in layer.notes):
            say(note)
        result["layers"] = [asdict(layer) for layer in found]
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


def _describe_file(path: str) -> dict[str, Any]:
    from wsurgery.checkpoint.digest import file_digest

    return {"name": Path(path).name, "size": Path(path).stat().st_size, "blake3": file_digest(Path(path))}


def _print_table(found: "list[LayerSimilarity]") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    metrics = {x.metric for x in found}
    title = "mean canonical correlation" if metrics == {"mean_cca"} else "similarity"
    table = Table("layer", title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    if metrics != {"mean_cca"}:
        table.add_column("metric")
    for heading in ("value", "± se", "floor", "ceiling", "normalised", "channels", "rows", "dead"):
        table.add_column(heading, justify="right")
    for x in found:
        similarity = (number(score) for score in (x.value, x.se, x.floor, x.ceiling, x.normalised))
        channels = f"{x.d}/{x.c_a}" if x.c_a == x.c_b else f"{x.d}/{x.c_a},{x.c_b}"
        dead = f"{x.dead_a}" if x.dead_a == x.dead_b else f"{x.dead_a},{x.dead_b}"
        metric = [] if metrics == {"mean_cca"} else [x.metric]
        table.add_row(x.layer, *metric, *similarity, channels, str(x.p), dead)
    table_console().print(table)
