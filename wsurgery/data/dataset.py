"""A data set in memory, as training, evaluation and comparison take it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsurgery.checkpoint.sink import write_all
from wsurgery.checkpoint.writer import AtomicFile
from wsurgery.data.cache import decode, decode_readable, native_size
from wsurgery.data.manifest import are_known
from wsurgery.data.rendering import DEFAULT, Rendering
from wsurgery.data.sources import open_data, said_rendering
from wsurgery.errors import UsageError, WsurgeryError, csv_text, printable, table_cell
from wsurgery.untrusted import open_regular

_COLUMNS = "split", "path", "reason"


@dataclass(frozen=True, eq=False)
class Dataset:
    """n images of one size with k labels each.

    Attributes:
        images: uint8 (n, size, size, 3), RGB; mapped from the cache, so as large as the disk allows.
        labels: float32 (n, k): 0, 1, or NaN for unknown.
        label_names: (k,).
        patients: (n,).
        paths: (n,), relative to the manifest's folder.
        digest: BLAKE3 of the manifest's rows that are here, as 64 hexadecimal digits.
        skipped: path → what is wrong with it, of each image that was left out.
        rendering: how image files became squares.
        fold: K/N, where the split is one of the K-th of N folds of the patients; else empty.
        split: which one they are, if they are one; else empty.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.float32]
    label_names: tuple[str, ...]
    patients: tuple[str, ...]
    paths: tuple[str, ...]
    digest: str
    skipped: Mapping[str, str] = field(default_factory=dict)
    rendering: Rendering = DEFAULT
    fold: str = ""
    split: str = ""

    @property
    def has_patients(self) -> bool:
        """Whether any image's patient is known."""
        return are_known(self.patients, self.paths)


def report_skipped(
    skipped: Mapping[str, Mapping[str, str]], say: Callable[[str], None], file: str | Path | None = None
) -> None:
    """Count the images of each split that were left out, say what was wrong with the first, and list them all.

    Args:
        skipped: split → path → what is wrong with it.
        say: takes a message for people.
        file: CSV with the columns split, path and reason; a list that is there already is replaced.

    Raises:
        UsageError: the file is there and is something else.
    """
    for split, images in skipped.items():
        if images:
            say(f"{split}: {len(images)} images left out, first: {next(iter(images.values()))}")
    if file is None:
        return
    path = Path(file)
    if path.exists() and not _is_list(path):
        raise UsageError(f"{printable(str(path))} exists, and is no list of images: choose another name")
    listed = ((split, name, reason) for split, images in skipped.items() for name, reason in images.items())
    text = csv_text([_COLUMNS, *(map(table_cell, row) for row in listed)])
    with AtomicFile(path, force=True) as stream:
        write_all(stream, text.encode())


def _is_list(path: Path) -> bool:
    with open_regular(path) as stream:
        return stream.read(64).startswith(",".join(_COLUMNS).encode() + b"\n")


def load_dataset(
    spec: str,
    *,
    split: str | None,
    image_size: int | None = None,
    subset: int | None = None,
    at_most: int | None = None,
    skip_bad: bool = False,
    trained: Rendering | None = None,
    threads: int | None = None,
) -> Dataset:
    """Load the images of a split.

    Args:
        spec: a manifest, or `scheme:argument?key=value`.
        split: None for all splits together.
        image_size: pixels a side. None: the shorter side of the first image, of the split or of all folds, in whatever subset.
        subset: only as many whole patients as it takes for this many images; smaller subsets are part of larger ones.
        at_most: a subset likewise, and all images where there are no more.
        skip_bad: leave out what cannot be read, instead of raising.
        trained: how images were rendered for the network that is to meet these. Its fit is taken where `spec` says none, and
            its window where the data have none of their own, for that belongs to their values.
        threads: for making and decoding what is not there yet. Default: all cores.

    Raises:
        UsageError: no such data or split, or a subset larger than it.
        WsurgeryError: a broken manifest or image.
    """
    manifest = open_data(spec, threads=threads)
    if trained is not None:
        own, said = manifest.rendering, said_rendering(spec)
        fit = own.fit if "fit" in said else trained.fit
        window = own.window if "window" in said or own.window != DEFAULT.window else trained.window
        manifest = replace(manifest, rendering=Rendering(fit, window))
    whole = manifest
    if split is not None:
        manifest = manifest.where(split)
        whole = whole if whole.fold else manifest
    if subset is not None:
        manifest = manifest.subset(subset)
    if at_most is not None and at_most < len(manifest):
        manifest = manifest.subset(at_most)
    skipped: dict[str, str] = {}
    try:
        # Of what is drawn from, whose images need not all be there: parts of one table have one size.
        size = image_size or native_size(whole, skip_bad=skip_bad or len(manifest) < len(whole))
        if skip_bad:
            images, manifest, skipped = decode_readable(manifest, size, threads=threads)
        else:
            images = decode(manifest, size, threads=threads)
    except UsageError:
        raise
    except WsurgeryError as error:
        raise error if skip_bad else WsurgeryError(f"{error}; --skip-bad leaves such images out") from error
    return Dataset(
        images,
        manifest.labels,
        manifest.label_names,
        manifest.patients,
        manifest.paths,
        manifest.digest,
        skipped,
        manifest.rendering,
        manifest.fold,
        split or "",
    )
