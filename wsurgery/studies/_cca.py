"""`wsurgery.cca`."""

import inspect
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any

from wsurgery import __version__
from wsurgery.checkpoint.provenance import describe_file
from wsurgery.checkpoint.sink import write_all
from wsurgery.checkpoint.writer import AtomicFile, require_free
from wsurgery.errors import UsageError, printable, printable_json
from wsurgery.processes import ALONE, Processes
from wsurgery.similarity.files import compare_files
from wsurgery.similarity.results import LayerSimilarity, as_csv
from wsurgery.studies._given import Say, Source, label, path_of, require_at_least, warn

if TYPE_CHECKING:
    from wsurgery.models.own import Model

NOT_FOR_ACTIVATIONS = (
    "data", "layers", "p", "rows", "split", "image_size", "skip_bad", "bad_list", "images", "device", "arch", "model",
    "with_init", "matrix",
)  # fmt: skip


def cca(
    a: Source,
    b: Source | None = None,
    *,
    data: str | Path | None = None,
    activations: bool = False,
    with_init: bool = False,
    matrix: bool = False,
    metric: str | Sequence[str] = "mean_cca",
    compat: str | None = None,
    layers: str | Sequence[str] | None = None,
    p: int = 10_000,
    d: int = 64,
    repeats: int = 10,
    channels: str = "independent",
    rows: str = "spatial",
    split: str = "test",
    image_size: int | None = None,
    skip_bad: bool = False,
    bad_list: str | Path | None = None,
    images: int = 512,
    groups: int = 16,
    fast: bool = False,
    seed: int = 0,
    device: str = "auto",
    arch: str | None = None,
    model: "Model | None" = None,
    threads: int | None = None,
    output: str | Path | None = None,
    csv: str | Path | None = None,
    plot: str | Path | None = None,
    force: bool = False,
    say: Say = warn,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Compare two networks, layer by layer, by canonical correlations of their activations on the same images.

    See `wsurgery.similarity.compare.compare` for how.

    Args:
        a: a checkpoint; with `activations` a .npy file, (rows, channels).
        b: what it is compared with; not with `with_init`.
        data: a manifest, or `scheme:argument?key=value`. Needed but with `activations`.
        activations: compare files of activations; no network is run.
        with_init: compare A, a file in a run's folder, with the `init.safetensors` there.
        matrix: all layers of A against all layers of B.
        metric: one or several, as a list or with commas between them.
        compat: `svcca`: the mean of `cca_coef1` as github.com/google/svcca has it.
        layers: blocks, or module paths; `all` of the blocks. Default: those but neck and head.
        p: image patches (rows) to correlate over.
        d: channels to draw, at most those that there are.
        repeats: number of draws.
        channels: `independent`, `same` or `all`.
        rows: `spatial` or `whole`.
        split: the split to take images from.
        image_size: pixels a side. Default: those of the training, if a record says it, else the data's own.
        skip_bad: leave out images that are missing or cannot be read.
        bad_list: do so, and list them in this file, CSV: split, path, reason.
        images: number of images to use, if there are as many.
        groups: of images to leave out in turn, for the images' part of the error; 1: none.
        fast: with `activations`: multiply in float32, where that holds 1e-6.
        seed: of every draw.
        device: `auto` (cuda or cpu), `cpu`, `cuda`, `cuda:N` or `mps`.
        arch: the timm model, where a checkpoint does not say it.
        model: what makes the network, if timm does not: `FILE.py:CALLABLE`, `package.module:CALLABLE`, or the callable.
        threads: default all cores. Another number may round otherwise.
        output: write the result as JSON to this file.
        csv: write a table with a line a layer and metric to this file.
        plot: draw the layers, or the matrix: .pdf, .svg or .png.
        force: overwrite these files.
        say: takes a message for people.
        processes: which share the images, from `wsurgery.processes.joined`.

    Returns:
        What `cca --json` prints: `layers`, each with the fields of `wsurgery.similarity.results.LayerSimilarity`, and what
        was compared, and how. In any but the first process, nothing.

    Raises:
        UsageError: an option that cannot be, no such layer, too few rows for the channels, or a file exists.
        WsurgeryError: a checkpoint, file or layer that cannot be compared.
    """
    if activations:
        given = (
            data, layers, p, rows, split, image_size, skip_bad, bad_list, images, device, arch, model, with_init, matrix,
        )  # fmt: skip
        own = inspect.signature(cca).parameters
        named = zip(NOT_FOR_ACTIVATIONS, given, strict=True)
        require_for_activations(name for name, value in named if value != own[name].default)
    elif fast:
        raise UsageError("--fast is for --activations: networks pass over their images only once")
    elif data is None:
        raise UsageError("--data SPEC is needed, or --activations with two .npy files")
    if with_init == (b is not None):
        raise UsageError("name one of B and --with-init" if with_init else "B is needed, or --with-init")
    if compat not in (None, "svcca"):
        raise UsageError(f"--compat is svcca, not {printable(compat)}")
    if compat and metric != "mean_cca":
        raise UsageError("--compat svcca is a definition of mean_cca: leave --metric out")
    json_file, table_file, figure = (None if path is None else Path(path) for path in (output, csv, plot))
    if figure is not None and figure.suffix.lower() not in (".pdf", ".svg", ".png"):
        raise UsageError(f"{printable(str(figure))}: a figure is a .pdf, .svg or .png file")
    if figure is not None:
        require_free(figure, force=force)
    require_at_least(0, seed=seed)
    require_at_least(1, threads=threads, image_size=image_size)
    with ExitStack() as stack:
        if not activations:
            from wsurgery.studies._networks import compare_checkpoints
        if threads:
            from threadpoolctl import threadpool_limits

            stack.enter_context(threadpool_limits(threads))  # numpy's libraries and torch's, which are loaded by now
        first = processes.is_first
        wanted = [path if first else None for path in (json_file, table_file)]
        stream, table = (stack.enter_context(AtomicFile(path, force=force)) if path else None for path in wanted)
        shared: dict[str, Any] = {
            "d": d, "repeats": repeats, "channels": channels, "metrics": ["google_svcca"] if compat else _listed(metric),
            "groups": groups, "seed": seed,
        }  # fmt: skip
        if activations:
            if processes.count > 1:
                raise UsageError("--activations is for one process: start it without torchrun")
            files = Path(path_of(a, "--activations")), Path(path_of(b, "--activations"))
            found = compare_files(*files, fast=fast, **shared)
            compared: dict[str, Any] = {side: describe_file(file) for side, file in zip("ab", files, strict=True)}
            compared["arguments"] = {**shared, "fast": fast}
            sides: tuple[Source, Source] = files
        else:
            found, compared, sides = compare_checkpoints(
                a, b, data=str(data), layers=layers if layers in (None, "all") else _listed(layers), split=split,
                image_size=image_size, skip_bad=skip_bad, bad_list=bad_list, images=images, device=device, arch=arch,
                model=model, threads=threads, say=say, processes=processes,
                arguments={**shared, "p": p, "rows": rows, "matrix": matrix},
            )  # fmt: skip
        if not first:
            return {}
        for note in dict.fromkeys(f"{layer.layer}: {note}" for layer in found for note in layer.notes):
            say(note)
        libraries = ("numpy",) if activations else ("numpy", "timm", "torch")
        versions = {"python": python_version(), **{name: str(import_module(name).__version__) for name in libraries}}
        result = {"version": __version__, "versions": versions, **compared, "layers": [asdict(x) for x in found]}
        if figure is not None:
            _draw(found, figure, matrix=matrix, force=force, title=_pair_title(sides))
        if table:
            write_all(table, as_csv(found).encode())
        if stream:
            write_all(stream, cca_text(result).encode())
    return result


def cca_text(result: dict[str, Any]) -> str:
    """Write what `cca` returns as its JSON."""
    return printable_json(result) + "\n"


def require_for_activations(given: Iterable[str]) -> None:
    """Refuse options of `cca` that mean nothing where no network is run."""
    for name in given:
        if name in NOT_FOR_ACTIVATIONS:
            raise UsageError(f"{'-p' if name == 'p' else '--' + name.replace('_', '-')} is not for --activations")


def _listed(words: str | Sequence[str]) -> list[str]:
    return words.split(",") if isinstance(words, str) else list(words)


def _pair_title(sides: Sequence[Source]) -> str:
    from wsurgery.figures.titles import network_names

    known = network_names(side for side in sides if isinstance(side, (str, Path)))
    a, b = ("/".join(Path(label(side)).parts[-3:]) for side in sides)
    return f"A: {a}, B: {b}" + (f" ({known})" if known else "")


def _draw(found: list[LayerSimilarity], path: Path, *, matrix: bool, force: bool, title: str) -> None:
    from wsurgery.figures.similarities import draw_layers, draw_matrix
    from wsurgery.figures.style import save

    save((draw_matrix if matrix else draw_layers)(found, title=title), path, force=force)
