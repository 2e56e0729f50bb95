"""A run's folder: who may use it, and what is written there."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wsurgery.checkpoint import AtomicFile, Checkpoint
from wsurgery.errors import UsageError, printable
from wsurgery.training.settings import Settings

THRESHOLDS = tuple(round(0.5 + 0.01 * i, 2) for i in range(50))  # of macro AUC, in metrics.json
Entry = dict[str, Any]


def claim_folder(run: Path, config: Entry, init: Checkpoint) -> None:
    """Make a run's folder with `init.safetensors` and `config.json`, or find that it is this run's.

    Args:
        run: the folder.
        config: what decides the run's result; `settings` among it.
        init: the checkpoint that the run starts from.

    Raises:
        UsageError: the folder holds something else, or a run with another configuration.
    """
    run.mkdir(parents=True, exist_ok=True)
    settled = run / "config.json"
    as_read = json.loads(json.dumps(config))
    if not settled.exists():
        leftovers = [path.name for path in run.iterdir() if not path.name.startswith(".") and path.suffix != ".tmp"]
        if leftovers and leftovers != ["init.safetensors"]:
            raise UsageError(f"{printable(str(run))} holds {printable(leftovers[0])} and no run: choose another folder")
        with AtomicFile(run / "init.safetensors", force=True) as target:
            init.copy_whole_to(target)
        write_json(settled, as_read)
        return
    before = json.loads(settled.read_text())
    # A run that began before there was a setting has its default.
    before["settings"] = {**json.loads(json.dumps(asdict(Settings()))), **before.get("settings", {})}
    for key in {**as_read, **before}:
        if as_read.get(key) != before.get(key):
            raise UsageError(
                f"{printable(str(run))} was begun with other {key}: choose another folder with -o, or remove it"
            )


def summarise(log: Path) -> Entry:
    """Return what `metrics.json` holds, from a log."""
    evaluated = [entry for entry in map(json.loads, log.read_text().splitlines()) if "macro_auc" in entry]
    scored = [entry for entry in evaluated if entry["macro_auc"] is not None]
    best = max(scored, key=lambda entry: entry["macro_auc"], default=evaluated[0])

    def first(threshold: float) -> int | None:
        return next((entry["step"] for entry in scored if entry["macro_auc"] >= threshold), None)

    return {
        "steps": evaluated[-1]["step"],
        "best": {key: best[key] for key in ("step", "macro_auc")},
        "last": {key: evaluated[-1][key] for key in ("step", "macro_auc")},
        "steps_to_auc": {f"{threshold:.2f}": first(threshold) for threshold in THRESHOLDS},
    }


def write_json(path: Path, value: Entry) -> None:
    """Write a file, at once or not at all."""
    with AtomicFile(path, force=True) as stream:
        stream.write(json.dumps(value, indent=2).encode() + b"\n")
