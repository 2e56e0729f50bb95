"""Reading what training, evaluation and comparison have written, for figures and reports."""

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np

from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.similarity.metric_names import MEAN_CCA
from wsurgery.statistics.bootstrap import Sample
from wsurgery.training.baseline_names import Name
from wsurgery.training.run_folder import are_drawn, loss_in_words, read_config
from wsurgery.training.run_log import in_a_row, read_log, require_auc, steps_to, stopped_at
from wsurgery.untrusted import parse_json, read_regular

MAX_RESULT = 1 << 28  # bytes of eval.json, or of a result of cca
_OWN_OF_FOLD = ("data (spec)", "data (train)", "data (validation)", "data (fold)")
_LARGEST = 1e15  # of a similarity: normalised, it may be anything

_ARM_ORDER: tuple[str, ...] = (
    "random",
    "random-timm",
    "transfer",
    "meanvar",
    "shuffle",
    "sample",
    "transfuse-",
    "gabor",
    "bn-",
    "slim-",
)
_ARM_ORDER += ("freeze-", "freeze-hybrid-", "freeze-random-")


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        folder: where it is.
        arm: what was trained: the name of the folder, or of its parent where the folder is a number.
        seed: that number, else empty.
        auc: optimiser step → macro AUC on the split `split`, 0 to 1, in the order of training.
        loss: optimiser step → training loss.
        by_label: label → as `auc`, its AUC alone, where it is known.
        by_block: block → optimiser step → ‖W − W₀‖ / ‖W₀‖ over its parameters, W₀ those that training began with, where it
            is known; the blocks in the order in which data meets them.
        stopped: the macro AUC, 0 to 1, at which training was to stop, and did; None where it ended otherwise.
        loss_name: what `loss` is, in words; empty where nobody knows.
        split: on which it was evaluated as it was trained.
    """

    folder: Path
    arm: str
    seed: str
    auc: dict[int, float]
    loss: dict[int, float]
    by_label: dict[str, dict[int, float]] = field(default_factory=dict)
    by_block: dict[str, dict[int, float]] = field(default_factory=dict)
    stopped: float | None = None
    loss_name: str = ""
    split: str = "valid"

    def of(self, label: str) -> "Run":
        """Return the run with the AUC of one of `by_label` in place of the macro AUC."""
        return replace(self, auc=self.by_label[label], stopped=None)

    @property
    def last_step(self) -> int:
        """The last step at which the network was evaluated."""
        return max(self.auc)

    @property
    def last_start(self) -> int:
        """The last step from which on enough evaluations are known: until there a run was watched that never passed."""
        return list(self.auc)[-in_a_row(len(self.auc))]

    def area(self, last: int) -> float:
        """Return the area under the curve of `auc` over the steps up to `last`, by their number: the mean AUC along training.

        Runs are compared up to a step that each has come to: the longer one trains, the higher the mean.

        Args:
            last: at most `last_step`. Between evaluations the curve is straight.
        """
        steps = [*(step for step in self.auc if step < last), last]
        values = np.interp(steps, list(self.auc), list(self.auc.values()))
        between = (values[:-1] + values[1:]) / 2
        return float(np.average(between, weights=np.diff(steps)) if len(steps) > 1 else values[0])

    def steps_to(self, threshold: float) -> int | None:
        """Return the step from which three evaluations in a row have at least `threshold`; None (censored) if none.

        Of fewer than nine evaluations, a third; and where the run was stopped for what it had reached, fewer.
        """
        return steps_to(self.auc, threshold, stopped=self.stopped)

    def watched(self, steps: int | None) -> float:
        """Return the last step up to which it is known whether a threshold was passed, that was passed at `steps`.

        Without an end for a run that was stopped for what it had reached: had it gone on, it were known all the same.
        """
        return self.last_start if self.stopped is None or steps is None else math.inf


@dataclass(frozen=True)
class LayerScore:
    """One layer of a `cca --json` result.

    Attributes:
        layer: its name.
        value: the similarity, or None where it is not defined (a layer with no live channel).
        se: standard error of `value`.
        floor: what unrelated networks would score under the same draws.
        ceiling: what a network scores against itself under the same draws.
        normalised: (value − floor) / (ceiling − floor).
        metric: which similarity it is.
    """

    layer: str
    value: float | None = None
    se: float | None = None
    floor: float | None = None
    ceiling: float | None = None
    normalised: float | None = None
    metric: str = MEAN_CCA


@dataclass(frozen=True)
class Baseline:
    """A classifier without a network on the images of a run, as its `eval.json` has it.

    Attributes:
        name: of what features.
        macro_auc: its own, 0 to 1.
        difference: the network's macro AUC less that.
        p: of the difference, DeLong's, two-sided; None where there is no test.
    """

    name: Name
    macro_auc: float
    difference: float
    p: float | None


class _EvaluationFile(TypedDict, total=False):
    macro_auc: float | None
    baseline: Baseline
    n: int
    independent: Literal["patients", "images"]
    units: int


class Evaluation(NamedTuple):
    """What a run's `eval.json`, the output of `eval --json`, says of its network.

    Attributes:
        macro_auc: 0 to 1; None where no label has both classes.
        sample: of what it is; None where the file does not say.
        baseline: what it was held against; None where nothing was.
    """

    macro_auc: float | None
    sample: Sample | None
    baseline: Baseline | None


class _Similarities(TypedDict):
    layers: list[LayerScore]


def read_run(folder: Path) -> Run:
    """Read the log of a run, finished or not.

    Raises:
        WsurgeryError: there is no log, a line of it is broken, or it holds no evaluation, or no AUC; or the config.json is
            damaged.
    """
    path = folder / "log.jsonl"
    if not path.is_file():
        raise WsurgeryError(f"{printable(str(folder))} has no log.jsonl: name a folder that `wsurgery train` wrote")
    entries = read_log(path)
    auc = {entry["step"]: value for entry in entries if (value := entry.get("macro_auc")) is not None}
    loss = {entry["step"]: value for entry in entries if (value := entry.get("loss")) is not None}
    if not auc and any("macro_auc" in entry for entry in entries):
        raise WsurgeryError(
            f"{printable(str(path))} holds evaluations without an AUC, for no label had both classes: train with another "
            "--eval-split"
        )
    if not auc:
        raise WsurgeryError(f"{printable(str(path))} holds no evaluation yet: wait, or train with --eval-every")
    by_label = _by_name((entry["step"], entry.get("auc", {})) for entry in entries)
    by_block = _by_name((entry["step"], entry.get("distance_from_init", {})) for entry in entries)
    resolved = folder.resolve()
    numbered = resolved.name.isdecimal()
    arm = (resolved.parent if numbered else resolved).name
    try:
        config = read_config(folder / "config.json")
    except FileNotFoundError:
        config = {}
    settings, data = (each if isinstance(each := config.get(key), dict) else {} for key in ("settings", "data"))
    until = settings.get("until_auc")
    stopped = stopped_at(auc, until if isinstance(until, int | float) else None)
    seed = resolved.name if numbered else ""
    split = str(data.get("eval_split", "valid"))
    return Run(folder, arm, seed, auc, loss, by_label, by_block, stopped, loss_in_words(settings), split)


def _by_name(logged: Iterable[tuple[int, Mapping[str, float | None]]]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for step, values in logged:
        for name, value in values.items():
            if value is not None:
                found.setdefault(name, {})[step] = value
    return found


def shared_labels(runs: Sequence[Run]) -> list[str]:
    """Name the labels whose AUC all runs have logged, in the order of the first."""
    return shared([run.by_label for run in runs])


def shared(logged: Sequence[Mapping[str, Any]]) -> list[str]:
    """List what all runs have logged by name, in the order of the first."""
    return [name for name in logged[0] if all(name in each for each in logged)]


def find_runs(folder: Path, arms: Sequence[str] | None = None, seeds: Collection[str] | None = None) -> list[Run]:
    """Read every finished run under `folder`/runs/ARM/SEED, seeds in numeric order.

    Args:
        folder: an experiment.
        arms: whose runs, in this order; the others are not looked at. None for all, those of the paper first.
        seeds: which; the others are not looked at. None for all.

    Raises:
        UsageError: there is none, or none of one of `arms`.
        WsurgeryError: a run is broken or has not ended.
    """
    folders = arms_in(folder, seeds)
    if not folders and arms != [] and not arms_in(folder):
        raise UsageError(f"{printable(str(folder))} holds no runs: a report is made from FOLDER/runs/ARM/SEED")
    for arm in arms or []:
        if arm not in folders:
            names = ", ".join(map(printable, sorted(arms_in(folder), key=arm_order)))
            chosen = "" if seeds is None else f" with seed {', '.join(map(printable, seeds))}"
            raise UsageError(f"{printable(str(folder))} has no runs of {printable(arm)}{chosen}: there are {names}")
    wanted = sorted(folders, key=arm_order) if arms is None else arms
    return [run for arm in wanted for run in _read_arm(arm, folders[arm])]


def arms_in(folder: Path, seeds: Collection[str] | None = None) -> dict[str, list[Path]]:
    """List the folders of the seeds, or of these, in `folder`/runs/ARM/SEED, in numeric order, by arm."""
    folders: dict[str, list[Path]] = {}
    for path in sorted((folder / "runs").glob("*/*"), key=lambda path: natural(path.name)):
        if path.is_dir() and (seeds is None or path.name in seeds):
            folders.setdefault(path.parent.name, []).append(path)
    return folders


def by_arm(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group runs by arm, both in the order given."""
    arms: dict[str, list[Run]] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    return arms


def told_apart(runs: Sequence[Run]) -> list[Run]:
    """Give arms of one name in different folders as much of their paths as tells them apart.

    Raises:
        UsageError: a run is there twice.
    """
    paths = [run.folder.resolve() for run in runs]
    for path in paths:
        if paths.count(path) > 1:
            raise UsageError(f"{printable(str(path))} is there twice: name each run once")
    folders = [path.parent if run.seed else path for run, path in zip(runs, paths, strict=True)]
    names = {}
    for folder in folders:
        others = [other for other in set(folders) if other != folder]
        names[folder] = next(
            "/".join(folder.parts[-n:])
            for n in range(1, len(folder.parts) + 1)
            if all(folder.parts[-n:] != other.parts[-n:] for other in others)
        )
    return [replace(run, arm=names[folder]) for run, folder in zip(runs, folders, strict=True)]


def require_alike(runs: Sequence[Run]) -> None:
    """Check that the runs of an arm differ in their seeds and first weights only, as far as their config.json say.

    Their data may be different folds of the same patients.

    Raises:
        UsageError: one was trained with another setting, on other data, or for other labels.
        WsurgeryError: a config.json is damaged.
    """
    for members in by_arm(runs).values():
        known = [(run, config) for run in members if (config := _decided(run.folder)) is not None]
        for run, config in known[1:]:
            first, before = known[0]
            for key in {**before, **config}:
                if before.get(key) != config.get(key):
                    a, b = (printable(json.dumps(each.get(key)), 80) for each in (before, config))
                    raise UsageError(
                        f"runs of {printable(run.arm)} are not alike: {printable(key)} is {a} in {printable(str(first.folder))} "
                        f"and {b} in {printable(str(run.folder))}: train one of them again, or move it to an arm of its own"
                    )


def require_one_split(runs: Iterable[Run]) -> None:
    """Check that the AUCs along training are of the same split in all runs.

    Raises:
        UsageError: they are not.
    """
    splits = {run.split: run for run in runs}
    if len(splits) > 1:
        each = " and ".join(f"of {printable(run.arm)} on {printable(split)}" for split, run in splits.items())
        raise UsageError(f"the AUCs along training are {each}: show them one by one, or train one again")


def _decided(run: Path) -> dict[str, Any] | None:
    """Return what decided a run's result and is not its seed's own, by name; None where nobody knows."""
    try:
        config = read_config(run / "config.json")
    except FileNotFoundError:
        return None
    settings = {key: value for key, value in config["settings"].items() if key != "seed"}
    data = config.get("data")
    parts = {f"data ({key})": value for key, value in data.items()} if isinstance(data, dict) else {}
    if isinstance(data, dict) and not are_drawn(data):
        parts.pop("data (spec)", None)  # where they lie
    if fold := str(parts.get("data (fold)", "")):
        parts = {key: value for key, value in parts.items() if key not in _OWN_OF_FOLD}
        parts["data (folds)"] = fold.rpartition("/")[2]
    return {**settings, **parts, "labels": config.get("labels")}


def read_seeds(folder: Path) -> list[Run]:
    """Read a finished run, or, from the folder of an arm, those of all its seeds, in numeric order.

    Raises:
        UsageError: there is none.
        WsurgeryError: a run is broken or has not ended.
    """
    if (folder / "log.jsonl").is_file():
        return [_read_finished(folder)]
    seeds = sorted((log.parent for log in folder.glob("*/log.jsonl")), key=lambda path: natural(path.name))
    if not seeds:
        raise UsageError(f"{printable(str(folder))} holds no runs: name a run's folder, or one of runs, as runs/ARM")
    return _read_arm(folder.resolve().name, seeds)


def _read_arm(arm: str, seeds: Sequence[Path]) -> list[Run]:
    runs = [replace(_read_finished(seed), arm=arm, seed=seed.name) for seed in seeds]
    require_alike(runs)
    return runs


def _read_finished(folder: Path) -> Run:
    run = read_run(folder)
    if not (folder / "metrics.json").is_file():
        raise WsurgeryError(
            f"{printable(str(folder))} has not ended (no metrics.json): repeat its train command to go on"
        )
    return run


def arm_order(arm: str) -> tuple[int, bool, list[tuple[int, str, str]]]:
    """Return a sorting key for arms: those of the paper in the order in which it explains them, then the others."""
    known = [i for i, name in enumerate(_ARM_ORDER) if (arm.startswith(name) if name.endswith("-") else arm == name)]
    return max(known, default=len(_ARM_ORDER)), not arm.endswith("-conv1"), natural(arm)


def read_evaluation(folder: Path) -> Evaluation | None:
    """Return what a run's `eval.json` says; None where there is none.

    Raises:
        WsurgeryError: it is no such file, or holds what is no AUC or p.
    """
    path = folder / "eval.json"
    try:
        found = parse_json(read_regular(path, MAX_RESULT), _EvaluationFile, str(path))
    except FileNotFoundError:
        return None
    auc = found.get("macro_auc")
    auc = auc if auc is not None and math.isfinite(auc) else None
    require_auc(auc, str(path))
    whole = "n" in found and "independent" in found and "units" in found
    sample = Sample(found["n"], found["independent"], found["units"]) if whole else None
    if baseline := found.get("baseline"):
        require_auc(baseline.macro_auc, str(path))
        if not -1 <= baseline.difference <= 1 or not 0 <= (baseline.p or 0) <= 1:
            raise WsurgeryError(
                f"{printable(str(path))} has a baseline with numbers that cannot be: make the file again"
            )
    return Evaluation(auc, sample, baseline)


def read_similarities(path: Path) -> list[LayerScore]:
    """Read the output of `cca --json`, layers from the lowest up.

    Of several metrics the mean canonical correlation is taken, or else the first.

    Raises:
        WsurgeryError: not such a file.
    """
    found = parse_json(read_regular(path, MAX_RESULT), _Similarities, str(path))
    if not found["layers"]:
        raise WsurgeryError(
            f"{printable(str(path))} has no layers: write it with `wsurgery cca A B --data SPEC --json`"
        )
    layers: dict[str, LayerScore] = {}
    metrics = [layer.metric for layer in found["layers"]]
    taken = MEAN_CCA if MEAN_CCA in metrics else metrics[0]
    for layer in (each for each in found["layers"] if each.metric == taken):
        numbers = {
            name: _known(value, path) for name, value in asdict(layer).items() if name not in ("layer", "metric")
        }
        if (numbers["se"] or 0) < 0:
            raise WsurgeryError(f"{printable(str(path))} has a standard error below 0: make the file again")
        layers.setdefault(layer.layer, LayerScore(layer.layer, metric=taken, **numbers))
    return list(layers.values())


def _known(value: float | None, path: Path) -> float | None:
    """Return a number that is finite; None where it is not, or not there."""
    if value is None or not math.isfinite(value):
        return None
    if abs(value) > _LARGEST:
        raise WsurgeryError(f"{printable(str(path))} has a similarity of {value:g}: make the file again")
    return value


def natural(text: str) -> list[tuple[int, str, str]]:
    """Return a sorting key that puts seed 10 after seed 9; a number may have any length."""
    found = ((word, part.lstrip("0")) for word, part in re.findall(r"(\D*)(\d*)", text))
    return [(len(number), number, word) for word, number in found]
