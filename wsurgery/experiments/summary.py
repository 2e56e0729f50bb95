"""What the runs of an arm come to: accuracy, steps to a threshold, and how they stand against a baseline."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from wsurgery.experiments.origins import origin
from wsurgery.experiments.runs import Run, by_arm, read_evaluation
from wsurgery.statistics.bootstrap import Sample
from wsurgery.statistics.spread import Spread, spread


@dataclass(frozen=True)
class Arm:
    """The runs of one arm, in the order of their seeds.

    Attributes:
        name: the arm.
        runs: its runs.
        test_auc: macro AUC on the test split, one for each run; None where the run was not evaluated.
        steps: step at which the threshold was first passed, one for each run; None where it never was.
        samples: of what each of `test_auc` is, where it is known.
        origin: what was done to the weights that the first run began with, where its checkpoint says it.
    """

    name: str
    runs: list[Run]
    test_auc: list[float | None]
    steps: list[int | None]
    samples: Sequence[Sample | None] = ()
    origin: str = ""

    @property
    def test_spread(self) -> Spread | None:
        """Test AUC over those seeds that were evaluated."""
        known = [auc for auc in self.test_auc if auc is not None]
        return spread(known) if known else None

    @property
    def last_auc(self) -> list[float]:
        """Macro AUC on the validation split at the last evaluation, one for each run."""
        return [run.auc[run.last_step] for run in self.runs]

    @property
    def valid_spread(self) -> Spread:
        """`last_auc` over the seeds."""
        return spread(self.last_auc)

    @property
    def latest_steps(self) -> list[float]:
        """The steps taken if a run that never passed the threshold never would have."""
        return [math.inf if steps is None else steps for steps in self.steps]

    @property
    def earliest_steps(self) -> list[float]:
        """The steps taken if a run that never passed the threshold would have at the very next step."""
        return [run.last_step + 1 if steps is None else steps for run, steps in zip(self.runs, self.steps, strict=True)]

    @property
    def median_steps(self) -> "Median":
        """The median steps over the seeds."""
        at_least = [run.last_step if steps is None else steps for run, steps in zip(self.runs, self.steps, strict=True)]
        return Median(median(at_least), exact=math.isfinite(median(self.latest_steps)))

    def against(self, other: "Arm") -> str:
        """Say how many times fewer or more steps it takes than another arm."""
        some_passed = any(steps is not None for steps in (*self.steps, *other.steps))
        return against(self.median_steps, other.median_steps, other.name, some_passed=some_passed)

    def steps_in_words(self) -> str:
        """List the steps to the threshold, seed by seed: `60, > 200`."""
        return ", ".join(
            f"> {run.last_step}" if steps is None else f"{steps}"
            for run, steps in zip(self.runs, self.steps, strict=True)
        )


class Median(NamedTuple):
    """Median steps; not `exact` where a run that never passed decides it, and it is only known to be larger."""

    steps: float
    exact: bool


def summarise(runs: Sequence[Run], threshold: float) -> dict[str, Arm]:
    """Gather runs by arm, with what evaluation has left in their folders.

    Args:
        runs: the runs, in the order of the page.
        threshold: the validation macro AUC, 0 to 1, that steps are counted to.

    Raises:
        WsurgeryError: a file in a run's folder is broken.
    """
    arms = {}
    for name, members in by_arm(runs).items():
        found = [read_evaluation(run.folder) for run in members]
        arms[name] = Arm(
            name=name,
            runs=members,
            test_auc=[x and x.macro_auc for x in found],
            steps=[run.steps_to(threshold) for run in members],
            samples=[x and x.sample for x in found],
            origin=origin(members[0].folder),
        )
    return arms


def against(arm: Median, random: Median, name: str = "random", *, some_passed: bool = False) -> str:
    """Say how many times fewer or more steps an arm takes: `2.1× fewer steps`, `> 1.5× fewer steps`, or `unknown`.

    Args:
        arm: the median of the arm.
        random: that of what it is compared to.
        name: of that.
        some_passed: whether a seed of either passed, though too few did for a median.
    """
    if not arm.exact and not random.exact:
        return "unknown: too few seeds passed" if some_passed else "unknown: neither passed"
    if arm.exact and arm.steps == 0:
        return "passed before training" if random.steps else "both passed before training"
    if random.exact and random.steps == 0:
        return f"{name} passed before training"
    ratio = random.steps / arm.steps
    bound = "" if arm.exact and random.exact else "> "
    if ratio > 1 and arm.exact:
        words = f"{bound}{ratio:.1f}× fewer steps"
    elif ratio < 1 and random.exact:
        words = f"{bound}{1 / ratio:.1f}× more steps"
    elif bound:
        words = "unknown: too few steps to say"
    else:
        words = "as many steps"
    return words


def in_words(summary: Spread | None) -> str:
    """Write a mean and its spread: `0.912 (0.905 to 0.919)` for a range, `0.912 ± 0.004` for a standard deviation."""
    if summary is None:
        return "–"
    detail = {
        "range": f" ({summary.low:.3f} to {summary.high:.3f})",
        "sd": f" ± {summary.high - summary.mean:.3f}",
    }
    return f"{summary.mean:.3f}{detail.get(summary.kind, '')}"


def against_baseline(arm: Arm, arms: Mapping[str, Arm], baseline: str) -> str:
    """Compare an arm with the baseline; empty where that is not there, or is the arm itself."""
    other = arms.get(baseline)
    return arm.against(other) if other and arm is not other else ""
