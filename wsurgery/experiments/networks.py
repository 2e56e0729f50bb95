"""Several experiments side by side, one a network or one a size of training set, and claims across them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, inf, log
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from wsurgery.errors import UsageError, printable
from wsurgery.experiments.cca import comparisons_in
from wsurgery.experiments.claims import Claim
from wsurgery.experiments.report import Report, as_json, read_report
from wsurgery.experiments.runs import arms_in
from wsurgery.experiments.summary import Arm, in_words
from wsurgery.statistics.permutation import mann_whitney, verdict
from wsurgery.statistics.spread import spread


@dataclass(frozen=True)
class Networks:
    """Experiments side by side.

    Attributes:
        reports: by the name of their folders, NET or NET@N: NET trained on N images.
        claims: those across the experiments.
    """

    reports: Mapping[str, Report]
    claims: Sequence[Claim]

    @property
    def all_claims(self) -> list[Claim]:
        """The claims on each experiment, then those across them."""
        return [claim for report in self.reports.values() for claim in report.claims] + list(self.claims)


class Gap(NamedTuple):
    """Test AUC of transfer less that of random by seed, for a network trained on `images` images, None for all."""

    network: str
    images: int | None
    random: Arm
    transfer: Arm
    by_seed: dict[str, float]


def read_experiments(
    folders: Sequence[Path],
    *,
    threshold: float,
    arms: Sequence[str] | None = None,
    comparisons: Sequence[str] | None = None,
    baseline: str | None = None,
) -> Report | Networks:
    """Read an experiment, or several side by side, of which the first is the deepest network.

    Args:
        folders: one experiment each; of several, the folder's name is the network's.
        threshold: as for `read_report`.
        arms, comparisons: likewise; of several experiments each shows those that it has.
        baseline: likewise.

    Raises:
        UsageError: two folders have one name, or as for `read_report`.
        WsurgeryError: as for `read_report`.
    """
    named: dict[str, Path] = {}
    for folder in folders:
        name = folder.resolve().name
        if name in named:
            raise UsageError(
                f"{printable(str(folder))} and {printable(str(named[name]))} have the same name: rename one"
            )
        named[name] = folder
    if len(named) == 1:
        return read_report(folders[0], threshold=threshold, arms=arms, comparisons=comparisons, baseline=baseline)
    arms_of = _shared_out(arms, {name: list(arms_in(folder)) for name, folder in named.items()}, "runs of")
    pairs_of = _shared_out(comparisons, {name: comparisons_in(folder) for name, folder in named.items()}, "comparison")
    reports = {
        name: read_report(
            folder, threshold=threshold, arms=arms_of[name], comparisons=pairs_of[name], baseline=baseline
        )
        for name, folder in named.items()
    }
    return Networks(reports, [*_meanvar_claims(reports), *_closing_claims(gaps(reports))])


def _shared_out(
    chosen: Sequence[str] | None, there: Mapping[str, Sequence[str]], what: str
) -> dict[str, list[str] | None]:
    """Give each experiment those of `chosen` that it has; one that none has is a UsageError."""
    if chosen is None:
        return dict.fromkeys(there)
    for name in chosen:
        if not any(name in names for names in there.values()):
            known = (
                ", ".join(printable(x) for x in dict.fromkeys(x for names in there.values() for x in names)) or "none"
            )
            raise UsageError(f"none of the folders has {what} {printable(name)}; there are: {known}")
    return {network: [name for name in chosen if name in names] for network, names in there.items()}


def json_of(found: Report | Networks) -> dict[str, Any]:
    """Return one experiment as JSON data, or every one of several and the claims across them."""
    if isinstance(found, Report):
        return as_json(found)
    return {
        "networks": {name: as_json(report) for name, report in found.reports.items()},
        "claims": [claim._asdict() for claim in found.claims],
    }


def gaps(reports: Mapping[str, Report]) -> list[Gap]:
    """Return transfer's gain for every NET@N, and NET beside it, that has it, by network and size."""
    found = []
    subsets = {network for network, images in map(_parse, reports) if images is not None}
    for name, report in reports.items():
        network, images = _parse(name)
        if network not in subsets or "random" not in report.arms or "transfer" not in report.arms:
            continue
        random, transfer = report.arms["random"], report.arms["transfer"]
        a, b = _test_auc(random), _test_auc(transfer)
        if by_seed := {seed: b[seed] - a[seed] for seed in a if seed in b}:
            found.append(Gap(network, images, random, transfer, by_seed))
    order = list(dict.fromkeys(gap.network for gap in found))
    return sorted(found, key=lambda gap: (order.index(gap.network), gap.images or inf))


def gap_rows(reports: Mapping[str, Report]) -> list[list[str]]:
    """Return the table of transfer's gain by size in words, its head first; empty if there is none."""
    found = gaps(reports)
    rows = (
        [["network", "images", "random, test macro AUC", "transfer, test macro AUC", "gain, by seed"]] if found else []
    )
    for gap in found:
        aucs = [in_words(gap.random.test_spread), in_words(gap.transfer.test_spread)]
        gain = spread(list(gap.by_seed.values()))
        listed = ", ".join(f"{value:+.3f}" for value in gap.by_seed.values())
        rows.append([printable(gap.network, 40), _size(gap), *aucs, f"{gain.mean:+.3f} ({listed})"])
    return rows


def _parse(name: str) -> tuple[str, int | None]:
    network, _, images = name.rpartition("@")
    return (network, int(images)) if network and images.isdecimal() and len(images) < 19 else (name, None)


def _test_auc(arm: Arm) -> dict[str, float]:
    return {run.seed: auc for run, auc in zip(arm.runs, arm.test_auc, strict=True) if auc is not None}


def _meanvar_claims(reports: Mapping[str, Report]) -> list[Claim]:
    """Compare the first network with each other network trained on as many images."""
    gains = {
        name: _log_ratios(report.arms["random"], report.arms["meanvar"])
        for name, report in reports.items()
        if "random" in report.arms and "meanvar" in report.arms
    }
    deep, *others = reports
    (network, images), claims = _parse(deep), []
    for other in others:
        other_network, other_images = _parse(other)
        if network == other_network or images != other_images or not gains.get(deep) or not gains.get(other):
            continue
        test = mann_whitney([most for _, most in gains[other]], [least for least, _ in gains[deep]])
        words = "; ".join(
            f"{printable(name)} {', '.join(_in_words(*x) for x in gains[name])}" for name in (deep, other)
        )
        text = f"Meanvar's gain over random is larger on {printable(deep)} than on {printable(other)}."
        evidence = f"Steps of random over steps of meanvar, by seed: {words}."
        claims.append(Claim(text, evidence, verdict(test), test.p, 1))
    return claims


def _log_ratios(random: Arm, meanvar: Arm) -> list[tuple[float, float]]:
    """Return the least and the most that log(steps of random / steps of meanvar) can be, for each seed that both have.

    A network that passed before training counts as one that took one step: there is no ratio to nothing.
    """
    bounds = {
        arm.name: {
            run.seed: (max(least, 1), max(most, 1))
            for run, least, most in zip(arm.runs, arm.earliest_steps, arm.latest_steps, strict=True)
        }
        for arm in (random, meanvar)
    }
    pairs = [(bounds[random.name][run.seed], bounds[meanvar.name].get(run.seed)) for run in random.runs]
    return [(log(r[0]) - log(m[1]), log(r[1]) - log(m[0])) for r, m in pairs if m is not None]


def _in_words(least: float, most: float) -> str:
    if least == most:
        return f"{exp(least):.2g}×"
    if exp(least) == 0:
        return "unknown" if most == inf else f"≤ {exp(most):.2g}×"
    return f"≥ {exp(least):.2g}×"


def _closing_claims(found: Sequence[Gap]) -> list[Claim]:
    """Say for each network how transfer's gain goes with the size of the training set. Evidence only."""
    claims = []
    for network in dict.fromkeys(gap.network for gap in found):
        sizes = [gap for gap in found if gap.network == network]
        seeds = [seed for seed in sizes[0].by_seed if all(seed in gap.by_seed for gap in sizes)]
        if len(sizes) < 2 or not seeds:
            continue
        rhos = [_spearman([gap.by_seed[seed] for gap in sizes]) for seed in seeds]
        known = [rho for rho in rhos if rho is not None]
        means = ", ".join(f"{spread(list(gap.by_seed.values())).mean:+.3f} at {_size(gap)}" for gap in sizes)
        listed = ", ".join("undefined" if rho is None else f"{rho:+.2f}" for rho in rhos)
        middle = f", median {median(known):+.2f}" if len(known) > 1 else ""
        claims.append(
            Claim(
                f"Transfer's gain in test AUC closes as the training set of {printable(network)} grows.",
                f"Mean gain: {means}. Spearman's ρ of gain with size, by seed: {listed}{middle} (-1: closes steadily).",
                "evidence only, no test was made",
            )
        )
    return claims


def _size(gap: Gap) -> str:
    return "all" if gap.images is None else f"{gap.images:,}"


def _spearman(values: Sequence[float]) -> float | None:
    """Return Spearman's ρ of values with their order; None where all are equal."""
    from scipy.stats import spearmanr

    if all(a == b for a, b in pairwise(values)):
        return None
    return float(spearmanr(range(len(values)), values).statistic)
