"""`wsurgery data`: make, cache and describe data sets."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsurgery.commands._images import BadList, SkipBad
from wsurgery.commands._shared import Force, Json, Threads, command, say
from wsurgery.errors import printable, printable_json

if TYPE_CHECKING:
    from rich.table import Table

    from wsurgery.data.manifest import Manifest

data = typer.Typer(no_args_is_help=True, help="Make, cache and describe data sets.")


class Fit(str, Enum):
    """How an image becomes a square."""

    crop = "crop"
    pad = "pad"
    stretch = "stretch"


ALONE = "no patients are known, each image counts as one"

Data = Annotated[str, typer.Argument(metavar="DATA", help="A manifest, or scheme:argument?key=value.")]


@command
def data_make(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="TABLE?key=value or scheme:argument?key=value.")],
    output: Annotated[
        Path,
        typer.Option(
            "-o", metavar="OUT", help="The manifest, .csv or .parquet; or for synthetic data a folder for all of it."
        ),
    ],
    uncertain: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[LABEL=]POLICY",
            help="What -1 means, for all labels or one: ones, zeros, or ignore (default): unknown. Repeatable.",
        ),
    ] = None,
    blank: Annotated[
        str | None,
        typer.Option(
            metavar="zero|ignore", help="What no label means: zero (chexpert and mimic unless you say) or unknown."
        ),
    ] = None,
    ordinal: Annotated[
        bool, typer.Option("--ordinal", help="Grades as cumulative labels: at least mild, at least moderate, ...")
    ] = False,
    fit: Annotated[
        Fit | None,
        typer.Option(
            help="How images become squares: crop keeps the centre, pad all on black, stretch all stretched. Default: crop, or "
            "as a set's papers do."
        ),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            metavar="auto|span|full|percentiles|LOW:HIGH",
            help="Which values are black and white in images of more than 8 bits and DICOM.",
        ),
    ] = None,
    threads: Threads = None,
    force: Force = False,
) -> None:
    """Make a manifest of a data set: which image, of which patient, is in which split and has which labels.

    Any table, CSV or Parquet: TABLE?path=COLUMN&patient=COLUMN&split=COLUMN&labels=A,B, or with class=COLUMN for labels.
    The other columns are kept beside. Splits that the data does not bring are held out by patient (valid, test: parts of
    the patients; seed).

    folder:DIR, one folder a class (keys patient=REGEX, tree=patient/class/image, positive=CLASS,CLASS, ordinal=true,
    order=LOWEST,...,HIGHEST), medmnist:FILE.npz, and sets as their makers give them out: chexpert:DIR, nih:DIR, mimic:DIR,
    padchest:DIR, vindr:DIR, rsna:DIR, ham10000:DIR, isic:DIR, odir:DIR, idrid:DIR, eyepacs:DIR, aptos:DIR, messidor2:DIR,
    malaria:DIR. docs/data.md has their keys.

    Drawn here are synthetic:fundus (keys n, size, seed, contrast) and synthetic:textures (keys n, size, seed). An image
    depends on its number and the keys only. With -o FOLDER the images and manifest.csv go there; data that is there
    already is left as it is.

    Example: wsurgery data make chexpert:/data/CheXpert-v1.0-small --uncertain zeros --uncertain edema=ones -o chexpert.csv

    Example: wsurgery data make "table.csv?path=image&patient=subject&labels=edema,effusion&valid=0.15&test=0.15" -o m.csv

    Example: wsurgery data make "synthetic:fundus?n=2000&size=64" -o fundus/
    """
    from wsurgery.data.sources import make_data, make_manifest

    flags = {
        "uncertain": ",".join(uncertain or ()), "blank": blank, "ordinal": "true" if ordinal else None,
        "fit": fit and fit.value, "window": window,
    }  # fmt: skip
    keys = "&".join(f"{key}={value}" for key, value in flags.items() if value)
    spec += ("&" if "?" in spec else "?") * bool(keys) + keys
    if output.suffix in (".csv", ".parquet"):
        manifest = make_manifest(spec, output, force=force, threads=threads)
        alone = "" if manifest.has_patients else f": {ALONE}"
        say(f"{output}: {len(manifest)} images, {len(set(manifest.patients))} patients{alone}")
        for note in (*manifest.notes, f"images: {manifest.rendering.described}"):
            say(note)
        return
    made = make_data(spec, output, force=force, threads=threads)
    say(f"{output / 'manifest.csv'}" if made else f"{output / 'manifest.csv'} is there already: nothing to do")


@command
def data_cache(
    data: Data,
    image_size: Annotated[int, typer.Option(min=1, help="Pixels a side.")],
    subset: Annotated[int | None, typer.Option(min=1, help="Of train's images only what train --subset takes.")] = None,
    skip_bad: SkipBad = False,
    bad_list: BadList = None,
    threads: Threads = None,
) -> None:
    """Decode and scale all images once, each split for itself, so that train, eval and cca start at once.

    Cut off and run again, it goes on where it was.

    Example: wsurgery data cache fundus/manifest.csv --image-size 64
    """
    from wsurgery.data.cache import cache_folder, decode, decode_readable
    from wsurgery.data.dataset import report_skipped
    from wsurgery.data.sources import open_data

    manifest = open_data(data, threads=threads)
    left_out = {}
    for split in sorted(set(manifest.splits)):
        part = manifest.where(split)
        if subset is not None and split == "train":
            part = part.subset(subset)
        if skip_bad or bad_list:
            images, _, left_out[split] = decode_readable(part, image_size, threads=threads)
        else:
            images = decode(part, image_size, threads=threads)
        say(f"{split}: {len(images)} images, {images.nbytes / 1e6:.1f} MB in {cache_folder()}")
    report_skipped(left_out, say, bad_list)


@command
def data_show(
    data: Data,
    labels: Annotated[
        bool, typer.Option("--labels", help="Only the labels, one a line, in the network's order.")
    ] = False,
    json: Json = False,
) -> None:
    """Count images and patients, and each label's positives, negatives and unknowns, in each split.

    Example: wsurgery data show fundus/manifest.csv

    Example: wsurgery init resnet18 --num-classes $(wsurgery data show m.csv --labels | wc -l) > init.safetensors
    """
    from rich.console import Console

    from wsurgery.data.manifest import summarise
    from wsurgery.data.sources import open_data

    manifest = open_data(data)
    if labels:
        typer.echo("\n".join(map(printable, manifest.label_names)))
        return
    summary = summarise(manifest)
    for note in (*(() if manifest.has_patients else (ALONE,)), *manifest.notes):
        say(note)
    if json:
        typer.echo(printable_json(summary))
    else:
        Console().print(_table(summary, manifest))


def _table(summary: dict[str, Any], manifest: "Manifest") -> "Table":
    from rich.table import Table
    from rich.text import Text

    splits = summary["splits"]
    beside = f"\nbeside: {printable(', '.join(manifest.metadata), 1000)}" if manifest.metadata else ""
    images = f"\nimages: {manifest.rendering.described}"
    table = Table("", caption=Text(f"labels: positive / negative / unknown{beside}{images}"))
    for name in splits:
        table.add_column(Text(printable(name)), justify="right")
    for row in ("images", "patients"):
        table.add_row(row, *(str(split[row]) for split in splits.values()), end_section=row == "patients")
    for label in next(iter(splits.values()))["labels"]:
        counts = (split["labels"][label] for split in splits.values())
        table.add_row(Text(printable(label)), *(" / ".join(str(x) for x in count.values()) for count in counts))
    return table


for name, function in (("make", data_make), ("cache", data_cache), ("show", data_show)):
    data.command(name)(function)
