"""What a run's folder says of its course: `log.jsonl`, a line an entry, and `metrics.json`. Both may be a stranger's."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypedDict

from msgspec import Meta

from wsurgery.errors import WsurgeryError, printable
from wsurgery.untrusted import parse_json, read_regular

MAX_LOG = 1 << 28  # bytes: a million entries
MAX_METRICS = 1 << 20
_SUSTAINED = 3  # evaluations in a row: at the one after a first passage, a third to a half are below again

Step = Annotated[int, Meta(ge=0, le=2**53)]


class _Step(TypedDict):
    step: Step


class LogEntry(_Step, total=False):
    """A line of the log: what every one has, and what is read of the others."""

    loss: float | None
    macro_auc: float | None
    auc: dict[str, float | None]  # by label
    top1: float
    distance_from_init: dict[str, Annotated[float, Meta(ge=0)] | None]  # by block


class _Macro(_Step):
    macro_auc: float | None


class _Scored(_Macro, total=False):
    top1: float


class _Metrics(TypedDict):
    steps: Step
    best: _Scored
    last: _Scored
    steps_to_auc: dict[str, Step | None]  # threshold → what `steps_to` returns


class Metrics(_Metrics, total=False):  # as two classes, for typing.NotRequired is not in Python 3.10
    """What `metrics.json` holds."""

    environment: dict[str, Any]


def read_log(path: Path) -> list[LogEntry]:
    """Read a log. A number that is not finite (a diverged loss) is None, as one that is not there.

    Raises:
        WsurgeryError: a line is no entry, its step is less than the one before it, or its AUC is none.
    """
    entries: list[LogEntry] = []
    previous = 0
    for number, line in enumerate(read_regular(path, MAX_LOG).splitlines(), 1):
        where = f"{path} line {number}"
        entry = parse_json(line, LogEntry, where)
        if "loss" in entry:
            entry["loss"] = _finite(entry["loss"])
        if "macro_auc" in entry:
            entry["macro_auc"] = _finite(entry["macro_auc"])
        if "auc" in entry:
            entry["auc"] = {label: _finite(value) for label, value in entry["auc"].items()}
        if "distance_from_init" in entry:
            entry["distance_from_init"] = {block: _finite(x) for block, x in entry["distance_from_init"].items()}
        if entry["step"] < previous:
            raise WsurgeryError(
                f"{printable(where)}: step {entry['step']} after step {previous}: two runs share this log"
            )
        for value in (entry.get("macro_auc"), *entry.get("auc", {}).values()):
            require_auc(value, where)
        previous = entry["step"]
        entries.append(entry)
    return entries


def read_metrics(path: Path) -> Metrics:
    """Read the result of a run.

    Raises:
        WsurgeryError: it is none.
    """
    metrics = parse_json(read_regular(path, MAX_METRICS), Metrics, str(path))
    for scored in (metrics["best"], metrics["last"]):
        require_auc(scored["macro_auc"], str(path))
    return metrics


def require_auc(value: float | None, where: str) -> None:
    """Require that a number is an AUC, or not known.

    Raises:
        WsurgeryError: it is not.
    """
    if value is not None and not 0 <= value <= 1:
        raise WsurgeryError(f"{printable(where)}: an AUC of {value:g}, which is not from 0 to 1")


def in_a_row(evaluations: int) -> int:
    """Return how many evaluations in a row must be above a threshold: three, or a third of fewer than nine, at least one."""
    return min(_SUSTAINED, max(1, evaluations // _SUSTAINED))


def stopped_at(auc: Mapping[int, float], until: float | None) -> float | None:
    """Return the AUC that ended a run which was to stop at `until`; None where it was not to, or never came there."""
    return until if until is not None and auc and [*auc.values()][-1] >= until else None


def steps_to(auc: Mapping[int, float], threshold: float, *, stopped: float | None = None) -> int | None:
    """Return the step from which enough evaluations in a row have at least an AUC, see `in_a_row`; None if none.

    Args:
        auc: evaluated step → macro AUC, in the order of training.
        threshold: the AUC, 0 to 1.
        stopped: what `stopped_at` returns. A threshold of at most that is taken to stay passed where the run ended, so that
            there fewer evaluations are enough.
    """
    steps, above, row = list(auc), [value >= threshold for value in auc.values()], in_a_row(len(auc))
    above += [True] * (row - 1) if stopped is not None and threshold <= stopped else []
    return next((steps[i] for i in range(len(above) - row + 1) if all(above[i : i + row])), None)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
