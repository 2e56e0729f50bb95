"""What the runs of an arm come to: accuracy, steps to a threshold, and how they stand against a baseline."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp
from statistics import fmean

from wsurgery.experiments.origins import origin
from wsurgery.experiments.runs import Baseline, Run, by_arm, read_evaluation
from wsurgery.statistics import pairs
from wsurgery.statistics.bootstrap import Sample
from wsurgery.statistics.pairs import centre_interval, log_ratio, unit_means
from wsurgery.statistics.spread import Spread, spread

NEITHER = "neither passed"
LEVEL = 0.9  # of the intervals: one lies within a margin where `equivalence` shows it


@dataclass(frozen=True)
class Arm:
    """The runs of one arm, in the order of their seeds.

    Attributes:
        name: the arm.
        runs: its runs.
        test_auc: macro AUC on the test split, one for each run; None where the run was not evaluated.
        steps: step at which the threshold was passed, one for each run; None where it never was.
        samples: of what each of `test_auc` is, where it is known.
        baselines: what each of `test_auc` was held against, where it was.
        origin: what was done to the weights that the first run began with, where its checkpoint says it.
    """

    name: str
    runs: list[Run]
    test_auc: list[float | None]
    steps: list[int | None]
    samples: Sequence[Sample | None] = ()
    baselines: Sequence[Baseline | None] = ()
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

    def at(self, threshold: float) -> "Arm":
        """Return the arm with its steps counted to a threshold."""
        return replace(self, steps=[run.steps_to(threshold) for run in self.runs])

    def steps_in_words(self) -> str:
        """List the steps to the threshold, seed by seed: `60, > 200`."""
        return ", ".join(
            f"> {run.last_start}" if steps is None else f"{steps}"
            for run, steps in zip(self.runs, self.steps, strict=True)
        )


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
            baselines=[x and x.baseline for x in found],
            origin=origin(members[0].folder),
        )
    return arms


def log_ratios(a: Arm, b: Arm) -> dict[str, float]:
    """Return the log of A's steps over B's, by each seed that both have, as `statistics.pairs.log_ratio` does."""
    return {seed: log_ratio(*steps, *lasts) for seed, steps, lasts in _pairs(a, b)}


def late(a: Arm, b: Arm) -> tuple[list[bool], list[bool]]:
    """Say of each pair of a seed whether A, and whether B, was not there as far as both were watched."""
    found = [pairs.late(*steps, *lasts) for _, steps, lasts in _pairs(a, b)]
    return [mine for mine, _ in found], [other for _, other in found]


def _pairs(a: Arm, b: Arm) -> Iterator[tuple[str, tuple[int | None, int | None], tuple[float, float]]]:
    """Yield of each seed that both have the steps to the threshold, and the last at which such a run could begin."""
    others = {run.seed: (steps, run.watched(steps)) for run, steps in zip(b.runs, b.steps, strict=True)}
    for run, steps in zip(a.runs, a.steps, strict=True):
        if run.seed in others:
            other, last = others[run.seed]
            yield run.seed, (steps, other), (run.watched(steps), last)


def times(a: Arm, b: Arm, units: Mapping[str, str], *, named: bool = False) -> str:
    """Say how many times B's steps A takes: `0.48 (0.40 to 0.61)`, the mean of the seeds and its interval.

    `≤` stands before it where a run of B was not there by the last step at which both were watched, `≥` where one of A was
    not, `~` for both. `named` as in `effect`.
    """
    ratios = log_ratios(a, b)
    if not ratios:
        return "no seed has both"
    late_a, late_b = late(a, b)
    if all(late_a) and all(late_b):
        return NEITHER
    bound = {(False, False): "", (True, False): "≥ ", (False, True): "≤ ", (True, True): "~ "}[any(late_a), any(late_b)]
    return bound + effect(unit_means(ratios, units), lambda x: f"{exp(x):.2f}", named=named)


def effect(differences: Sequence[float], written: Callable[[float], str], *, named: bool = True) -> str:
    """Write the mean of paired differences with its interval, where so many have one; `named`: and say what it is."""
    ci = centre_interval(differences, level=LEVEL)
    name = f"{LEVEL:.0%} interval " if named else ""
    return f"{written(fmean(differences))}{f' ({name}{written(ci[0])} to {written(ci[1])})' if ci else ''}"


def signed(differences: Sequence[float], *, named: bool = False) -> str:
    """Write the mean of paired differences of AUC or similarity, with its sign, as `effect` does."""
    return effect(differences, lambda x: f"{x:+.3f}", named=named)


def in_words(summary: Spread | None, *, digits: int = 3) -> str:
    """Write a mean and its spread: `0.912 (0.905 to 0.919)` for a range, `0.912 ± 0.004` for a standard deviation."""
    if summary is None:
        return "–"
    detail = {
        "range": f" ({summary.low:.{digits}f} to {summary.high:.{digits}f})",
        "sd": f" ± {summary.high - summary.mean:.{digits}f}",
    }
    return f"{summary.mean:.{digits}f}{detail.get(summary.kind, '')}"
