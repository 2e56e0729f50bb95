"""What was run: the data, networks, settings, versions, machines and commands behind an experiment, as its runs say it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from wsurgery.checkpoint import open_checkpoint
from wsurgery.checkpoint.provenance import History, as_pipeline
from wsurgery.checkpoint.trained import trained_on
from wsurgery.errors import printable
from wsurgery.experiments.runs import MAX_RESULT, Run
from wsurgery.experiments.summary import Arm
from wsurgery.statistics.bootstrap import Sample, samples_in_words
from wsurgery.training.run_folder import read_config
from wsurgery.training.settings import Settings
from wsurgery.untrusted import parse_json, read_regular

_DIGITS = 12  # of a digest
_OWN = ("seed", "augmentation", "image_size", "loss")  # settings that stand elsewhere, or are a seed's own
_ALWAYS = ("optimizer", "lr", "batch_size", "steps", "epochs")


class _MetricsFile(TypedDict, total=False):
    environment: dict[str, Any]


@dataclass(frozen=True)
class WhatRan:
    """What runs say of themselves.

    Attributes:
        facts: heading → what the runs say, each thing once; what none says has no heading.
        commands: arm → the commands that made its first run, for a shell.
    """

    facts: Mapping[str, Sequence[str]]
    commands: Mapping[str, str]


def what_ran(arms: Mapping[str, Arm]) -> WhatRan:
    """Gather what the runs of arms say of themselves.

    Raises:
        WsurgeryError: a file of a run is broken.
    """
    runs = [run for arm in arms.values() for run in arm.runs]
    samples = [sample for arm in arms.values() for sample in arm.samples if sample]
    configs = [_config(run) for run in runs]
    environments = [_environment(run) for run in runs]
    histories = {run.folder: _history(run.folder) for run in runs}
    facts = {
        "data": [data_in_words(config) for config in configs],
        "images": [
            *(_samples([e[split] for e in environments if split in e], use) for split, use in _SPLITS),
            *([f"{samples_in_words(samples)} to test"] if samples else []),
        ],
        "network": [_network(history) for history in histories.values()],
        "images as the network sees them": [_images(history) for history in histories.values()],
        "training": [_settings(config, e) for config, e in zip(configs, environments, strict=True)],
        "steps taken": [f"{run.last_step:,}" for run in runs],
        "versions": [_listed(e, "wsurgery", "torch", "python") for e in environments],
        "machine": [_machine(e) for e in environments],
    }
    commands = {name: as_pipeline(log) for name, arm in arms.items() if (log := histories[arm.runs[0].folder].log)}
    known = {heading: list(dict.fromkeys(filter(None, said))) for heading, said in facts.items()}
    return WhatRan({heading: said for heading, said in known.items() if said}, commands)


_SPLITS = (("training", "train on"), ("validation", "validate"))


def _config(run: Run) -> dict[str, Any]:
    try:
        return read_config(run.folder / "config.json")
    except FileNotFoundError:
        return {}


def _environment(run: Run) -> dict[str, Any]:
    path = run.folder / "metrics.json"
    return parse_json(read_regular(path, MAX_RESULT), _MetricsFile, str(path)).get("environment", {})


def _history(folder: Path) -> History:
    path = folder / "best.safetensors"
    if not path.is_file():
        return History()
    with open_checkpoint(path) as checkpoint:
        return History.of(checkpoint)


def data_in_words(config: Mapping[str, Any]) -> str:
    """Write which data a run's `config.json` names, and the digests of its splits; empty where it names none."""
    data = config.get("data")
    if not isinstance(data, dict):
        return ""
    digests = ", ".join(f"{split} {str(data[split])[:_DIGITS]}" for split in ("train", "validation") if data.get(split))
    return f"{data.get('spec', '')} (digests: {digests})"


def _samples(found: Sequence[Any], use: str) -> str:
    try:
        return f"{samples_in_words([Sample(**each) for each in found])} to {use}" if found else ""
    except (TypeError, ValueError):
        return printable(json.dumps(found), 80)


def _network(history: History) -> str:
    architecture = history.architecture
    if not architecture:
        return ""
    own = {"name", "num_classes", "in_chans", "args"}
    more = {**architecture.get("args", {}), **{key: value for key, value in architecture.items() if key not in own}}
    return ", ".join(
        [str(architecture["name"]), *(f"{key} {value}" for key, value in more.items() if value is not None)]
    )


def _images(history: History) -> str:
    found = trained_on(history.log)
    if found is None:
        return ""
    loss = "softmax" if found.loss == "softmax" else "a sigmoid a label"
    return (
        f"{found.image_size} pixels a side, {found.channels} channels, fit {found.fit}, window {found.window}; "
        f"labels {', '.join(found.labels)}, {loss}"
    )


def _settings(config: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    settings, usual = config.get("settings", {}), vars(Settings())
    if "batch_size" in environment:  # fewer than were asked for, perhaps
        settings = {**settings, "batch_size": environment["batch_size"]}
    shown = [key for key in _ALWAYS if settings.get(key) is not None]
    shown += [
        key for key in settings if key not in (*_OWN, *_ALWAYS) and settings[key] not in (usual.get(key), [], None)
    ]
    return ", ".join(f"{key.replace('_', ' ')} {_value(settings[key])}" for key in shown)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _listed(environment: Mapping[str, Any], *keys: str) -> str:
    return ", ".join(f"{key} {environment[key]}" for key in keys if key in environment)


def _machine(environment: Mapping[str, Any]) -> str:
    if "device" not in environment:
        return ""
    counts: Iterable[str] = (
        f"{environment[key]} {key if environment[key] != 1 else key.removesuffix('es' if key == 'processes' else 's')}"
        for key in ("threads", "processes")
        if key in environment
    )
    return ", ".join([str(environment["device"]), str(environment.get("system", "")), *counts])
