"""Two runs, or two arms of several seeds: do they differ in AUC, and in the steps that they took to reach one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean, median
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsurgery.experiments.origins import source_units
from wsurgery.experiments.runs import Run
from wsurgery.statistics.bootstrap import bootstrap_aucs, percentile_interval
from wsurgery.statistics.delong import AucDifference, paired_delong
from wsurgery.statistics.pairs import PairedTest, late, log_ratio, paired_test, unit_means
from wsurgery.statistics.permutation import EXACT
from wsurgery.statistics.spread import Spread, spread
from wsurgery.statistics.survival import log_rank_test
from wsurgery.training.predictions import Predictions, align


class Bounds(NamedTuple):
    """Steps, or a difference of steps, that censoring leaves known within bounds; infinite where nothing bounds them."""

    low: float
    high: float

    @classmethod
    def of(cls, run: Run, threshold: float) -> "Bounds":
        """Return the steps that a run takes to a validation macro AUC: past its last one, where it never got there."""
        steps = run.steps_to(threshold)
        return cls(run.last_start + 1, math.inf) if steps is None else cls(steps, steps)

    @classmethod
    def median(cls, values: Sequence["Bounds"]) -> "Bounds":
        """Return the bounds of the median of values that are known within bounds."""
        return cls(median(value.low for value in values), median(value.high for value in values))

    def less(self, other: "Bounds") -> "Bounds":
        """Return the bounds of the difference from another number."""
        return Bounds(self.low - other.high, self.high - other.low)

    def in_words(self) -> str:
        """Write the bounds: `60`, `≥ 201`, `≤ -141`, `-20 to 40`, or `unknown`."""
        if self.low == self.high:
            return f"{self.low:g}"
        if math.isfinite(self.low) and math.isfinite(self.high):
            return f"{self.low:g} to {self.high:g}"
        if math.isfinite(self.low):
            return f"≥ {self.low:g}"
        return f"≤ {self.high:g}" if math.isfinite(self.high) else "unknown"


@dataclass(frozen=True)
class Steps:
    """Steps to a threshold, compared.

    Attributes:
        threshold: the validation macro AUC, 0 to 1, that steps are counted to.
        runs_a: the runs of A, in the order of their seeds.
        runs_b: those of B.
        a: the steps of each run of A.
        b: those of B.
        differences: steps of A less those of B, one for each seed; empty where the seeds are not the same.
        difference: their median; without pairs, the median of A less that of B.
        test: sign flips of the pairs' log steps, or the log-rank test of the two groups.
        p: of the test, two-sided.
        exact: whether `p` is, or an approximation for many runs.
        pairs: what the sign flips show of the logs of A's steps over B's; None without pairs.
    """

    threshold: float
    runs_a: Sequence[Run]
    runs_b: Sequence[Run]
    a: list[Bounds]
    b: list[Bounds]
    differences: list[Bounds]
    difference: Bounds
    test: Literal["sign-flip", "log-rank"]
    p: float
    exact: bool
    pairs: PairedTest | None

    @property
    def medians(self) -> tuple[Bounds, Bounds]:
        """The median steps of A and of B."""
        return Bounds.median(self.a), Bounds.median(self.b)

    @property
    def cut(self) -> bool:
        """Whether a pair's ratio is but a bound: one of it was not there as far as both were watched."""
        pairs, _ = pairs_of(self.runs_a, self.runs_b)
        return any(
            any(late(x, y, a.watched(x), b.watched(y)))
            for a, b in ((self.runs_a[i], self.runs_b[j]) for i, j in pairs)
            for x, y in [(a.steps_to(self.threshold), b.steps_to(self.threshold))]
        )

    @property
    def sooner(self) -> tuple[int, int, int]:
        """In how many pairs A was sooner, B was, and neither or nobody knows."""
        a, b = sum(pair.high < 0 for pair in self.differences), sum(pair.low > 0 for pair in self.differences)
        return a, b, len(self.differences) - a - b


@dataclass(frozen=True)
class AucRow:
    """One label's AUC, or the macro AUC, of A and of B.

    Attributes:
        a: mean over the runs of A that `tests` pair.
        b: mean over those of B.
        difference: mean over `tests` of the AUC of A less that of B.
        seeds: how the difference varies over `tests`.
        over_seeds: what sign flips show of it, where runs are paired by seed; None elsewhere, and for one pair.
        ci: interval of `difference` for these networks on other patients or images, by the bootstrap; None without it, and
            where DeLong's is None for all pairs.
        left_out: samples of the bootstrap that lack positives or negatives.
        tests: DeLong's test of each pair of networks.
    """

    a: float
    b: float
    difference: float
    seeds: Spread
    over_seeds: PairedTest | None
    ci: tuple[float, float] | None
    left_out: int
    tests: list[AucDifference]


@dataclass(frozen=True)
class Aucs:
    """AUCs on the same images, compared.

    Attributes:
        images: how many.
        unit: what is independent, and resampled.
        units: how many of them.
        resamples: of the bootstrap.
        labels: label → its row, None where it lacks positives or negatives.
        macro: the mean over the labels that have a row; None if none has.
        referable: for the grades of retinopathy, moderate or worse.
    """

    images: int
    unit: Literal["patients", "images"]
    units: int
    resamples: int
    labels: dict[str, AucRow | None]
    macro: AucRow | None
    referable: AucRow | None


def pairs_of(a: Sequence[Run], b: Sequence[Run]) -> tuple[list[tuple[int, int]], bool]:
    """Pair the runs of A and B: by seed if they have the same seeds, else each with each.

    Returns:
        The pairs, as indices of A and B, and whether they are by seed.
    """
    seeds = [run.seed for run in b]
    if sorted(run.seed for run in a) == sorted(seeds):
        return [(i, seeds.index(run.seed)) for i, run in enumerate(a)], True
    return list(product(range(len(a)), range(len(b)))), False


def units_of(a: Sequence[Run], b: Sequence[Run]) -> dict[str, str]:
    """Tell which seeds of two arms share a source network, as `source_units` does."""
    return source_units({name: [run.folder for run in runs] for name, runs in (("a", a), ("b", b))})


def compare_steps(a: Sequence[Run], b: Sequence[Run], threshold: float) -> Steps:
    """Compare the steps that runs take to a validation macro AUC; a run that never got there counts as censored."""
    steps_a, steps_b = ([Bounds.of(run, threshold) for run in runs] for runs in (a, b))
    pairs, by_seed = pairs_of(a, b)
    reached_a, reached_b = ([run.steps_to(threshold) for run in runs] for runs in (a, b))
    ends_a, ends_b = (
        [run.watched(at) for run, at in zip(runs, reached, strict=True)]
        for runs, reached in ((a, reached_a), (b, reached_b))
    )
    if by_seed:
        differences = [steps_a[i].less(steps_b[j]) for i, j in pairs]
        ratios = {a[i].seed: log_ratio(reached_a[i], reached_b[j], ends_a[i], ends_b[j]) for i, j in pairs}
        tested = paired_test(unit_means(ratios, units_of(a, b)))
        p, exact = min(1.0, 2 * min(tested.p_greater, tested.p_less)), 2**tested.n <= EXACT
        overall = Bounds.median(differences)
        return Steps(threshold, a, b, steps_a, steps_b, differences, overall, "sign-flip", p, exact, tested)
    overall = Bounds.median(steps_a).less(Bounds.median(steps_b))
    p, exact = log_rank_test(reached_a, reached_b, ends_a, ends_b)
    return Steps(threshold, a, b, steps_a, steps_b, [], overall, "log-rank", p, exact, None)


def compare_aucs(
    a: Sequence[Predictions],
    b: Sequence[Predictions],
    pairs: Sequence[tuple[int, int]],
    *,
    resamples: int,
    seed: int,
    units: Sequence[str] = (),
) -> Aucs:
    """Compare the AUCs of networks on the same images.

    Args:
        a: the predictions of the runs of A.
        b: those of B.
        pairs: which to compare, as indices of A and B.
        resamples: of the bootstrap; 0 for none.
        seed: of the bootstrap.
        units: of each pair, by seed, what it shares with others, such as its source network. Default: nothing.

    Raises:
        WsurgeryError: predictions are not of the same images with the same labels.
    """
    by_seed = len(pairs) == len(a) == len(b)
    images = a[0]
    runs = align(images, [*a, *b])
    drawn = [bootstrap_aucs(images.labels, run.scores, images.patients, resamples=resamples, seed=seed) for run in runs]

    def row(columns: list[int]) -> AucRow | None:
        if not columns:
            return None
        labels, tests, differences = images.labels[:, columns], [], np.zeros(resamples)
        for i, j in ((i, len(a) + j) for i, j in pairs):
            scores_a, scores_b = runs[i].scores[:, columns], runs[j].scores[:, columns]
            tests.append(paired_delong(labels, scores_a, scores_b, patients=images.patients))
            differences += (drawn[i] - drawn[j])[:, columns].mean(axis=1) / len(pairs)
        return _row(tests, differences, units if by_seed and units else [f"{i}" for i, _ in pairs], by_seed=by_seed)

    kinds = [[column] if _has_both(images.labels[:, column]) else [] for column in range(len(images.names))]
    count = images.count
    return Aucs(
        images=len(images.paths),
        unit=images.unit,
        units=len(set(images.patients)),
        resamples=resamples,
        labels={name: row(kind) for name, kind in zip(images.names[:count], kinds, strict=False)},
        macro=row([column for kind in kinds[:count] for column in kind]),
        referable=row(kinds[count]) if len(kinds) > count else None,
    )


def _has_both(labels: NDArray[np.float64]) -> bool:
    return bool((labels == 0).any() and (labels == 1).any())


def _row(tests: list[AucDifference], drawn: NDArray[np.float64], units: Sequence[str], *, by_seed: bool) -> AucRow:
    differences = [test.difference for test in tests]
    numbered = [f"{i}" for i in range(len(tests))]
    by_unit = unit_means(dict(zip(numbered, differences, strict=True)), dict(zip(numbered, units, strict=True)))
    return AucRow(
        a=fmean(test.a for test in tests),
        b=fmean(test.b for test in tests),
        difference=fmean(differences),
        seeds=spread(differences),
        over_seeds=paired_test(by_unit) if by_seed and len(tests) > 1 else None,
        ci=percentile_interval(drawn) if any(test.ci for test in tests) else None,
        left_out=int(np.isnan(drawn).sum()),
        tests=tests,
    )


def as_json(steps: Steps, aucs: Aucs | None, pairs: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Return a comparison as what `compare --json` prints; infinite bounds are null."""

    def bounds(value: Bounds) -> list[float | None]:
        return [x if math.isfinite(x) else None for x in value]

    def side(runs: Sequence[Run]) -> list[dict[str, Any]]:
        reached = [run.steps_to(steps.threshold) for run in runs]
        ends = [run.last_start if at is None else None for run, at in zip(runs, reached, strict=True)]
        return [
            {"run": str(run.folder), "seed": run.seed, "steps": at, "censored_at": end}
            for run, at, end in zip(runs, reached, ends, strict=True)
        ]

    def row(value: AucRow | None) -> dict[str, Any] | None:
        if value is None:
            return None
        tests = [
            {"seed_a": steps.runs_a[i].seed, "seed_b": steps.runs_b[j].seed, **test._asdict()}
            for (i, j), test in zip(pairs, value.tests, strict=True)
        ]
        return {
            "a": value.a,
            "b": value.b,
            "difference": value.difference,
            "seeds": value.seeds._asdict(),
            "over_seeds": value.over_seeds and value.over_seeds._asdict(),
            "bootstrap_ci": value.ci,
            "left_out": value.left_out,
            "delong": tests,
        }

    sooner = dict(zip(("a", "b", "undecided"), steps.sooner, strict=True)) if steps.differences else None
    return {
        "threshold": steps.threshold,
        "a": side(steps.runs_a),
        "b": side(steps.runs_b),
        "paired_by_seed": bool(steps.differences),
        "steps": {
            "medians": [bounds(middle) for middle in steps.medians],
            "differences": [bounds(pair) for pair in steps.differences],
            "difference": bounds(steps.difference),
            "sooner": sooner,
            "test": steps.test,
            "p": steps.p,
            "exact": steps.exact,
            "log_ratio": steps.pairs and steps.pairs._asdict(),
        },
        "auc": aucs
        and {
            "labels": {name: row(value) for name, value in aucs.labels.items()},
            "macro": row(aucs.macro),
            "referable": row(aucs.referable),
            "n": aucs.images,
            "independent": aucs.unit,
            "units": aucs.units,
            "bootstrap": aucs.resamples,
        },
    }
