"""`wsurgery.train`."""

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from copy import deepcopy
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from wsurgery.data.dataset import Dataset, load_dataset, report_skipped
from wsurgery.devices import choose_device, choose_precision, deterministic, memory_errors, on_device, threads_used
from wsurgery.errors import UsageError, printable
from wsurgery.models.own import Model
from wsurgery.operations.declaration import Parameter
from wsurgery.processes import ALONE, Processes
from wsurgery.studies._checkpoints import made, unedited
from wsurgery.studies._given import Say, Source, require_at_least, require_one_of, warn
from wsurgery.studies._images import load_once
from wsurgery.training.display import LOGGERS, Report, logged
from wsurgery.training.flags import Flags, Flip, Loss
from wsurgery.training.holding import held
from wsurgery.training.loop import train as run_training
from wsurgery.training.settings import PRESETS, Settings


class Trained(NamedTuple):
    """A training run.

    Attributes:
        folder: the run's folder; the best network is `best.safetensors` there, the last one `last.safetensors`.
        metrics: what `metrics.json` holds: `steps`, `best` and `last` (each with `step` and `macro_auc`, 0 to 1 or None),
            and `steps_to_auc` (threshold → step from which three evaluations in a row reach it, or None);
            and the `environment`: versions, the machine, and how large the splits were.
    """

    folder: Path
    metrics: dict[str, Any]

    def _repr_html_(self) -> str | None:
        from wsurgery.figures.notebook import run_html

        return run_html(self.folder)


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
        precision: `fp32` (exact on CUDA, too), `tf32`, `bf16`, or `auto`: bf16 on CUDA, else fp32.
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
    require_one_of("--preset", preset, [None, *PRESETS])
    require_one_of("--precision", precision, ["auto", "fp32", "tf32", "bf16"])
    for name in log_to:
        require_one_of("--log-to", name, LOGGERS)
    require_at_least(0, seed=seed)
    require_at_least(1, threads=threads)
    own = _flags(flags).of_all_processes(processes.count)
    init, data, output = unedited(init), str(data), Path(output)
    with ExitStack() as stack:
        stack.enter_context(threads_used(threads))
        where = choose_device(device, processes)
        stack.enter_context(on_device(where))
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

        load = partial(load_dataset, data, skip_bad=skip_bad)
        size = settings.image_size
        training = load_once(partial(load, split="train", image_size=size, subset=settings.subset), processes)
        size = training.images.shape[1]
        validation = load_once(
            partial(load, split=eval_split, image_size=size, at_most=settings.eval_subset), processes
        )
        if processes.is_first:
            report_skipped({"train": training.skipped, eval_split: validation.skipped}, say, bad_list)
            if not training.has_patients:
                say("data has no patients: the split cannot be checked by patient")
        if not ((validation.labels == 1).any(0) & (validation.labels == 0).any(0)).any():
            lacks = f"no label has both classes in split {printable(eval_split)}, so there is no AUC"
            if settings.patience is not None or settings.until_auc is not None:
                processes.refuse(UsageError(f"{lacks} for --patience or --until-auc: choose another --eval-split"))
            if processes.is_first:
                say(f"{lacks}, and best.safetensors stays that of step 0: choose another --eval-split")
        batch_size, _, steps = settings.length(len(training.images))
        if batch_size < settings.batch_size and processes.is_first:
            say(
                f"a batch of {settings.batch_size} is more than the {batch_size} images to train on: each step takes all"
            )
        remedy = f"use a smaller --batch-size (now {batch_size // processes.count}) or --image-size"
        stack.enter_context(memory_errors(where, remedy))
        stack.enter_context(deterministic(settings.deterministic))
        stack.enter_context(held(output, processes, say))
        reports: list[Report] = []
        if processes.is_first:
            reports.append(stack.enter_context(logged(log_to, output, asdict(settings))))
            reports.append(stack.enter_context(watch(steps, training)))

        def report(entry: dict[str, Any]) -> None:
            for each in reports:
                each(entry)

        metrics = run_training(
            init if isinstance(init, (str, Path)) else made(init),
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
            say=say,
        )
    return Trained(output, metrics)


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
            require_one_of(f"--{name}", value, [None, *choices])
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
