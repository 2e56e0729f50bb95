"""What `train`, `eval`, `cca` and `compare` do, in Python: `wsurgery.train("a.safetensors", data="manifest.csv", output="run")`.

The options have the commands' names and defaults, and the results are the commands' JSON, and the bytes of their files.
What the commands say on standard error comes as warnings; bad input raises a `WsurgeryError`, bad usage a `UsageError`.

A checkpoint is what the commands take (a file, a folder of shards or of a run, a URL), a `wsurgery.Pipeline`, which is then made,
or a network, which is copied, with the weights that it has: its mode, its device and its memory format stay as they are.
"""

import inspect
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from wsurgery import __version__
from wsurgery.checkpoint import Checkpoint, open_checkpoint
from wsurgery.checkpoint.digest import content_digest, tensor_digests
from wsurgery.checkpoint.opening import of_run, which_of_run
from wsurgery.checkpoint.provenance import History, describe_file, describe_input
from wsurgery.checkpoint.remote import without_secrets
from wsurgery.checkpoint.trained import TrainedOn
from wsurgery.checkpoint.writer import AtomicFile, write_all
from wsurgery.data.dataset import Dataset, load_dataset, report_skipped
from wsurgery.data.rendering import Rendering
from wsurgery.data.sources import said_rendering
from wsurgery.devices import choose_device, choose_precision, memory_errors, threads_used
from wsurgery.ending import temporary_folder
from wsurgery.errors import UsageError, WsurgeryError, printable, printable_json
from wsurgery.experiments.comparison import Aucs, Steps, as_json, compare_aucs, compare_steps, pairs_of, units_of
from wsurgery.experiments.runs import Run, read_seeds
from wsurgery.models import load, models_for
from wsurgery.models.own import Model
from wsurgery.operations.declaration import Parameter
from wsurgery.pipeline import Pipeline
from wsurgery.pipeline import open as open_pipeline
from wsurgery.processes import ALONE, Processes
from wsurgery.similarity.compare import compare as compare_networks
from wsurgery.similarity.files import compare_files
from wsurgery.similarity.initialisation import find_initialisation
from wsurgery.similarity.results import LayerSimilarity, as_csv
from wsurgery.training.display import LOGGERS, Report, logged
from wsurgery.training.evaluation import evaluate as evaluate_predictions
from wsurgery.training.flags import Flags, Flip, Loss
from wsurgery.training.loop import train as run_training
from wsurgery.training.predict import predict
from wsurgery.training.predictions import Predictions, from_logits, read_predictions, write_predictions
from wsurgery.training.recorded import match_labels, record_of, rendering_of, say_other_images
from wsurgery.training.settings import PRESETS, Settings

Source = str | Path | Pipeline | nn.Module
Say = Callable[[str], None]


class Trained(NamedTuple):
    """A training run.

    Attributes:
        folder: the run's folder; the best network is `best.safetensors` there, the last one `last.safetensors`.
        metrics: what `metrics.json` holds: `steps`, `best` and `last` (each with `step` and `macro_auc`, 0 to 1 or None),
            and `steps_to_auc` (threshold → step from which three evaluations in a row reach it, or None).
    """

    folder: Path
    metrics: dict[str, Any]


class Comparison(NamedTuple):
    """Two runs or arms, compared.

    Attributes:
        steps: their steps to a threshold.
        aucs: their AUCs on the same images; None where nothing is known of them.
        pairs: which runs are compared, as indices of A and B.
    """

    steps: Steps
    aucs: Aucs | None
    pairs: list[tuple[int, int]]


def warn(line: str) -> None:
    """Issue what there is to be said as a warning, on behalf of who called a function here."""
    depth, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("wsurgery."):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(line, stacklevel=depth)


def silent(steps: int, training: Dataset) -> AbstractContextManager[Report]:
    """Watch a run of some steps without a word."""
    return nullcontext(lambda entry: None)


def train(
    init: Source,
    *,
    data: str | Path,
    output: str | Path,
    preset: str | None = None,
    eval_split: str = "valid",
    skip_bad: bool = False,
    anew: bool = False,
    bad_list: str | Path | None = None,
    arch: str | None = None,
    model: Model | None = None,
    log_to: Sequence[str] = (),
    precision: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    say: Say = warn,
    watch: Callable[[int, Dataset], AbstractContextManager[Report]] = silent,
    processes: Processes = ALONE,
    **flags: Any,
) -> Trained:
    """Train a checkpoint as a multi-label classifier. Called again with the same `output`, it goes on where it was.

    A pipeline is trained, and recorded, as if it were piped into the command. Of a network a copy is trained; without
    `arch` its checkpoints do not say which architecture they are for. Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 end
    a run in the main thread after the current step, saved.

    Args:
        init: the checkpoint to start from.
        data: a manifest, or `scheme:argument?key=value`.
        output: the run's folder.
        preset: the paper's settings: `retina` or `chexpert`. The flags override them.
        eval_split: the split to evaluate on.
        skip_bad: leave out images that are missing or cannot be read.
        anew: where the folder holds a run of other settings, weights or data, replace that run.
        bad_list: do so, and list them in this file, CSV: split, path, reason.
        arch: the timm model, if `init` does not say it.
        model: what makes the network, if timm does not: `FILE.py:CALLABLE`, `package.module:CALLABLE`, or the callable.
        log_to: `tensorboard`, `wandb`, or both: where the log goes, too.
        precision: `fp32`, `bf16`, or `auto`: bf16 on CUDA, else fp32.
        device: `auto` (cuda or cpu), `cpu`, `cuda`, `cuda:N` or `mps`.
        threads: default all cores. Another number may round otherwise.
        seed: of every random draw.
        say: takes a message for people.
        watch: given the length in steps and the training images, opens what is called with every entry of `log.jsonl`.
        processes: which train together, from `wsurgery.processes.joined`.
        flags: `steps`, `epochs`, `batch_size`, `lr` and the other options of `wsurgery train --help`: see
            `wsurgery.training.flags.Flags`.

    Returns:
        The run's folder, and what its `metrics.json` holds.

    Raises:
        UsageError: an option that cannot be, or the folder belongs to other settings or another checkpoint, without `anew`.
        WsurgeryError: checkpoint and data do not fit together, or the loss is not finite.
        Interrupted: a signal came; the state after the last step is saved.
        TypeError: no such option.
    """
    _require_one_of("--preset", preset, [None, *PRESETS])
    _require_one_of("--precision", precision, ["auto", "fp32", "bf16"])
    for name in log_to:
        _require_one_of("--log-to", name, LOGGERS)
    _require_at_least(0, seed=seed)
    _require_at_least(1, threads=threads)
    own = _flags(flags).of_all_processes(processes.count)
    init, data, output = _unedited(init), str(data), Path(output)
    with ExitStack() as stack:
        stack.enter_context(threads_used(threads))
        where = choose_device(device, processes)
        if own.sync_bn and where.type != "cuda":
            raise UsageError("--sync-bn: torch has it for CUDA devices only; leave it out")
        settings = own.settings(PRESETS[preset] if preset else Settings())
        settings = replace(settings, precision=choose_precision(precision, where), seed=seed)
        arguments = ["--preset", preset] if preset else []
        arguments += ["--eval-split", eval_split] if eval_split != "valid" else []
        arguments += ["--arch", arch] if arch else []
        skip_bad = skip_bad or bad_list is not None
        arguments += ["--skip-bad"] if skip_bad else []
        arguments += own.words()
        arguments += ["--precision", settings.precision] if settings.precision != "fp32" else []

        def both() -> tuple[Dataset, Dataset]:
            size = settings.image_size
            training = load_dataset(data, split="train", image_size=size, subset=settings.subset, skip_bad=skip_bad)
            return training, load_dataset(data, split=eval_split, image_size=size, skip_bad=skip_bad)

        training, validation = processes.in_turn(both)
        if processes.is_first:
            report_skipped({"train": training.skipped, eval_split: validation.skipped}, say, bad_list)
            if not training.has_patients:
                say("data has no patients: the split cannot be checked by patient")
        steps = settings.length(len(training.images)).steps
        remedy = f"use a smaller --batch-size (now {settings.batch_size // processes.count}) or --image-size"
        stack.enter_context(memory_errors(where, remedy))
        reports: list[Report] = []
        if processes.is_first:
            reports.append(stack.enter_context(logged(log_to, output, asdict(settings))))
            reports.append(stack.enter_context(watch(steps, training)))

        def report(entry: dict[str, Any]) -> None:
            for each in reports:
                each(entry)

        metrics = run_training(
            init if isinstance(init, (str, Path)) else _made(init),
            output,
            training,
            validation,
            settings,
            data=data,
            eval_split=eval_split,
            arguments=arguments,
            device=where,
            arch=arch,
            model=model,
            network=deepcopy(init) if isinstance(init, nn.Module) else None,
            anew=anew,
            report=report,
            processes=processes,
        )
    return Trained(output, metrics)


def evaluate(
    checkpoint: Source,
    *,
    data: "str | Path | Dataset | Images",
    split: str = "test",
    predictions: str | Path | None = None,
    image_size: int | None = None,
    skip_bad: bool = False,
    bad_list: str | Path | None = None,
    arch: str | None = None,
    model: Model | None = None,
    device: str = "auto",
    threads: int | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
    force: bool = False,
    say: Say = warn,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Evaluate a checkpoint: AUC for each label and their mean, with 95 % confidence intervals.

    Args:
        checkpoint: the network.
        data: a manifest, or `scheme:argument?key=value`; or the images of `load_images`, so that several networks share
            them, or `Images`: then `image_size` and `skip_bad` are settled, and `split` is their name in the result.
        split: the split to evaluate on.
        predictions: write each image's probabilities and logits to this file, CSV.
        image_size: pixels a side. Default: those of the training, if the checkpoint's record says it, else the images' own.
        skip_bad: leave out images that are missing or cannot be read.
        bad_list: do so, and list them in this file, CSV: split, path, reason.
        arch: the timm model, if the checkpoint does not say it.
        model: what makes the network, if timm does not: `FILE.py:CALLABLE`, `package.module:CALLABLE`, or the callable.
        device: `auto` (cuda or cpu), `cpu`, `cuda`, `cuda:N` or `mps`.
        threads: default all cores. Another number may round otherwise.
        bootstrap: samples of the bootstrap; 0 for none.
        seed: of the bootstrap.
        force: overwrite a file of predictions.
        say: takes a message for people.
        processes: which share the images, from `wsurgery.processes.joined`.

    Returns:
        What `eval --json` prints: `labels` (name → `auc`, 0 to 1 or None, `ci` by DeLong, `bootstrap_ci`, `left_out`),
        `macro_auc`, `macro_ci` by the bootstrap, `macro_delong_ci`, `n` (images), what is taken as `independent` (patients or
        images) and how many `units` of it there are, `split` and what the bootstrap did. In any but the first process,
        nothing.

    Raises:
        UsageError: an option that cannot be, no such data or split, or the file of predictions exists.
        WsurgeryError: checkpoint, data and network do not fit together.
    """
    _require_at_least(0, bootstrap=bootstrap, seed=seed)
    _require_at_least(1, threads=threads)
    checkpoint = _unedited(checkpoint)
    with threads_used(threads):
        where = choose_device(device, processes)
        if not isinstance(data, (Dataset, Images)):
            data = Images(
                data,
                split=split,
                image_size=image_size,
                skip_bad=skip_bad,
                bad_list=bad_list,
                say=say,
                processes=processes,
            )
        found, size = _predictions(_label(checkpoint), _network(checkpoint, arch, model), data, where, say, processes)
        if not processes.is_first:
            return {}
        result = {**evaluate_predictions(found, resamples=bootstrap, seed=seed), "split": split, "image_size": size}
        if predictions is not None:
            write_predictions(Path(predictions), found, force=force)
    return result


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
    model: Model | None = None,
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
    if figure is not None and figure.exists() and not force:
        raise UsageError(f"{printable(str(figure))} exists: add --force to overwrite it")
    _require_at_least(0, seed=seed)
    _require_at_least(1, threads=threads)
    a, b = _unedited(a), None if b is None else _unedited(b)
    with ExitStack() as stack:
        if threads:
            from threadpoolctl import threadpool_limits

            stack.enter_context(threads_used(threads))
            stack.enter_context(threadpool_limits(threads))  # numpy's and scipy's libraries, which are loaded by now
        first = processes.is_first
        wanted = [path if first else None for path in (json_file, table_file)]
        stream, table = (stack.enter_context(AtomicFile(path, force=force)) if path else None for path in wanted)
        shared: dict[str, Any] = {
            "d": d, "repeats": repeats, "channels": channels, "metrics": ["google_svcca"] if compat else _listed(metric),
            "groups": groups, "seed": seed,
        }  # fmt: skip
        result: dict[str, Any] = {"version": __version__, "versions": _versions()}
        if data is None:
            if processes.count > 1:
                raise UsageError("--activations is for one process: start it without torchrun")
            files = [_activation_file(source) for source in (a, b)]
            found = compare_files(*files, fast=fast, **shared)
            result |= {side: describe_file(file) for side, file in zip("ab", files, strict=True)}
            result["arguments"] = {**shared, "fast": fast}
        else:
            other = b if b is not None else find_initialisation(_path(a, "--with-init"))
            arguments = {**shared, "p": p, "rows": rows, "matrix": matrix}
            names = layers if layers in (None, "all") else _listed(layers)
            where = choose_device(device)
            if where == torch.device("cuda"):
                where = torch.device("cuda", processes.rank % torch.cuda.device_count())
            result |= {"a": _describe(a), "b": _describe(other)}
            sides = zip((a, other), _models((a, other), model), strict=True)
            network_a, network_b = (_network(side, arch, own) for side, own in sides)
            if not first:
                processes.wait()  # for the first one to have filled the cache
            skip_bad = skip_bad or bad_list is not None
            size, rendering = _common_images(str(data), image_size, network_a, network_b)
            dataset = load_dataset(str(data), split=split, image_size=size, skip_bad=skip_bad, trained=rendering)
            for side, network in ((a, network_a), (other, network_b)) if first else ():
                say_other_images(_label(side), record_of(network), dataset, say)
            if first:
                processes.wait()
                report_skipped({split: dataset.skipped}, say, bad_list)
            with memory_errors(where, "use a smaller --image-size, or fewer --layers or --repeats"):
                found = compare_networks(
                    network_a,
                    network_b,
                    dataset.images,
                    layers=names,
                    n_images=images,
                    device=where,
                    processes=processes,
                    **arguments,
                )
            result["data"] = {
                "spec": str(data), "split": split, "image_size": dataset.images.shape[1], "digest": dataset.digest,
                "skip_bad": skip_bad, **dataset.rendering.keys,
            }  # fmt: skip
            result["arguments"] = {
                **arguments, "layers": names, "images": images, "arch": arch, "device": str(where),
                "with_init": with_init, "processes": processes.count,
            }  # fmt: skip
        if not first:
            return {}
        for note in dict.fromkeys(f"{layer.layer}: {note}" for layer in found for note in layer.notes):
            say(note)
        result["layers"] = [asdict(layer) for layer in found]
        if figure is not None:
            shown = (a, b if b is not None else find_initialisation(_path(a, "--with-init")))
            _draw(found, figure, matrix=matrix, force=force, title=_pair_title(shown))
        if table:
            write_all(table, as_csv(found).encode())
        if stream:
            write_all(stream, cca_text(result).encode())
    return result


def cca_text(result: dict[str, Any]) -> str:
    """Write what `cca` returns as its JSON."""
    return printable_json(result) + "\n"


def compare(
    a: str | Path,
    b: str | Path,
    *,
    data: str | Path | None = None,
    threshold: float = 0.9,
    split: str = "test",
    image_size: int | None = None,
    skip_bad: bool = False,
    bad_list: str | Path | None = None,
    model: Model | None = None,
    device: str = "auto",
    threads: int | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
    last: bool = False,
    init: bool = False,
    say: Say = warn,
) -> dict[str, Any]:
    """Compare two runs, or two arms: steps to a threshold, and AUC on the same images (paired DeLong test).

    Arms with the same seeds are compared seed by seed, by sign flips. A run that never got to the threshold counts as censored.

    Args:
        a: a run's folder, or an arm's with a folder a seed.
        b: the same of what it is compared to.
        data: evaluate each run's best checkpoint on this data. Default: read the `predictions.csv` beside it.
        threshold: count steps to this validation macro AUC, 0 to 1.
        split: with `data`: the split to evaluate on.
        image_size: with `data`: pixels a side. Default: those of each network's training, as its record says it.
        skip_bad: leave out images that are missing or cannot be read.
        bad_list: do so, and list them in this file, CSV: split, path, reason.
        model: what makes the network, if timm does not: `FILE.py:CALLABLE`, `package.module:CALLABLE`, or the callable.
        device: `auto` (cuda or cpu), `cpu`, `cuda`, `cuda:N` or `mps`.
        threads: default all cores. Another number may round otherwise.
        bootstrap: samples of the bootstrap; 0 for none.
        seed: of the bootstrap.
        last: with `data`: the last checkpoint of each run, not the best.
        init: with `data`: what each run began from.
        say: takes a message for people.

    Returns:
        What `compare --json` prints: `steps`, `auc` (None where no run has predictions), the runs of `a` and of `b`.

    Raises:
        UsageError: no runs there, or an option that cannot be.
        WsurgeryError: a run is broken or has not ended, or predictions are not of the same images.
    """
    return as_json(
        *compare_runs(
            a, b, data=data, threshold=threshold, split=split, image_size=image_size, skip_bad=skip_bad, bad_list=bad_list,
            model=model, device=device, threads=threads, bootstrap=bootstrap, seed=seed,
            which=which_of_run(last=last, init=init), say=say,
        )
    )  # fmt: skip


def compare_runs(
    a: str | Path,
    b: str | Path,
    *,
    data: str | Path | None,
    threshold: float,
    split: str,
    image_size: int | None,
    skip_bad: bool,
    bad_list: str | Path | None,
    model: Model | None,
    device: str,
    threads: int | None,
    bootstrap: int,
    seed: int,
    which: str,
    say: Say,
) -> Comparison:
    """Do what `compare` does; return what its tables are made from."""
    _require_at_least(0, bootstrap=bootstrap, seed=seed)
    _require_at_least(1, threads=threads)
    if data is None and which != "best":
        raise UsageError(f"--{which} is for --data: a predictions.csv is of the checkpoint that eval was given")
    runs_a, runs_b = read_seeds(Path(a)), read_seeds(Path(b))
    runs = [*runs_a, *runs_b]
    steps = compare_steps(runs_a, runs_b, threshold)
    pairs, _ = pairs_of(runs_a, runs_b)
    if data is None:
        found = _predictions_beside(runs)
    else:
        with threads_used(threads):
            where = choose_device(device)
            images = Images(data, split=split, image_size=image_size, skip_bad=skip_bad, bad_list=bad_list, say=say)
            checkpoints = [str(of_run(run.folder, which)) for run in runs]
            found = []
            for checkpoint, own in zip(checkpoints, _models(checkpoints, model), strict=True):
                found.append(_predictions(checkpoint, load(checkpoint, model=own), images, where, say, ALONE)[0])
    if not found:
        say(
            "no AUC compared, for no run has a predictions.csv: give --data SPEC, or write them with eval --predictions"
        )
        return Comparison(steps, None, pairs)
    n = len(runs_a)
    shared = units_of(runs_a, runs_b)
    units = [shared.get(runs_a[i].seed, f"{i}") for i, _ in pairs]
    aucs = compare_aucs(found[:n], found[n:], pairs, resamples=bootstrap, seed=seed, units=units)
    return Comparison(steps, aucs, pairs)


def load_images(
    data: str | Path | Dataset,
    *,
    split: str = "test",
    image_size: int | None = None,
    skip_bad: bool = False,
    bad_list: str | Path | None = None,
    trained: TrainedOn | None = None,
    say: Say = warn,
    processes: Processes = ALONE,
) -> Dataset:
    """Load the images of a split, as `evaluate` does for a network trained so; what is loaded already is returned as it is.

    Raises:
        UsageError: no such data or split.
        WsurgeryError: a broken manifest or image.
    """
    if isinstance(data, Dataset):
        return data
    spec, skip_bad = str(data), skip_bad or bad_list is not None
    size, rendering = image_size or (trained.image_size if trained else None), rendering_of(trained)
    dataset = processes.in_turn(
        lambda: load_dataset(spec, split=split, image_size=size, skip_bad=skip_bad, trained=rendering)
    )
    if processes.is_first:
        report_skipped({split: dataset.skipped}, say, bad_list)
    return dataset


class Images:
    """The images of a split, decoded once for each size and fit that networks were trained with.

    Args:
        data, split, image_size, skip_bad, bad_list, say, processes: as `load_images` takes them.
    """

    def __init__(
        self,
        data: str | Path,
        *,
        split: str = "test",
        image_size: int | None = None,
        skip_bad: bool = False,
        bad_list: str | Path | None = None,
        say: Say = warn,
        processes: Processes = ALONE,
    ) -> None:
        self._load = partial(
            load_images, data, split=split, image_size=image_size, skip_bad=skip_bad, bad_list=bad_list, say=say,
            processes=processes,
        )  # fmt: skip
        self._loaded: dict[object, Dataset] = {}

    def at(self, trained: TrainedOn | None) -> Dataset:
        """Return them as they were given, or else as they were for a training; without either as they are."""
        key = trained and (trained.image_size, trained.fit, trained.window)
        if key not in self._loaded:
            self._loaded[key] = self._load(trained=trained)
        return self._loaded[key]


def _predictions(
    source: str, network: nn.Module, data: Dataset | Images, where: torch.device, say: Say, processes: Processes
) -> tuple[Predictions, int]:
    """Return what a network says of images, with the labels matched by name, and the images' size."""
    trained = record_of(network)
    dataset = data.at(trained) if isinstance(data, Images) else data
    say = say if processes.is_first else lambda line: None
    say_other_images(source, trained, dataset, say)
    logits = predict(network, dataset, device=where, processes=processes)
    dataset, logits = match_labels(source, trained, dataset, logits, say)
    exclusive = trained is not None and trained.loss == "softmax"
    return from_logits(source, dataset, logits, exclusive=exclusive), dataset.images.shape[1]


def _common_images(data: str, image_size: int | None, *networks: nn.Module) -> tuple[int | None, Rendering | None]:
    """Return the size and the rendering of the images that networks were trained on; None where no record says it.

    Raises:
        UsageError: they were trained on different ones, and none is chosen.
    """
    known = [trained for network in networks if (trained := record_of(network))]
    sizes, fits = {trained.image_size for trained in known}, {trained.fit for trained in known}
    if image_size is None and len(sizes) > 1:
        raise UsageError(
            f"A and B were trained on images of different sizes ({' and '.join(map(str, sorted(sizes)))} pixels a side): "
            "choose one with --image-size"
        )
    if len(fits) > 1 and "fit" not in said_rendering(data):
        raise UsageError(
            f"A and B were trained with fit={' and fit='.join(sorted(fits))}: choose one, as in SPEC?fit=crop"
        )
    return image_size or (sizes.pop() if sizes else None), rendering_of(known[0]) if known else None


def require_for_activations(given: Iterable[str]) -> None:
    """Refuse options of `cca` that mean nothing where no network is run."""
    for name in given:
        if name in NOT_FOR_ACTIVATIONS:
            raise UsageError(f"{'-p' if name == 'p' else '--' + name.replace('_', '-')} is not for --activations")


def _flags(given: dict[str, Any]) -> Flags:
    """Return the flags of a training run, checked as a command line checks them."""
    hints = typing.get_type_hints(Flags, include_extras=True)
    for name in given:
        if name not in hints:
            raise TypeError(f"train() got an unexpected keyword argument {name!r}")
    checked = {}
    for name, value in given.items():
        kind, option = typing.get_args(hints[name])
        if choices := {"flip": Flip, "loss": Loss}.get(name):
            _require_one_of(f"--{name}", value, [None, *choices])
        if name in ("lr_scale", "pos_weight") and isinstance(value, Mapping):
            value = ",".join(f"{key}={number}" for key, number in value.items())
        checked[name] = Parameter(name, kind, None, option, declared=True).checked(value)
    return Flags(**checked)


def _signature() -> inspect.Signature:
    """Return how `train` is called, each flag by its name."""
    hints, own = typing.get_type_hints(Flags), inspect.signature(train)
    named = [parameter for parameter in own.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    flags = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(Flags)
    ]
    return own.replace(parameters=[*named, *flags])


train.__signature__ = _signature()  # type: ignore[attr-defined]


def _require_one_of(option: str, value: str | None, choices: Iterable[str | None]) -> None:
    if value not in choices:
        there = ", ".join(choice for choice in choices if choice is not None)
        raise UsageError(f"{option} {printable(str(value))}: one of {there}")


def _require_at_least(least: int, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < least:
            raise UsageError(f"--{name} {value}: at least {least}")


def _unedited(source: Source) -> Source:
    """Return the file of a pipeline that has no edits, and everything else as it is."""
    return source._checkpoint.path or source if isinstance(source, Pipeline) else source


@contextmanager
def _made(source: Pipeline | nn.Module) -> Iterator[Checkpoint]:
    """Write a pipeline's result, or a network, to a temporary file, and open that as if it were piped in."""
    with temporary_folder("wsurgery-") as folder:
        file = open_pipeline(source).write(folder / "init.safetensors")
        with Checkpoint(file.open("rb", buffering=0), None, label=_label(source)) as checkpoint:
            yield checkpoint


def _network(source: Source, arch: str | None, model: Model | None) -> nn.Module:
    """Return the network of a checkpoint, or a copy of a network."""
    if isinstance(source, (str, Path)):
        return load(source, arch, model=model)
    return deepcopy(source) if isinstance(source, nn.Module) else open_pipeline(source).load(arch, model=model)


def _models(sources: Sequence[Source], model: Model | None) -> list[Model | None]:
    """Say for which of several checkpoints a model is, as `models_for` does for files."""
    if all(isinstance(source, (str, Path)) for source in sources):
        return list(models_for([str(source) for source in sources], model))
    return [None if isinstance(source, nn.Module) else model for source in sources]


def _label(source: Source) -> str:
    """What messages call a checkpoint."""
    if isinstance(source, (str, Path)):
        return without_secrets(str(source))
    return "the pipeline" if isinstance(source, Pipeline) else f"the {type(source).__name__}"


def _describe(source: Source) -> dict[str, Any]:
    """Describe a checkpoint for a record; a network by its type and what `wsurgery digest` says of its weights."""
    if isinstance(source, (str, Path)):
        with open_checkpoint(source) as checkpoint:
            return _known(describe_input(checkpoint, History(), flows=False))
    with open_pipeline(source)._opened() as planned:
        if isinstance(source, Pipeline):
            return _known(describe_input(planned, History(), flows=False))
        return {"name": type(source).__name__, "digest": content_digest(planned.tensors, tensor_digests(planned))}


def _known(described: dict[str, Any]) -> dict[str, Any]:
    """Wait for digests."""
    return {key: value.result() if hasattr(value, "result") else value for key, value in described.items()}


def _path(source: Source | None, option: str) -> str:
    if not isinstance(source, (str, Path)):
        raise UsageError(f"{option} is for files: give a path")
    return str(source)


def _activation_file(source: Source | None) -> Path:
    return Path(_path(source, "--activations"))


def _listed(words: str | Sequence[str]) -> list[str]:
    return words.split(",") if isinstance(words, str) else list(words)


def _versions() -> dict[str, str]:
    from platform import python_version

    import numpy
    import scipy
    import timm

    libraries = {module.__name__: str(module.__version__) for module in (numpy, scipy, timm, torch)}
    return {"python": python_version(), **libraries}


def _pair_title(sides: Sequence[Source]) -> str:
    from wsurgery.figures.titles import network_names

    known = network_names(side for side in sides if isinstance(side, (str, Path)))
    a, b = ("/".join(Path(_label(side)).parts[-3:]) for side in sides)
    return f"A: {a}, B: {b}" + (f" ({known})" if known else "")


def _draw(found: list[LayerSimilarity], path: Path, *, matrix: bool, force: bool, title: str) -> None:
    from wsurgery.figures.similarities import draw_layers, draw_matrix
    from wsurgery.figures.style import save

    save((draw_matrix if matrix else draw_layers)(found, title=title), path, force=force)


def _predictions_beside(runs: Sequence[Run]) -> list[Predictions]:
    files = [run.folder / "predictions.csv" for run in runs]
    missing = [file for file in files if not file.is_file()]
    if len(missing) == len(files):
        return []
    if missing:
        raise WsurgeryError(
            f"{printable(str(missing[0]))} is missing, and other runs have one: "
            "write it with eval RUN --predictions, or give --data SPEC"
        )
    return [read_predictions(file) for file in files]
