"""The report on an experiment: what its runs and comparisons came to, as data for its page and as JSON."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wsurgery.errors import UsageError, printable
from wsurgery.experiments.cca import PRETRAINED_PAIR, RANDOM_PAIR, TO_INIT, Comparison, differences, find_comparisons
from wsurgery.experiments.claim_lines import Line
from wsurgery.experiments.claims import Basis, Claim, NotJudged, judge
from wsurgery.experiments.origins import source_units
from wsurgery.experiments.runs import arm_order, arms_in, find_runs, require_one_split
from wsurgery.experiments.summary import Arm, summarise, times
from wsurgery.experiments.thresholds import Thresholds, read_thresholds, resolve
from wsurgery.experiments.what_ran import WhatRan, what_ran
from wsurgery.statistics.spread import spread


@dataclass(frozen=True)
class Report:
    """What is known of an experiment.

    Attributes:
        arms: by name, in the order of the page.
        comparisons: by name, in the order of the page.
        claims: those that could be judged.
        not_judged: those that could not.
        basis: what claims are judged by.
        baseline: the arm that the others are held against; empty where there is none.
        ran: what the runs say of themselves.
        selected: the reader chose arms or comparisons, so that those which are not here are not missing.
    """

    arms: Mapping[str, Arm]
    comparisons: Mapping[str, Comparison]
    claims: Sequence[Claim]
    not_judged: Sequence[NotJudged]
    basis: Basis
    baseline: str
    ran: WhatRan
    selected: bool

    @property
    def thresholds(self) -> Thresholds:
        """The validation macro AUCs that steps are counted to."""
        return self.basis.thresholds

    @property
    def last_of_all(self) -> int:
        """The last step that all runs of the page have come to."""
        return min(run.last_step for arm in self.arms.values() for run in arm.runs)

    def areas(self, arm: Arm) -> list[float]:
        """Return the mean AUC along training up to `last_of_all`, 0 to 1, of each run of an arm."""
        return [run.area(self.last_of_all) for run in arm.runs]

    def against_baseline(self, arm: Arm, threshold: float | None = None) -> str:
        """Say how many times the baseline's steps an arm takes; empty where there is none, or it is the arm."""
        other = self.arms.get(self.baseline)
        if other is None or arm is other:
            return ""
        at = self.thresholds.tested if threshold is None else threshold
        return times(arm.at(at), other.at(at), self.basis.units)

    @property
    def to_init(self) -> dict[str, Comparison]:
        """Comparisons of networks with their own beginnings, by arm."""
        return {name.removesuffix(TO_INIT): x for name, x in self.comparisons.items() if name.endswith(TO_INIT)}

    @property
    def pairs(self) -> dict[str, Comparison]:
        """The other comparisons, by name."""
        return {name: x for name, x in self.comparisons.items() if not name.endswith(TO_INIT)}


def read_report(
    folder: Path,
    *,
    threshold: str,
    plateau: str | None = None,
    arms: Sequence[str] | None = None,
    comparisons: Sequence[str] | None = None,
    seeds: Collection[str] | None = None,
    baseline: str | None = None,
    claims: Sequence[Line] = (),
) -> Report:
    """Read an experiment: runs in `folder`/runs/ARM/SEED, comparisons in `folder`/cca/NAME.json or cca/NAME/SEED.json.

    Args:
        folder: the experiment.
        threshold: the validation macro AUCs to count steps to, as `read_thresholds` reads them.
        plateau: the arm whose end shares in `threshold` are of; it does not come on the page.
        arms: which, in the order of the page; None for all.
        comparisons: likewise; ARM-to-init stands for runs/ARM/SEED/cca-init.json.
        seeds: which, of arms and comparisons; None for all.
        baseline: the arm that the others are held against. Default: `random` where there is one, else the first.
        claims: what to judge.

    Raises:
        UsageError: there is nothing, or not what was chosen, or the threshold is no AUC.
        WsurgeryError: a run has not ended, or a file is broken.
    """
    chosen = arms is not None or comparisons is not None
    asked = read_thresholds(threshold)
    there = arms_in(folder, seeds)
    if plateau is not None and plateau in (arms or []):
        raise UsageError(f"--plateau {printable(plateau)} is on the page: name an arm that no claim is about")
    if arms is None and plateau in there:
        arms = [arm for arm in sorted(there, key=arm_order) if arm != plateau]
    runs = find_runs(folder, arms, seeds)
    ends = find_runs(folder, [plateau], seeds) if plateau and runs else []
    require_one_split([*runs, *ends])
    thresholds = resolve(asked, ends) if runs else Thresholds([auc for auc, _ in asked])
    found = summarise(runs, thresholds.tested)
    compared = find_comparisons(folder, list(found), comparisons, seeds)
    if not found and not compared:
        raise UsageError(f"nothing of {printable(str(folder))} is left to report: choose arms or comparisons")
    if baseline is not None and baseline not in found:
        known = ", ".join(map(printable, found)) or "none"
        raise UsageError(
            f"--baseline {printable(baseline)}: {printable(str(folder))} has no such arm; there are: {known}"
        )
    baseline = baseline or next((arm for arm in ("random", *found) if arm in found), "")
    # Other arms of the folder tell which seeds share a source network, but only of the seeds that are on the page.
    on_page = {run.seed for arm in found.values() for run in arm.runs}.union(
        *(each.by_seed for each in compared.values())
    )
    units = {seed: unit for seed, unit in source_units(there).items() if seed in on_page}
    basis = Basis(thresholds, units, asked, ends)
    judged, others = judge(claims, found, compared, basis)
    return Report(found, compared, judged, others, basis, baseline, what_ran(found), chosen)


def as_json(report: Report) -> dict[str, Any]:
    """Return the tables and the verdicts as JSON data. A null step count is a run that never passed."""
    pairs, to_init = report.pairs, report.to_init
    both = PRETRAINED_PAIR in pairs and RANDOM_PAIR in pairs
    return {
        "threshold": report.thresholds.tested,
        "thresholds": list(report.thresholds.aucs),
        "baseline": report.baseline or None,
        "arms": [
            {
                "arm": arm.name,
                "origin": arm.origin or None,
                "seeds": [run.seed for run in arm.runs],
                "test_samples": [sample and sample._asdict() for sample in arm.samples],
                "test_macro_auc": {"values": arm.test_auc, **(arm.test_spread._asdict() if arm.test_spread else {})},
                "baseline": _baseline_json(arm),
                "valid_macro_auc": {"values": arm.last_auc, **arm.valid_spread._asdict()},
                "mean_auc_along_training": {
                    "up_to_step": report.last_of_all,
                    "values": (areas := report.areas(arm)),
                    **spread(areas)._asdict(),
                },
                "steps_to_threshold": arm.steps,
                "steps_to": {f"{auc:g}": arm.at(auc).steps for auc in report.thresholds.aucs},
                "watched_until": [run.last_start for run in arm.runs],
                "against_baseline": report.against_baseline(arm) or None,
                "cca_init": [
                    [asdict(layer) for layer in scores]
                    for scores in (to_init[arm.name].results if arm.name in to_init else [])
                ],
            }
            for arm in report.arms.values()
        ],
        "comparisons": [_comparison_json(comparison) for comparison in report.comparisons.values()],
        "pair_differences": [x._asdict() for x in differences(pairs[PRETRAINED_PAIR], pairs[RANDOM_PAIR])]
        if both
        else [],
        "claims": [claim._asdict() for claim in report.claims],
        "not_judged": [claim._asdict() for claim in report.not_judged],
        "what_ran": asdict(report.ran),
    }


def _baseline_json(arm: Arm) -> dict[str, Any] | None:
    """Return what the networks of an arm were held against, seed by seed; None where none was."""
    if not any(arm.baselines):
        return None
    fields = {"name": "names", "macro_auc": "values", "difference": "differences", "p": "p"}
    return {key: [x and getattr(x, field) for x in arm.baselines] for field, key in fields.items()}


def _comparison_json(comparison: Comparison) -> dict[str, Any]:
    floors, ceilings = comparison.means("floor"), comparison.means("ceiling")
    return {
        "name": comparison.name,
        "seeds": [seed for seed in comparison.by_seed if seed],
        "layers": [
            {
                "layer": layer,
                "values": list(comparison.values(layer).values()),
                **(found._asdict() if (found := comparison.spread(layer)) else {}),
                "floor": floors.get(layer),
                "ceiling": ceilings.get(layer),
            }
            for layer in comparison.layers
        ],
    }
