"""`wsurgery cca`: how alike two networks' representations are, layer by layer."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsurgery.commands._images import BadList, SkipBad
from wsurgery.commands._shared import (
    Device,
    Force,
    Json,
    ModelOption,
    NetworkThreads,
    OfRun,
    Seed,
    command,
    say,
    show_table,
)
from wsurgery.errors import printable

if TYPE_CHECKING:
    from wsurgery.similarity.results import LayerSimilarity


@command
def cca(
    context: typer.Context,
    a: Annotated[str, typer.Argument(metavar="A", help="A checkpoint, or a run's folder.")],
    b: Annotated[
        str | None, typer.Argument(metavar="[B]", help="The checkpoint to compare it with; not with --with-init.")
    ] = None,
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
    with_init: Annotated[
        bool,
        typer.Option(
            "--with-init", help="Compare A, of a run's folder, with the init.safetensors there, which it began from."
        ),
    ] = False,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="All layers of A against all layers of B, from one pass over the images.")
    ] = False,
    metric: Annotated[
        str,
        typer.Option(
            metavar="M,…",
            help="mean_cca, svcca (99 % of the variance), pwcca (weighted by A), r2_cca, adjusted_r2_cca, linear_cka, "
            "unbiased_cka (unbiased if rows are independent, as patches of one image are not), procrustes. All of them "
            "from the same draws, in one pass.",
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
        typer.Option(metavar="L,…", help="Blocks, or module paths; all: all blocks. Default: those but neck and head."),
    ] = None,
    p: Annotated[int, typer.Option("-p", min=1, max=10**9, help="Image patches (rows) to correlate over.")] = 10_000,
    d: Annotated[
        int, typer.Option("-d", min=1, max=10**6, help="Channels to draw, at most those that there are.")
    ] = 64,
    repeats: Annotated[int, typer.Option(min=1, max=10_000, help="Number of draws.")] = 10,
    channels: Annotated[
        str, typer.Option(help="independent: drawn on each side; same: the same on both; all: no draw.")
    ] = "independent",
    rows: Annotated[
        str, typer.Option(help="spatial: as many positions in every image; whole: few images, all positions.")
    ] = "spatial",
    split: Annotated[str, typer.Option(help="The split to take images from.")] = "test",
    image_size: Annotated[int | None, typer.Option(min=1, help="Pixels a side. Default: as in training.")] = None,
    skip_bad: SkipBad = False,
    bad_list: BadList = None,
    images: Annotated[int, typer.Option(min=1, max=10**9, help="Images to use, if there are as many.")] = 512,
    groups: Annotated[
        int,
        typer.Option(
            min=1, max=10_000, help="Groups of images to leave out in turn, for the images' part of the error; 1: none."
        ),
    ] = 16,
    bias_corrected: Annotated[
        bool, typer.Option("--bias-corrected", help="Also show the value less its bias from the number of images.")
    ] = False,
    fast: Annotated[
        bool,
        typer.Option("--fast", help="With --activations: multiply in float32, where that holds 1e-6, else in float64."),
    ] = False,
    seed: Seed = 0,
    model: ModelOption = None,
    device: Device = "auto",
    arch: Annotated[str | None, typer.Option(help="Architecture, where a checkpoint does not tell.")] = None,
    threads: NetworkThreads = None,
    json: Json = False,
    output: Annotated[Path | None, typer.Option("-o", metavar="FILE", help="Write the JSON to a file.")] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a table with a line a layer and metric.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw the layers, or the matrix between floors and ceilings: .pdf, .svg or .png."
        ),
    ] = None,
    force: Force = False,
    *,
    of_run: OfRun,
) -> None:
    """Compare two networks, layer by layer, by canonical correlations of their activations on the same images.

    The floor is what the same draws give when B sees other images, the ceiling what they give for A against itself:
    read the value between the two, as `normalised` does. Its standard error has a part from the images and one from the
    draws of channels. Started by torchrun or srun, the processes share the images.

    Example: wsurgery cca run1 run2 --data manifest.csv --layers conv1,block1

    Example: wsurgery cca run1 --with-init --data manifest.csv --plot moved.pdf

    Example: wsurgery cca --activations a.npy b.npy --channels all --metric mean_cca,linear_cka

    Example: torchrun --nproc-per-node 4 -m wsurgery cca a.safetensors b.safetensors --data manifest.csv --matrix
    """
    from wsurgery import studies
    from wsurgery.processes import joined
    from wsurgery.similarity.results import LayerSimilarity

    if activations:  # typed with their default, too
        sources = {name: context.get_parameter_source(name) for name in studies.NOT_FOR_ACTIVATIONS}
        studies.require_for_activations(
            name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"
        )
    else:
        a, *others = of_run.of([a] if b is None else [a, b])
        b = others[0] if others else None
    with joined() as processes:
        result = studies.cca(
            a,
            b,
            data=data,
            activations=activations,
            with_init=with_init,
            matrix=matrix,
            metric=metric,
            compat=compat,
            layers=layers,
            p=p,
            d=d,
            repeats=repeats,
            channels=channels,
            rows=rows,
            split=split,
            image_size=image_size,
            skip_bad=skip_bad,
            bad_list=bad_list,
            images=images,
            groups=groups,
            fast=fast,
            seed=seed,
            model=model,
            device=device,
            arch=arch,
            threads=threads,
            output=output,
            csv=csv,
            plot=plot,
            force=force,
            say=say,
            processes=processes,
        )
        if not processes.is_first:
            return
    if json:
        if output is None:
            typer.echo(studies.cca_text(result), nl=False)
        return
    found = [LayerSimilarity(**layer) for layer in result["layers"]]
    if matrix:
        _print_matrix(found)
    else:
        _print_table(found, bias_corrected=bias_corrected)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _print_table(found: "list[LayerSimilarity]", *, bias_corrected: bool) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    metrics = {x.metric for x in found}
    title = "mean canonical correlation" if metrics == {"mean_cca"} else "similarity"
    table = Table("layer", title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    if metrics != {"mean_cca"}:
        table.add_column("metric")
    corrected = ["bias-corrected"] if bias_corrected else []
    errors = ["± se", "± images", "± draws"]
    for heading in ("value", *corrected, *errors, "floor", "ceiling", "normalised", "channels", "rows", "dead"):
        table.add_column(heading, justify="right")
    for x in found:
        values = [x.value, *([x.bias_corrected] if bias_corrected else []), x.se, x.se_images, x.se_channels]
        similarity = (_number(score) for score in (*values, x.floor, x.ceiling, x.normalised))
        channels = f"{x.d}/{x.c_a}" if x.c_a == x.c_b else f"{x.d}/{x.c_a},{x.c_b}"
        dead = f"{x.dead_a}" if x.dead_a == x.dead_b else f"{x.dead_a},{x.dead_b}"
        metric = [] if metrics == {"mean_cca"} else [x.metric]
        table.add_row(Text(printable(x.layer)), *map(Text, metric), *similarity, channels, str(x.p), dead)
    show_table(table, expendable=("rows", "channels", "± images", "± draws", "dead"))


def _print_matrix(found: "list[LayerSimilarity]") -> None:
    """Print a table a metric, a row a layer of A and a column a layer of B: the value ± its standard error."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    for metric in dict.fromkeys(x.metric for x in found):
        results = {(x.layer_a, x.layer_b): x for x in found if x.metric == metric}
        table = Table("A \\ B", title=Text(metric), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        in_b = list(dict.fromkeys(b for _, b in results))
        for b in in_b:
            table.add_column(Text(printable(b)), justify="right")
        for a in dict.fromkeys(a for a, _ in results):
            table.add_row(
                Text(printable(a)), *(f"{_number(results[a, b].value)} ± {_number(results[a, b].se)}" for b in in_b)
            )
        show_table(table)
