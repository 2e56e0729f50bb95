"""Comparing activations that are in files: no network is run, and memory does not grow with the rows."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from wsurgery.archives import one_line_errors, read_array_header
from wsurgery.checkpoint.unchanged import file_state, require_unchanged
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.operations.arrays import Array
from wsurgery.progress import Progress
from wsurgery.similarity.metrics import check_metrics, require_rows
from wsurgery.similarity.moments import Varying
from wsurgery.similarity.protocol import (
    GROUPS,
    Channels,
    Draws,
    enough_threads,
    few_rows,
    groups_at_once,
    repeats_at_once,
    usable_groups,
)
from wsurgery.similarity.results import LayerSimilarity, summarise
from wsurgery.untrusted import open_regular

LAYER = "activations"
SMALLEST_EIGENVALUE = 0.25  # of a correlation matrix whose canonical correlations keep 1e-6 from products in float32
_CHUNK_BYTES = 1 << 23


class ActivationFile:
    """A .npy file of activations, rows × channels, of a floating type. The same row of two files is the same input.

    Attributes:
        rows, channels: its shape.
    """

    def __init__(self, path: Path) -> None:
        """Look at the header.

        Raises:
            WsurgeryError: it is no .npy file, ends early, or holds something else.
        """
        where = printable(str(path))
        with one_line_errors(where), open_regular(path) as stream:
            header = read_array_header(stream)
            there, self._state = os.fstat(stream.fileno()).st_size - header.length, file_state(stream.fileno())
        if len(header.shape) != 2:
            raise WsurgeryError(f"{where} has the shape {header.shape}: reshape it to rows × channels")
        if header.dtype.kind != "f" or header.dtype.itemsize > 8:
            raise WsurgeryError(f"{where} holds {header.dtype}: save float16, float32 or float64")
        if not 0 < header.nbytes <= there:
            raise WsurgeryError(f"{where} is empty, or ends early: {header.nbytes} bytes in {max(there, 0)}")
        self._path, self._header = path, header
        self.rows, self.channels = header.shape

    def read(self, start: int, stop: int) -> Array:
        """Return the rows from `start` to `stop`, (n, channels).

        Raises:
            WsurgeryError: the file has become shorter.
        """
        header, n = self._header, stop - start
        starts, count = [start * self.channels], n * self.channels
        if header.fortran:  # column after column
            starts, count = list(range(start, self.rows * self.channels, self.rows)), n
        pieces = []
        with one_line_errors(printable(str(self._path))), open_regular(self._path) as stream:
            for first in starts:
                stream.seek(header.length + first * header.dtype.itemsize)
                pieces.append(np.fromfile(stream, header.dtype, count))
            rows = np.stack(pieces, axis=1) if header.fortran else pieces[0].reshape(n, self.channels)
        return rows.astype(header.dtype.newbyteorder("="), copy=False)

    def finish(self) -> None:
        """See that nobody wrote to it while it was read.

        Raises:
            WsurgeryError: somebody did.
        """
        require_unchanged(printable(str(self._path)), self._path, self._state)


def compare_files(
    a: Path,
    b: Path,
    *,
    d: int = 64,
    repeats: int = 10,
    channels: Channels = "independent",
    metrics: Sequence[str] = ("mean_cca",),
    groups: int = GROUPS,
    seed: int = 0,
    fast: bool = False,
) -> list[LayerSimilarity]:
    """Compare two files of activations as `wsurgery.similarity.compare.compare` does a layer of two networks.

    All rows are used. Where images begin is not known, so for the floor each row of A meets the row of B that is half
    of all rows away.

    Args:
        a, b: .npy files, (rows, channels), float16, float32 or float64.
        d, repeats, channels, metrics, seed: as for `compare`.
        groups: of consecutive rows to leave out in turn, for the jackknife.
        fast: multiply in float32. Where a correlation matrix has an eigenvalue too small for 1e-6 to be kept, the file
            is read again and multiplied in float64; a note says so.

    Returns:
        One entry a metric, in order.

    Raises:
        UsageError: an argument that cannot mean anything, or too few rows for the number of channels.
        WsurgeryError: a file that cannot be used, or two whose rows do not belong together.
    """
    check_metrics(metrics)
    if channels not in get_args(Channels):
        raise UsageError(f"channels are {', '.join(get_args(Channels))}, not {printable(channels)}")
    if min(d, repeats, groups) < 1:
        raise UsageError("d, repeats and groups must be at least 1")
    files = ActivationFile(a), ActivationFile(b)
    (rows_a, c_a), (rows_b, c_b) = ((file.rows, file.channels) for file in files)
    names = printable(str(a)), printable(str(b))
    if rows_a != rows_b:
        raise WsurgeryError(
            f"{names[0]} has {rows_a} rows and {names[1]} has {rows_b}: row i of both must be the same input"
        )
    if channels == "same" and c_a != c_b:
        raise UsageError(
            f"{names[0]} has {c_a} channels and {names[1]} has {c_b}: --channels same needs as many in both"
        )
    d = min(d, c_a, c_b)
    drawn = (c_a, c_b) if channels == "all" else (d, d)
    need = require_rows(f"{names[0]} has {rows_a} rows", rows_a, drawn, metrics, "use more rows or fewer channels (-d)")
    notes = few_rows(rows_a, max(drawn), "more rows")
    sizes = [((c_a, c_b), drawn)]
    step = repeats_at_once(sizes, repeats)
    groups = usable_groups(groups_at_once(sizes, step, groups), units=rows_a, rows=1, channels=need)
    found, varied = [], []
    with enough_threads(max(drawn)):
        for start in range(0, repeats, step):
            some = range(start, min(start + step, repeats))

            def draw(some: range = some, *, fast: bool) -> Draws:
                return Draws(
                    LAYER,
                    (c_a, c_b),
                    drawn,
                    some,
                    channels=channels,
                    seed=seed,
                    metrics=metrics,
                    groups=groups,
                    fast=fast,
                )

            draws = draw(fast=fast)
            varying = _run(*files, draws)
            if fast and draws.finite and draws.smallest_eigenvalue < SMALLEST_EIGENVALUE:
                draws = draw(fast=False)
                varying = _run(*files, draws)
                note = "float32 could not hold 1e-6 on channels as correlated as these: multiplied in float64"
                notes += [note] if note not in notes else []
            found.append(draws)
            varied.append(varying)
        for file in files:
            file.finish()
        return summarise(LAYER, LAYER, found, varied, d=min(drawn), p=rows_a, images=None, same_rows=True, notes=notes)


def _run(a: ActivationFile, b: ActivationFile, draws: Draws) -> tuple[Varying, Varying]:
    """Pass over all rows once; return what varies of A and of B."""
    varying, n, half = (Varying(), Varying()), a.rows, a.rows // 2
    step = max(1, _CHUNK_BYTES // (8 * (a.channels + b.channels)))
    with Progress(n, "rows") as progress:
        for start in range(0, n, step):
            stop = min(start + step, n)
            rows_a, rows_b = a.read(start, stop), b.read(start, stop)
            varying[0].update(rows_a)
            varying[1].update(rows_b)
            rows_a, rows = rows_a.take(draws.columns_a, 1), rows_b.take(draws.columns_b, 1)
            group, paired = np.arange(start, stop) * draws.groups // n, np.hstack([rows_a, rows])
            for i in np.unique(group):
                first, last = np.searchsorted(group, [i, i + 1])
                draws.add_paired(paired[first:last], int(i))
            across = (start + half, min(stop + half, n)), (max(start + half, n) - n, stop + half - n)
            rolled_b = np.concatenate([b.read(*part) for part in across if part[0] < part[1]])
            draws.add_rolled(np.hstack([rows_a, rolled_b.take(draws.columns_b, 1)]))
            progress.advance(stop - start)
    return varying
