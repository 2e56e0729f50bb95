"""A run's folder: who may use it, and what is written there."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wsurgery.checkpoint import AtomicFile, Checkpoint
from wsurgery.data.rendering import Rendering
from wsurgery.data.sources import SCHEMES
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.training.run_log import LogEntry, read_log, steps_to, stopped_at
from wsurgery.training.settings import Settings
from wsurgery.untrusted import parse_json, read_regular, refuse_link

FILES = (
    "config.json", "init.safetensors", "log.jsonl", "last.safetensors", "best.safetensors", "resume.pt", "metrics.json",
    "tensorboard", "wandb", "wandb.id",
)  # fmt: skip
_FOUND = ("eval.json", "predictions.csv", "cca-init.json")  # of a run, which report and compare read beside it
_OTHERWISE = "choose another folder with -o, or replace it with --anew"
_MAX_CONFIG = 1 << 24  # bytes
THRESHOLDS = tuple(round(0.5 + 0.01 * i, 2) for i in range(50))  # of macro AUC, in metrics.json
LOSSES = {"bce": "binary cross-entropy", "softmax": "softmax cross-entropy"}  # of `Settings.loss`, in words
Entry = dict[str, Any]


class OtherRun(UsageError):
    """The folder holds a run that is not this one, and cannot become it."""


def claim_folder(run: Path, config: Entry, init: Checkpoint, *, anew: bool = False) -> Settings | None:
    """Make a run's folder with `init.safetensors` and `config.json`, or find that it is this run's.

    Args:
        run: the folder.
        config: what decides the run's result; `settings` among it.
        init: the checkpoint that the run starts from.
        anew: replace a run with another configuration.

    Returns:
        None; or, where the run was begun with another length and all else is the same, the settings that say that length.

    Raises:
        OtherRun: it was begun with another configuration, and `anew` is not given.
        UsageError: the folder holds something else.
        WsurgeryError: its configuration is damaged, or one of its files is a link.
    """
    run.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        refuse_link(run / name)
    settled = run / "config.json"
    as_read = json.loads(json.dumps(config))
    if settled.exists():
        try:
            return _begun_so(run, settled, as_read)
        except OtherRun:
            if not anew:
                raise
        _clear(run)
    else:
        leftovers = [path.name for path in run.iterdir() if not path.name.startswith(".") and path.suffix != ".tmp"]
        if leftovers and leftovers != ["init.safetensors"]:
            raise UsageError(f"{printable(str(run))} holds {printable(leftovers[0])} and no run: choose another folder")
    with AtomicFile(run / "init.safetensors", force=True) as target:
        init.copy_whole_to(target)
    write_json(settled, as_read)
    return None


def _begun_so(run: Path, settled: Path, as_read: Entry) -> Settings | None:
    """Return what `claim_folder` does of a run that is there."""
    before = read_config(settled)
    length = {key: before["settings"].get(key) for key in ("steps", "epochs")}
    shorter = None
    if length != {key: as_read["settings"][key] for key in length} and _is_length(length):
        shorter = Settings(**length)
        before["settings"] = {**before["settings"], **{key: as_read["settings"][key] for key in length}}
    for key, called, digests in (("init", "name", ("digest",)), ("data", "spec", ("train", "validation"))):
        known, now = before.get(key), as_read[key]
        if not isinstance(known, dict) or are_drawn(known) or are_drawn(now):
            continue
        if all(known.get(each) == now[each] for each in digests):
            before[key] = {**known, called: now[called]}  # wherever it lies
    for key in {**as_read, **before}:
        if as_read.get(key) != before.get(key):
            raise OtherRun(
                f"{printable(str(run))} was begun with other {key}: {_OTHERWISE} "
                f"({_changes(before.get(key), as_read.get(key))})"
            )
    return shorter


def are_drawn(data: Mapping[str, Any]) -> bool:
    """Whether a configuration's `data` are drawn: what they look like is in their specification, and not in a digest of rows."""
    return str(data.get("spec")).partition(":")[0] in SCHEMES


def _is_length(length: Entry) -> bool:
    return all(value is None or (type(value) is int and 0 <= value < 1 << 53) for value in length.values())


def lengthen_folder(
    run: Path,
    config: Entry,
    *,
    steps: int,
    before: int,
    every: int,
    read_state: Callable[[], Callable[[], None]],
    anew: bool = False,
) -> None:
    """Let a run go on to another length, as if it had been begun with it.

    Args:
        run: the folder.
        config: what decides the longer run's result.
        steps: that it has.
        before: steps that the run was begun with.
        every: steps between evaluations.
        read_state: reads what the longer run would go on with, and returns what writes `best.safetensors` again, with its record.
        anew: replace a run that would not become what one of that length is.

    Raises:
        OtherRun: it would not, and `anew` is not given.
        WsurgeryError: what `read_state` raises; nothing is changed then.
    """
    try:
        _require_passed_through(run, steps=steps, before=before, every=every)
    except OtherRun:
        if not anew:
            raise
        _clear(run)
    else:
        record_best = read_state() if (run / "resume.pt").exists() else None
        (run / "metrics.json").unlink(missing_ok=True)  # first: whatever comes between, it is not the longer run's end
        if record_best is not None:
            record_best()
    write_json(run / "config.json", json.loads(json.dumps(config)))


def _require_passed_through(run: Path, *, steps: int, before: int, every: int) -> None:
    said = printable(str(run))
    if steps < before:
        raise OtherRun(
            f"{said} was begun with other settings: {_OTHERWISE} (it has {before} steps, and {steps} are fewer)"
        )
    for name in ("resume.pt", "best.safetensors"):
        if (run / "metrics.json").exists() and not (run / name).exists():
            raise OtherRun(f"{said} is finished and has no {name}, with which a longer run would go on: {_OTHERWISE}")
    log = run / "log.jsonl"
    ended = log.exists() and any(entry["step"] == before and "macro_auc" in entry for entry in read_log(log))
    if steps > before and before % every and ended:
        raise OtherRun(
            f"{said} ended with an evaluation after step {before}, which a run of {steps} steps does not make with "
            f"--eval-every {every}, so it would not be that run: {_OTHERWISE}"
        )


def _clear(run: Path) -> None:
    """Remove what a run left and what was found of it, up to the two files that the next one overwrites.

    As long as config.json is there, the folder is known for that of a run.
    """
    for path in (run / name for name in (*_FOUND, *reversed(FILES)) if name not in ("config.json", "init.safetensors")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _changes(before: Any, now: Any) -> str:
    """Say what is other: `lr was 0.01 and is 0.5`."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return f"it was {printable(json.dumps(before), 80)} and is {printable(json.dumps(now), 80)}"
    other = [key for key in {**now, **before} if now.get(key) != before.get(key)]
    return ", ".join(
        f"{printable(key)} was {printable(json.dumps(before.get(key)), 80)} and is {printable(json.dumps(now.get(key)), 80)}"
        for key in other
    )


def read_config(path: Path) -> dict[str, Any]:
    """Read what decided a run's result, its `settings` among it; what there is besides them is only compared.

    A run that began before there was a setting has its default.

    Raises:
        FileNotFoundError: there is no such file.
        WsurgeryError: it is damaged.
    """
    found = parse_json(read_regular(path, _MAX_CONFIG), dict[str, dict[str, Any] | list[str] | str | None], str(path))
    if not isinstance(found.get("settings"), dict):
        raise WsurgeryError(f"{printable(str(path))} is not what wsurgery writes: it has no settings")
    usual = {"settings": json.loads(json.dumps(asdict(Settings()))), "data": asdict(Rendering())}
    return {key: {**usual.get(key, {}), **value} if isinstance(value, dict) else value for key, value in found.items()}


def loss_in_words(settings: Mapping[str, Any]) -> str:
    """Name the loss of a configuration's `settings`; empty where they name none that is known."""
    name = LOSSES.get(str(settings.get("loss")), "")
    return f"weighted {name}" if name and settings.get("pos_weight") else name


def summarise(log: Path, *, until_auc: float | None = None) -> Entry:
    """Return what `metrics.json` holds, from a log.

    Args:
        log: the run's.
        until_auc: the macro AUC that training was to stop at.

    Raises:
        WsurgeryError: it is damaged, or holds no evaluation.
    """
    evaluated = [entry for entry in read_log(log) if "macro_auc" in entry]
    if not evaluated:
        raise WsurgeryError(f"{printable(str(log))} holds no evaluation: remove the run to begin again")
    scored = [(entry, auc) for entry in evaluated if (auc := entry["macro_auc"]) is not None]
    aucs = {entry["step"]: auc for entry, auc in scored}
    stopped = stopped_at(aucs, until_auc)
    best, _ = max(scored, key=lambda pair: pair[1], default=(evaluated[0], None))

    def scored_entry(entry: LogEntry) -> Entry:
        return {key: entry[key] for key in ("step", "macro_auc", "top1") if key in entry}

    return {
        "steps": evaluated[-1]["step"],
        "best": scored_entry(best),
        "last": scored_entry(evaluated[-1]),
        "steps_to_auc": {f"{threshold:.2f}": steps_to(aucs, threshold, stopped=stopped) for threshold in THRESHOLDS},
    }


def write_json(path: Path, value: Entry) -> None:
    """Write a file, at once or not at all."""
    with AtomicFile(path, force=True) as stream:
        stream.write(json.dumps(value, indent=2).encode() + b"\n")
