"""`wsurgery data`: make, cache and describe data sets."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsurgery.commands._images import BadList, SkipBad
from wsurgery.commands._shared import Force, Json, Threads, command, print_table, say, show_table
from wsurgery.data.rendering import Fit
from wsurgery.errors import UsageError, printable, printable_json

if TYPE_CHECKING:
    from rich.table import Table

    from wsurgery.data.manifest import Manifest

data = typer.Typer(no_args_is_help=True, help="Make, cache and describe data sets.")


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
        "fit": fit, "window": window,
    }  # fmt: skip
    keys = "&".join(f"{key}={value}" for key, value in flags.items() if value)
    spec += ("&" if "?" in spec else "?") * bool(keys) + keys
    if output.suffix in (".csv", ".parquet"):
        manifest = make_manifest(spec, output, force=force, threads=threads)
        alone = "" if manifest.has_patients else f": {ALONE}"
        say(f"{output}: {len(manifest)} images, {len(set(manifest.patients))} patients{alone}")
        labels = f"labels: {printable(', '.join(manifest.label_names), 1000)}"
        for note in (labels, *manifest.notes, *_lacks(manifest, spec), f"images: {manifest.rendering.described}"):
            say(note)
        return
    made = make_data(spec, output, force=force, threads=threads)
    say(f"{output / 'manifest.csv'}" if made else f"{output / 'manifest.csv'} is there already: nothing to do")


def _lacks(manifest: "Manifest", spec: str) -> list[str]:
    """Say which splits of a study no image is in, and how there would be some."""
    from math import ceil

    from wsurgery.data.manifest import DRAWN
    from wsurgery.data.table import is_table

    needed = {"train": "which train needs", "valid": "which train needs", "test": "which eval takes"}
    absent = [name for name in needed if name not in manifest.splits]
    drawn = any(note.startswith(DRAWN) for note in manifest.notes)
    parts = ["valid", "test"] if drawn else [name for name in absent if name != "train"]
    pairs = zip(manifest.patients, manifest.splits, strict=True)
    n = len({patient for patient, split in pairs if drawn or split == "train"})  # of these some can be held out
    part = max(0.15, ceil(100 / max(n, 1)) / 100)
    held_out = f"{' and '.join(f'{name}={part:g}' for name in parts)} for patients held out" if n > len(parts) else ""
    if drawn:
        remedy = held_out or f"{n} patients are too few for train, valid and test"
    elif is_table(spec.partition("?")[0]):
        remedy = "split=COLUMN says it" + (f", or {held_out}" if held_out and parts else "")
    else:
        remedy = "valid= and test= say a larger part of the patients, where the data has no such split"
    return [f"no image is in the split {name}, {needed[name]}: {remedy}" for name in absent]


@command
def data_cache(
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="A manifest, or scheme:argument?key=value.", show_default=False)
    ] = None,
    image_size: Annotated[int | None, typer.Option(min=1, help="Pixels a side.")] = None,
    subset: Annotated[int | None, typer.Option(min=1, help="Of train's images only what train --subset takes.")] = None,
    skip_bad: SkipBad = False,
    bad_list: BadList = None,
    threads: Threads = None,
    listed: Annotated[bool, typer.Option("--list", help="List what is in the cache instead.")] = False,
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove instead what is in the cache. It is made again when it is needed.")
    ] = False,
    json: Json = False,
) -> None:
    """Decode and scale all images once, each split for itself, so that train, eval and cca start at once.

    Cut off and run again, it goes on where it was. The cache is the folder $WSURGERY_CACHE, or else ~/.cache/wsurgery
    (wsurgery in $XDG_CACHE_HOME); it has drawn data, too.

    Example: wsurgery data cache fundus/manifest.csv --image-size 64

    Example: wsurgery data cache --list
    """
    if listed or clear:
        if data is not None or (listed and clear):
            raise UsageError("--list and --clear are of all that is in the cache: give one of them, and no DATA")
        _list_cache(json=json) if listed else _clear_cache()
        return
    if data is None or image_size is None:
        raise UsageError(f"{'DATA' if data is None else '--image-size'} is missing (or --list, or --clear)")
    if json:
        raise UsageError("--json is for --list")
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


def _list_cache(*, json: bool) -> None:
    from wsurgery.data.cache import cache_folder
    from wsurgery.data.cached import list_cache

    entries = list_cache()
    total = sum(entry.bytes for entry in entries)
    if json:
        found = [{**asdict(entry), "path": str(entry.path)} for entry in entries]
        typer.echo(printable_json({"folder": str(cache_folder()), "bytes": total, "entries": found}))
        return
    rows = []
    for entry in entries:
        what = "drawn data" if entry.is_drawn else "images of an earlier version"
        if entry.of:
            size, fit = entry.of["image_size"], entry.of["fit"]
            what = f"{entry.of['images']} images of {size} x {size}, {fit}, in {entry.of['folder']}"
        what = what if entry.complete else "images, not all decoded yet"
        rows.append([f"{entry.bytes / 1e6:.1f}", entry.changed, what, entry.path.name])
    if rows:
        print_table(["MB", "changed", "what", "name"], rows, left={"changed", "what", "name"})
    say(f"{len(entries)} entries, {total / 1e6:.1f} MB in {cache_folder()}")


def _clear_cache() -> None:
    from wsurgery.data.cache import cache_folder
    from wsurgery.data.cached import clear_cache

    gone, busy = clear_cache()
    say(f"{len(gone)} entries removed, {sum(entry.bytes for entry in gone) / 1e6:.1f} MB from {cache_folder()}")
    for entry in busy:
        say(f"{entry.path.name} is being made, and stays")


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
    from wsurgery.data.manifest import summarise
    from wsurgery.data.sources import absent, open_data

    manifest = open_data(data)
    if said := absent(data, manifest):
        say(f"{said} (train and eval --skip-bad leave them out)")
    if labels:
        typer.echo("\n".join(map(printable, manifest.label_names)))
        return
    summary = summarise(manifest)
    for note in (*(() if manifest.has_patients else (ALONE,)), *manifest.notes):
        say(note)
    if json:
        typer.echo(printable_json(summary))
    else:
        show_table(_table(summary, manifest))


def _table(summary: dict[str, Any], manifest: "Manifest") -> "Table":
    from rich.table import Table
    from rich.text import Text

    splits = summary["splits"]
    beside = f"\nbeside: {printable(', '.join(manifest.metadata), 1000)}" if manifest.metadata else ""
    images = f"\nimages: {manifest.rendering.described}"
    table = Table("", caption_justify="left", caption=Text(f"labels: positive / negative / unknown{beside}{images}"))
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
