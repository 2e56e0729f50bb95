"""Several experiments side by side, one a network or one a size of training set, and claims across them."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, inf
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from wsurgery.errors import UsageError, printable
from wsurgery.experiments.cca import TO_INIT, Comparison, comparisons_in, seeds_of_comparisons
from wsurgery.experiments.claim_lines import Line
from wsurgery.experiments.claims import Claim, NotJudged, corrected, evaluated, require_layers
from wsurgery.experiments.report import Report, as_json, read_report
from wsurgery.experiments.runs import arms_in, natural
from wsurgery.experiments.summary import Arm, effect, in_words, log_ratios, signed
from wsurgery.statistics.pairs import unit_means
from wsurgery.statistics.permutation import sign_flip, verdict
from wsurgery.statistics.spread import spread


@dataclass(frozen=True)
class Networks:
    """Experiments side by side.

    Attributes:
        reports: by the name of their folders, NET, NET@N or NET@N@E: NET trained on N images, for E epochs.
        claims: those across the experiments.
        not_judged: those across them that could not be judged.
    """

    reports: Mapping[str, Report]
    claims: Sequence[Claim]
    not_judged: Sequence[NotJudged]

    @property
    def all_claims(self) -> list[Claim]:
        """The claims on each experiment, then those across them."""
        return [claim for report in self.reports.values() for claim in report.claims] + list(self.claims)


class Gap(NamedTuple):
    """Test AUC of one arm less that of another by seed, for a network trained on `images` images, None for all."""

    network: str
    images: int | None
    report: Report
    other: Arm
    arm: Arm
    by_seed: dict[str, float]


def read_experiments(
    folders: Sequence[Path],
    *,
    threshold: str,
    plateau: str | None = None,
    arms: Sequence[str] | None = None,
    comparisons: Sequence[str] | None = None,
    seeds: Collection[str] | None = None,
    baseline: str | None = None,
    claims: Sequence[Line] = (),
) -> Report | Networks:
    """Read an experiment, or several side by side, of which the first is the deepest network.

    Args:
        folders: one experiment each; of several, the folder's name is the network's.
        threshold, plateau: as for `read_report`; a share is of each network's own.
        arms, comparisons: likewise; of several experiments each shows those that it has.
        seeds, baseline: likewise.
        claims: what to judge, of each experiment and across them.

    Raises:
        UsageError: two folders have one name, none has one of `seeds`, or as for `read_report`.
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
    _require_a_seed(folders, seeds)
    if len(named) == 1:
        report = read_report(
            folders[0],
            threshold=threshold,
            plateau=plateau,
            arms=arms,
            comparisons=comparisons,
            seeds=seeds,
            baseline=baseline,
            claims=claims,
        )
        require_layers(claims, [report.comparisons])
        alone = [*report.not_judged, *_across(claims, {"": report})[1]]
        return replace(report, claims=corrected(report.claims), not_judged=alone)
    arms_of = _shared_out(arms, {name: list(arms_in(folder)) for name, folder in named.items()}, "runs of")
    pairs_of = _shared_out(comparisons, {name: comparisons_in(folder) for name, folder in named.items()}, "comparison")
    reports = {
        name: read_report(
            folder,
            threshold=threshold,
            plateau=plateau,
            arms=arms_of[name],
            comparisons=pairs_of[name],
            seeds=seeds,
            baseline=baseline,
            claims=claims,
        )
        for name, folder in named.items()
    }
    require_layers(claims, [report.comparisons for report in reports.values()])
    across, others = _across(claims, reports)
    judged = corrected([*(claim for report in reports.values() for claim in report.claims), *across])
    for name, report in reports.items():
        own, judged = judged[: len(report.claims)], judged[len(report.claims) :]
        reports[name] = replace(report, claims=own)
    return Networks(reports, judged, others)


def _require_a_seed(folders: Sequence[Path], seeds: Collection[str] | None) -> None:
    there = {seed for folder in folders for seed in _seeds_in(folder)}
    if seeds and there.isdisjoint(seeds):
        raise UsageError(
            f"--seeds {printable(', '.join(seeds), 80)}: no run or comparison has one of them; there are "
            f"{printable(', '.join(sorted(there, key=natural)), 200) or 'none'}"
        )


def _seeds_in(folder: Path) -> set[str]:
    return {run.name for runs in arms_in(folder).values() for run in runs} | seeds_of_comparisons(folder)


def overlooked(found: Report | Networks, seeds: Collection[str] | None, lines: Sequence[Line]) -> list[str]:
    """Say, a line each, what was asked for and is nowhere on the page: of `seeds`, and of networks that claims leave out."""
    reports = found.reports if isinstance(found, Networks) else {"": found}
    there = {run.seed for report in reports.values() for arm in report.arms.values() for run in arm.runs}
    there.update(seed for report in reports.values() for each in report.comparisons.values() for seed in each.by_seed)
    said = []
    if missing := [seed for seed in seeds or () if seed not in there]:
        known = ", ".join(sorted(filter(None, there), key=natural))
        said.append(
            f"--seeds {', '.join(missing)}: no run or comparison of this page has it; there are {known or 'none'}"
        )
    networks = {_parse(name)[0]: None for name in reports}
    for line in lines if isinstance(found, Networks) else ():
        for name in filter(None, line.options.get("except", "").split(",")):
            if name not in networks:
                said.append(f"{line.where}: except={name} is no network of this page; there are {', '.join(networks)}")
    return said


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
        "not_judged": [claim._asdict() for claim in found.not_judged],
    }


def gaps(reports: Mapping[str, Report], arm: str = "transfer", other: str = "random") -> list[Gap]:
    """Return an arm's gain over another for every NET@N, and NET beside it, that has both, by network and size."""
    found = []
    subsets = {network for network, images in map(_parse, reports) if images is not None}
    for name, report in reports.items():
        network, images = _parse(name)
        if network not in subsets or other not in report.arms or arm not in report.arms:
            continue
        a, b = evaluated(report.arms[other]), evaluated(report.arms[arm])
        if by_seed := {seed: b[seed] - a[seed] for seed in a if seed in b}:
            found.append(Gap(network, images, report, report.arms[other], report.arms[arm], by_seed))
    order = list(dict.fromkeys(gap.network for gap in found))
    return sorted(found, key=lambda gap: (order.index(gap.network), gap.images or inf))


def gap_rows(reports: Mapping[str, Report]) -> list[list[str]]:
    """Return the table of transfer's gain by size in words, its head first; empty if there is none."""
    found = gaps(reports)
    rows = (
        [["network", "images", "random, test macro AUC", "transfer, test macro AUC", "gain, by seed"]] if found else []
    )
    for gap in found:
        aucs = [in_words(gap.other.test_spread), in_words(gap.arm.test_spread)]
        gain = spread(list(gap.by_seed.values()))
        listed = ", ".join(f"{value:+.3f}" for value in gap.by_seed.values())
        rows.append([printable(gap.network, 40), _size(gap), *aucs, f"{gain.mean:+.3f} ({listed})"])
    return rows


def _parse(name: str) -> tuple[str, int | None]:
    found = re.fullmatch(r"(.+?)@(\d{1,18})(?:@(\d{1,18}))?", name, re.ASCII | re.DOTALL)
    if found is None:
        return name, None
    return found[1] + (f", {found[3]} epochs" if found[3] else ""), int(found[2])


def _across(lines: Sequence[Line], reports: Mapping[str, Report]) -> tuple[list[Claim], list[NotJudged]]:
    """Judge claims about several networks, or sizes of training sets, and say what those want that cannot be."""
    found: list[Claim | NotJudged] = []
    for line in lines:
        if line.kind == "larger-gain":
            found += _larger_gain(line, reports)
        elif line.kind == "moves-less":
            found += _moves_less(line, reports)
        elif line.kind == "shrinking-gap":
            found += _shrinking_gap(line, reports)
    return [x for x in found if isinstance(x, Claim)], [x for x in found if isinstance(x, NotJudged)]


def _pairs(line: Line, reports: Mapping[str, Report]) -> Iterator[tuple[str, str]]:
    """Pair the first network with each other that was trained on as many images and is not left out."""
    deep, *others = reports
    (network, images), left_out = _parse(deep), line.options.get("except", "").split(",")
    for other in others:
        other_network, other_images = _parse(other)
        if other_network not in (network, *left_out) and images == other_images:
            yield deep, other


def _larger_gain(line: Line, reports: Mapping[str, Report]) -> list[Claim | NotJudged]:
    """Compare the first network's gain in steps with that of each other."""
    a, b = line.names
    gains = {
        name: {seed: -x for seed, x in log_ratios(report.arms[a], report.arms[b]).items()}
        for name, report in reports.items()
        if a in report.arms and b in report.arms
    }
    claims: list[Claim | NotJudged] = []
    for deep, other in _pairs(line, reports):
        text = f"{line.sentence} ({printable(deep)}, {printable(other)})"
        if missing := [f"{x} of {name}" for name in (deep, other) for x in line.names if x not in reports[name].arms]:
            claims.append(NotJudged(text, missing))
            continue
        excess = {seed: gains[deep][seed] - gains[other][seed] for seed in gains[deep] if seed in gains[other]}
        if not excess:
            claims.append(NotJudged(text, [f"a seed of both {a} and {b} in {deep} and {other}"]))
            continue
        words = "; ".join(
            f"{printable(name)} {', '.join(f'{exp(x):.2g}×' for x in gains[name].values())}" for name in (deep, other)
        )
        censored = any(None in reports[name].arms[arm].steps for name in (deep, other) for arm in (a, b))
        bound = ", as if who never passed had at the next step" if censored else ""
        evidence = f"Steps of {b} over steps of {a}, by seed: {words}{bound}."
        means = unit_means(excess, _joined(reports[deep], reports[other]))
        test = sign_flip(means)
        size = f"{effect(means, lambda x: f'{exp(x):.2f}', named=False)} × the gain"
        claims.append(Claim(text, evidence, verdict(test), test.p, effect=size))
    return claims or [NotJudged(line.sentence, ["another network"])]


def _moves_less(line: Line, reports: Mapping[str, Report]) -> list[Claim | NotJudged]:
    """Compare how alike the first network stays to its own beginning with how alike each other does."""
    arm = line.names[0]
    compared = {name: report.comparisons.get(f"{arm}{TO_INIT}") for name, report in reports.items()}
    alike = {name: _mean_normalised(found) for name, found in compared.items() if found}
    claims: list[Claim | NotJudged] = []
    for deep, other in _pairs(line, reports):
        text = f"{line.sentence} ({printable(deep)}, {printable(other)})"
        both = [seed for seed in alike.get(deep, {}) if seed in alike.get(other, {})]
        if not both:
            missing = [f"{arm}{TO_INIT} of {name}" for name in (deep, other) if not compared[name]]
            lacking = f"a seed with floors and ceilings of {arm}{TO_INIT} in both {deep} and {other}"
            claims.append(NotJudged(text, missing or [lacking]))
            continue
        words = "; ".join(
            f"{printable(name)} {', '.join(f'{alike[name][seed]:.2f}' for seed in both)}" for name in (deep, other)
        )
        excess = unit_means({x: alike[deep][x] - alike[other][x] for x in both}, _joined(reports[deep], reports[other]))
        evidence = (
            f"Similarity of {arm} to its own initialisation between floor and ceiling, mean of the layers, by seed: {words}; "
            f"difference {signed(excess, named=True)}."
        )
        test = sign_flip(excess)
        size = signed(excess)
        claims.append(Claim(text, evidence, verdict(test), test.p, effect=size))
    return claims or [NotJudged(line.sentence, ["another network"])]


def _mean_normalised(comparison: Comparison) -> dict[str, float]:
    """Average the normalised similarity over those layers where every seed has it, for each seed; {} if there is none."""
    layers = comparison.means("normalised")
    found = {
        seed: [x.normalised for x in scores if x.layer in layers and x.normalised is not None]
        for seed, scores in comparison.by_seed.items()
    }
    return {seed: fmean(values) for seed, values in found.items() if values}


def _shrinking_gap(line: Line, reports: Mapping[str, Report]) -> list[Claim | NotJudged]:
    """Judge for each network whether the gain in test AUC falls with the size of the training set, by each seed's slope."""
    a, b = line.names
    claims: list[Claim | NotJudged] = []
    found = gaps(reports, a, b)
    for network in dict.fromkeys(gap.network for gap in found):
        text = f"{line.sentence} ({printable(network)})"
        sizes = [gap for gap in found if gap.network == network]
        seeds = [seed for seed in sizes[0].by_seed if all(seed in gap.by_seed for gap in sizes)]
        if len(sizes) < 2 or not seeds:
            lacking = "another size" if len(sizes) < 2 else "a seed of all sizes"
            claims.append(NotJudged(text, [f"{lacking} of {network} with {a} and {b}"]))
            continue
        slopes = {seed: _slope([gap.by_seed[seed] for gap in sizes]) for seed in seeds}
        means = ", ".join(f"{spread(list(gap.by_seed.values())).mean:+.3f} at {_size(gap)}" for gap in sizes)
        listed = ", ".join(f"{slope:+.3f}" for slope in slopes.values())
        evidence = f"Mean gain: {means}. Slope of the gain from one size to the next larger, by seed: {listed}."
        units = _joined(*(gap.report for gap in sizes))
        means_of_units = unit_means(slopes, units)
        test = sign_flip([-slope for slope in means_of_units])
        size = signed(means_of_units)
        claims.append(Claim(text, evidence, verdict(test), test.p, effect=size))
    if claims:
        return claims
    missing = [name for name in line.names if not any(name in report.arms for report in reports.values())]
    return [NotJudged(line.sentence, missing or ["two sizes of a training set, NET@N"])]


def _joined(*reports: Report) -> dict[str, str]:
    """Join seeds that share a source network in one of the reports."""
    units: dict[str, str] = {}
    for report in reports:
        for seed, unit in report.basis.units.items():
            mine, theirs = units.setdefault(seed, seed), units.setdefault(unit, unit)
            units = {name: theirs if of == mine else of for name, of in units.items()}
    return units


def _slope(values: Sequence[float]) -> float:
    """Return the slope of the least squares line through values at 0, 1, …"""
    from statistics import linear_regression

    return linear_regression(range(len(values)), values).slope


def _size(gap: Gap) -> str:
    return "all" if gap.images is None else f"{gap.images:,}"
