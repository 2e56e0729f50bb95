"""The training loop: from an edited checkpoint to a run folder, step by step reproducible.

A run folder holds `config.json` (the resolved settings, and the digests of the weights and of the data's rows, not of its
pixels), `init.safetensors` (as training began), `log.jsonl`, `last.safetensors`, `best.safetensors` (highest macro AUC),
`resume.pt` and, at the end, `metrics.json`. The order of images and their augmentation are functions of (seed, epoch, step)
alone, so a run that is cut off goes on where it was and, its images unchanged, ends with the same bytes: on a CPU with as
many threads, on a CUDA device with `deterministic`.
"""

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from wsurgery.checkpoint import Checkpoint, open_checkpoint
from wsurgery.checkpoint.provenance import History, describe_input, make_record
from wsurgery.checkpoint.sink import write_all
from wsurgery.checkpoint.spool import seekable
from wsurgery.checkpoint.trained import trained_on
from wsurgery.data.dataset import Dataset
from wsurgery.data.sources import portable_name
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.models import save
from wsurgery.models.load import architecture_of, create_for, load_into, see_as_trained
from wsurgery.models.own import Model
from wsurgery.processes import ALONE, Processes
from wsurgery.training.environment import environment
from wsurgery.training.interruption import Interrupted, signals_ignored, signals_noted
from wsurgery.training.predictions import require_exclusive
from wsurgery.training.recorded import Say, in_order_of, record_of, say_other_images
from wsurgery.training.run_folder import Entry, claim_folder, lengthen_folder, summarise, write_json
from wsurgery.training.run_log import read_metrics
from wsurgery.training.settings import Settings
from wsurgery.training.trainer import Trainer, copied, require_outputs
from wsurgery.untrusted import open_own


def train(
    init: str | Path | AbstractContextManager[Checkpoint],
    run: Path,
    training: Dataset,
    validation: Dataset,
    settings: Settings,
    *,
    data: str,
    eval_split: str = "valid",
    arguments: list[str],
    device: torch.device,
    arch: str | None = None,
    model: Model | None = None,
    network: nn.Module | None = None,
    anew: bool = False,
    report: Callable[[Entry], None] = lambda entry: None,
    processes: Processes = ALONE,
    signalled: Callable[[], int] | None = None,
    say: Say = lambda line: None,
) -> Entry:
    """Train a checkpoint, or go on with a run that was cut off, or that ended and is to be longer.

    Args:
        init: the checkpoint to start from: a file, a folder of shards, a URL, `-` for standard input, or what opens one.
        run: the run folder, made if it is missing.
        training: images to learn from. Labels that the checkpoint was trained on are put in its order, here and below.
        validation: images to evaluate on.
        settings: what to do.
        data: the data specification, for the record.
        eval_split: the name of the split to evaluate on, for the record.
        arguments: the command line's settings, for the record.
        device: where to compute.
        arch: the architecture's name, for a checkpoint that does not say it.
        model: what makes the network, if timm does not: see `wsurgery.models.load`.
        network: the network itself, with the weights of the checkpoint; it is trained. Default: what the checkpoint says.
        anew: where the folder holds a run of other settings, weights or data, replace that run.
        report: called with every entry of the log, in the first process.
        processes: which train together; the first one writes the folder.
        signalled: returns the number of a signal that asks the run to end, 0 if none came. Default: those of
            `wsurgery.ending.ASKING` do, once it has begun.
        say: told, in the first process, where the checkpoint was trained on other images or labels than these.

    Returns:
        What `metrics.json` holds: `steps`, `best` and `last` (each with `step` and `macro_auc`), and `steps_to_auc`
        (threshold → step from which three evaluations in a row reach it, or null), and the `environment`.

    Raises:
        UsageError: the run folder belongs to other settings or another checkpoint, and `anew` is not given.
        WsurgeryError: checkpoint and data do not fit together, or the loss is not finite.
        Interrupted: a signal came; the state after the last step is saved.
    """
    if str(init) == "-" and processes.count > 1:
        raise UsageError("several processes cannot share standard input: give INIT as a file")
    with open_checkpoint(init) if isinstance(init, (str, Path)) else init as opened, seekable(opened) as checkpoint:
        history = History.of(checkpoint)
        architecture = None
        if network is None or arch or model is not None:
            architecture = architecture_of(checkpoint, arch, model)
        if network is None:
            assert architecture is not None
            network = create_for(checkpoint, architecture, model=model)
            see_as_trained(network, trained_on(history.log))
        trained, tell = record_of(network), say if processes.is_first else lambda line: None
        say_other_images(checkpoint.label, trained, training, tell)
        training = in_order_of(checkpoint.label, trained, training, tell)
        validation = in_order_of(checkpoint.label, trained, validation, lambda line: None)
        described = describe_input(checkpoint, history, flows=True)
        digest = described["header"] if "header" in described else described["blake3"].result()
        _require_fit(network, training, validation)
        if settings.loss == "softmax":
            for split, dataset in (("training", training), ("validation", validation)):
                require_exclusive(f"--loss softmax: {split}", dataset.labels, dataset.paths)
        own = {key: value for key, value in (architecture or {}).items() if key == "model"}
        config = {
            "settings": asdict(settings),
            "init": {"name": checkpoint.name, "digest": digest},
            "data": {
                "spec": data,
                "train": training.digest,
                "validation": validation.digest,
                **asdict(training.rendering),
                **({"fold": training.fold} if training.fold else {}),
                **({"eval_split": eval_split} if eval_split != "valid" else {}),
            },
            "labels": list(training.label_names),
            "device": device.type,
            **own,
        }
        loop = Trainer(network, training, validation, settings, device, history.freeze, processes, history.blocks)
        if loop.pos_weight is not None:
            config["pos_weight"] = dict(zip(training.label_names, loop.pos_weight.tolist(), strict=True))
        theirs = processes.from_first(config)
        other = [key for key in config if config[key] != theirs.get(key)]
        processes.refuse(
            WsurgeryError(f"process {processes.rank} of {processes.count} has other {other[0]} than the first one")
            if other
            else None
        )
        shorter = processes.in_first(lambda: claim_folder(run, config, checkpoint, anew=anew))
    arguments = [*arguments, *(["--model", own["model"]] if own else [])]
    words = ["--data", portable_name(data, training.rendering), *arguments]
    record = {
        **make_record("train", words, seed=settings.seed, inputs=[described]),
        **loop.trained_on(eval_split).recorded(),
    }
    before = replace(history, architecture=architecture)

    def read_state() -> Callable[[], None]:
        path = run / "best.safetensors"
        best = copied(loop.evaluated, loop.group)
        loop.resume(run, has_state=True)
        if not path.exists():  # killed before its first: `publish` writes it
            return lambda: None
        with open_checkpoint(path) as checkpoint:
            load_into(best, checkpoint)
        return lambda: save(best.state_dict(), before.then({**record, "output": path.name}), path, force=True)

    if shorter is not None:
        length = replace(settings, steps=shorter.steps, epochs=shorter.epochs).length(len(training.images))
        every = settings.eval_every or length.epoch_steps
        lengthen = partial(lengthen_folder, run, config, steps=loop.steps, before=length.steps, every=every, anew=anew)
        processes.in_first(lambda: lengthen(read_state=read_state))
    finished = run / "metrics.json"

    def read_finished() -> Entry | None:
        if not finished.exists():
            return None
        os.utime(finished)  # now: make compares it with what the run was made from
        return {**read_metrics(finished)}

    if (already := processes.in_first(read_finished)) is not None:
        return already

    def publish() -> None:
        for name in ("best", "last") if loop.progress.best_step == loop.progress.step else ("last",):
            path = run / f"{name}.safetensors"
            save(loop.evaluated.state_dict(), before.then({**record, "output": path.name}), path, force=True)

    # `resume.pt` decides: what it holds has happened. It is written after the log, which is cut back to it, and before
    # the checkpoints, which are written again from it when a run goes on. The other way round, a run killed in between
    # would leave a best.safetensors of a step that it then takes again, perhaps with another AUC: on a GPU, or with
    # another number of threads or processes.
    has_state = processes.from_first((run / "resume.pt").exists())  # one answer for all, who then must find it, too
    resumed = processes.in_turn(lambda: loop.resume(run, has_state=has_state))
    processes.wait()  # nobody changes the folder before all have read it
    first, cuda = processes.is_first, [device] if device.type == "cuda" else []
    noted = signals_noted() if signalled is None else nullcontext(signalled)
    with (
        noted as asked,
        open_own(run / "log.jsonl", "ab") if first else nullcontext() as log,
        torch.random.fork_rng(cuda),
    ):
        if first and resumed:
            publish()
        if first and loop.ended and loop.progress.step < loop.steps:
            loop.ended = False
            loop.save(run)  # with the length of the log, which grows now
        for entry in loop.entries(asked):
            if log is None:
                continue
            write_all(log, json.dumps(entry).encode() + b"\n")
            report(entry)
            if "macro_auc" in entry:
                os.fsync(log.fileno())
                loop.save(run)
                publish()
        if loop.signal:

            def leave() -> None:
                assert log is not None
                os.fsync(log.fileno())
                loop.save(run)

            with signals_ignored():
                processes.in_first(leave)  # while the others wait: a launcher ends all as soon as one has ended
            if log is None:
                raise SystemExit(128 + loop.signal)
            raise Interrupted(loop.signal, loop.progress.step, loop.steps)

    def finish() -> Entry:
        metrics = summarise(run / "log.jsonl", until_auc=settings.until_auc) | {
            "environment": environment(device, processes, training, validation, batch_size=loop.batch_size)
        }
        if not loop.ended:
            loop.ended = True
            loop.save(run)
        write_json(finished, metrics)
        return metrics

    return processes.in_first(finish)  # who alone has written the log to its end


def _require_fit(model: nn.Module, training: Dataset, validation: Dataset) -> None:
    require_outputs(getattr(model, "num_classes", None), training)
    shared = set(training.patients) & set(validation.patients)
    if shared:
        raise WsurgeryError(f"patient {printable(min(shared))} is in both training and validation: split by patient")
