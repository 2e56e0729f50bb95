"""Claims about an experiment: what runs and comparisons do and do not show of each, and which cannot be judged by them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import log
from typing import NamedTuple

from wsurgery.errors import UsageError, printable
from wsurgery.experiments.cca import AT_INIT, TO_INIT, Comparison, differences
from wsurgery.experiments.claim_lines import FACTOR, MARGIN, Line
from wsurgery.experiments.runs import Run, shared_labels
from wsurgery.experiments.summary import NEITHER, Arm, late, log_ratios, signed, times
from wsurgery.experiments.thresholds import Thresholds, resolve
from wsurgery.statistics.pairs import equivalence, unit_means
from wsurgery.statistics.permutation import (
    ALPHA,
    NOT_SHOWN,
    SHOWN,
    Significance,
    correlation,
    holm,
    in_all,
    sign_flip,
    verdict,
)

_MOST_WANTS = 8
_TOP = re.compile(r"top(\d{1,9})", re.ASCII)
_ONE_PAIR = "suggestive only (1 pair of each kind)"
NOT_CORRECTED = "not once p is corrected"


class Claim(NamedTuple):
    """A claim, the numbers found here, and the verdict on it.

    Attributes:
        claim: one sentence.
        evidence: one or more: the effect, with its interval where there is one.
        verdict: in words.
        p: of the test behind the verdict; None where there was none.
        holm: p, corrected for all claims of the page that were tested.
        effect: the estimate alone, as short as a cell of a table: `0.48 (0.40 to 0.61) × the steps`, `+0.012 (…)`.
    """

    claim: str
    evidence: str
    verdict: str
    p: float | None = None
    holm: float | None = None
    effect: str = ""


class NotJudged(NamedTuple):
    """A claim that nothing here can judge.

    Attributes:
        claim: one sentence.
        wants: what it would take and is not here, in words: names of arms or comparisons, a label, seeds.
    """

    claim: str
    wants: list[str]


class Basis(NamedTuple):
    """What claims on an experiment are judged by.

    Attributes:
        thresholds: the validation AUCs that steps are counted to; those of the arms are at the tested one.
        units: seed → its source network, as `source_units` returns them.
        asked: the thresholds as `read_thresholds` returns them.
        plateau: the runs that shares of `asked` are of.
    """

    thresholds: Thresholds
    units: Mapping[str, str]
    asked: Sequence[tuple[float, bool]] = ()
    plateau: Sequence[Run] = ()

    def of(self, label: str) -> "Basis":
        """Return the basis of a claim on one label: shares are of where that label's own AUC ends."""
        ends = [run.of(label) for run in self.plateau]
        return self._replace(thresholds=resolve(self.asked, ends)) if ends else self

    def independent(self, by_seed: Mapping[str, float]) -> list[float]:
        """Return what is independent: the values of the seeds, or the means of those that share a source network."""
        return unit_means(by_seed, self.units)


def judge(
    lines: Sequence[Line], arms: Mapping[str, Arm], comparisons: Mapping[str, Comparison], basis: Basis
) -> tuple[list[Claim], list[NotJudged]]:
    """Judge those claims on one experiment that it has the runs and comparisons for, and say what the others want.

    Args:
        lines: the claims; those across networks are passed over.
        arms: what `summarise` returned.
        comparisons: what `find_comparisons` did.
        basis: what they are judged by.
    """
    claims: list[Claim] = []
    others: list[NotJudged] = []
    known: Mapping[str, Arm | Comparison]
    for line in lines:
        if line.kind in _OF_ARMS:
            names, known, judged = line.names, arms, _OF_ARMS
        elif line.kind in _OF_COMPARISONS:
            names, known, judged = _names_of(line), comparisons, _OF_COMPARISONS
        else:
            continue
        if missing := [name for name in names if name not in known]:
            others.append(NotJudged(line.sentence, missing))
            continue
        found = judged[line.kind](line, *(known[name] for name in names), basis)
        if isinstance(found, Claim):
            claims.append(found)
        else:
            others.append(found)
    return claims, others


def not_judged_in_words(found: Sequence[NotJudged]) -> str:
    """Say in a line how many claims were not judged, and what they want; empty where all were."""
    if not found:
        return ""
    wants = [printable(want, 80) for want in dict.fromkeys(want for each in found for want in each.wants)]
    more = f" and {len(wants) - _MOST_WANTS} more" if len(wants) > _MOST_WANTS else ""
    claims = "1 claim" if len(found) == 1 else f"{len(found)} claims"
    return f"Not judged here, for want of {', '.join(wants[:_MOST_WANTS])}{more}: {claims}."


def require_layers(lines: Sequence[Line], pages: Sequence[Mapping[str, Comparison]]) -> None:
    """Check that each layer that a claim names is one of its comparisons on one of the pages that have them.

    Raises:
        UsageError: it is not; the message says which there are.
    """
    for line in lines:
        named = line.options.get("layers", "all")
        if line.kind != "more-alike" or named == "all":
            continue
        shared = [_common(*(page[x] for x in line.names)) for page in pages if all(x in page for x in line.names)]
        known = list(dict.fromkeys(layer for layers in shared for layer in layers))
        top = _TOP.fullmatch(named)
        lacking = [f"layer {layer}" for layer in named.split(",") if layer not in known]
        if top:
            lacking = [] if int(top[1]) <= max(map(len, shared), default=0) else [f"{top[1]} layers"]
        if shared and lacking:
            raise UsageError(
                f"{line.where}: {printable(line.names[0])} and {printable(line.names[1])} have no {printable(lacking[0], 40)}; "
                f"there are {printable(', '.join(known), 200)}"
            )


def corrected(claims: Sequence[Claim]) -> list[Claim]:
    """Put the corrected p beside the own one of each claim, and into its verdict where there are several."""
    tested = [claim.p for claim in claims if claim.p is not None]
    adjusted = iter(holm(tested))
    lost = f"; {NOT_CORRECTED} for the {len(tested)} claims of this page"
    found = []
    for claim in claims:
        if claim.p is not None:
            p = next(adjusted)
            words = claim.verdict
            if len(tested) > 1:
                words = re.sub(r"\(p = [^,()]*", rf"\g<0>, Holm {p:.2g}", words)
                words += lost if words.startswith(SHOWN) and p >= ALPHA else ""
            claim = claim._replace(holm=p, verdict=words)
        found.append(claim)
    return found


def evaluated(arm: Arm) -> dict[str, float]:
    """Return the test AUC of each seed that was evaluated."""
    return {run.seed: auc for run, auc in zip(arm.runs, arm.test_auc, strict=True) if auc is not None}


def _faster(line: Line, a: Arm, b: Arm, basis: Basis) -> Claim | NotJudged:
    of = ""
    if said := line.options.get("label"):
        labels = {x.replace(" ", "_"): x for x in shared_labels([*a.runs, *b.runs, *basis.plateau])}
        if said not in labels:
            return NotJudged(line.sentence, [f"the label {said}"])
        label = labels[said]
        of, basis = f" for {printable(label, 40)}", basis.of(label)
        a, b = (replace(arm, runs=[run.of(label) for run in arm.runs]).at(basis.thresholds.tested) for arm in (a, b))
    ratios = log_ratios(a, b)
    if not ratios:
        return _no_pair(line, a, b)
    test = sign_flip([-x for x in basis.independent(ratios)])
    return Claim(line.sentence, _speed(a, b, basis, of), verdict(test), test.p, effect=_ratio(a, b, basis))


def _as_fast(line: Line, a: Arm, b: Arm, basis: Basis) -> Claim | NotJudged:
    ratios = log_ratios(a, b)
    if not ratios:
        return _no_pair(line, a, b)
    evidence, factor = _speed(a, b, basis), line.margin(FACTOR)
    if any(map(any, late(a, b))):
        passed = "never passed" if None in (*a.steps, *b.steps) else "passed when the other was no longer watched"
        words = f"{NOT_SHOWN}: a run {passed}, so its speed is not known"
        return Claim(line.sentence, evidence, words, effect=_ratio(a, b, basis))
    test = equivalence(basis.independent(ratios), margin=log(factor))
    words = _alike(test, f"a factor of {factor:g}")
    return Claim(line.sentence, evidence, words, test.p, effect=_ratio(a, b, basis))


def _no_pair(line: Line, a: Arm | Comparison, b: Arm | Comparison, more: str = "") -> NotJudged:
    return NotJudged(line.sentence, [f"a seed of both {a.name} and {b.name}{more}"])


def _ratio(a: Arm, b: Arm, basis: Basis) -> str:
    found = times(a, b, basis.units)
    return found if found == NEITHER else f"{found} × the steps"


def _speed(a: Arm, b: Arm, basis: Basis, of: str = "") -> str:
    """Say by how much A is faster: steps at the threshold, the ratio at the others, and the areas under both curves."""
    thresholds = basis.thresholds
    bound = ", as if who never passed had at the next step" if any(map(any, late(a, b))) else ""
    ratio = times(a, b, basis.units, named=True)
    ratio = ratio if ratio == NEITHER else f"{ratio} times as many{bound}"
    beside = ", ".join(f"{times(a.at(auc), b.at(auc), basis.units)} at {auc:g}" for auc in thresholds.others)
    others = {run.seed: run for run in b.runs}
    pairs = [(run, others[run.seed]) for run in a.runs if run.seed in others]
    lasts = [min(x.last_step, y.last_step) for x, y in pairs]
    areas = {x.seed: x.area(last) - y.area(last) for (x, y), last in zip(pairs, lasts, strict=True)}
    cut = any(x.last_step != y.last_step for x, y in pairs)
    along = f"Mean AUC along training{', as far as both of a seed went' if cut else ''}"
    return (
        f"Steps to a validation AUC of {thresholds.tested:g}{of}, by seed: {a.steps_in_words()} with {a.name}, "
        f"{b.steps_in_words()} with {b.name}; {ratio}{f'; {beside}' if beside else ''}. "
        f"{along}: {signed(basis.independent(areas), named=True)}."
    )


def _higher_auc(line: Line, a: Arm, b: Arm, basis: Basis) -> Claim | NotJudged:
    gains = _gains(a, b)
    if not gains:
        return _no_pair(line, a, b, " that was evaluated")
    test = sign_flip(basis.independent(gains))
    return Claim(
        line.sentence, _accuracy(a, b, gains, basis), verdict(test), test.p, effect=signed(basis.independent(gains))
    )


def _as_high(line: Line, a: Arm, b: Arm, basis: Basis) -> Claim | NotJudged:
    gains = _gains(a, b)
    if not gains:
        return _no_pair(line, a, b, " that was evaluated")
    margin = line.margin(MARGIN)
    test = equivalence(basis.independent(gains), margin=margin)
    words = _alike(test, f"{margin:g} of AUC")
    return Claim(line.sentence, _accuracy(a, b, gains, basis), words, test.p, effect=signed(basis.independent(gains)))


def _gains(a: Arm, b: Arm) -> dict[str, float]:
    of_a, of_b = evaluated(a), evaluated(b)
    return {seed: of_a[seed] - of_b[seed] for seed in of_a if seed in of_b}


def _accuracy(a: Arm, b: Arm, gains: Mapping[str, float], basis: Basis) -> str:
    of_a, of_b = (", ".join(f"{evaluated(arm)[seed]:.3f}" for seed in gains) for arm in (a, b))
    difference = signed(basis.independent(gains), named=True)
    return f"Test AUC, by seed: {of_a} with {a.name}, {of_b} with {b.name}; difference {difference}."


def _alike(test: Significance, margin: str) -> str:
    if test.least >= ALPHA:
        return f"too few seeds to show it (smallest possible p = {test.least:.2g})"
    return f"{SHOWN if test.p < ALPHA else NOT_SHOWN}, within {margin} (p = {test.p:.2g}, {test.seeds})"


def _more_alike(line: Line, a: Comparison, b: Comparison, basis: Basis) -> Claim | NotJudged:
    """Judge that `a` exceeds `b` in every layer of the choice."""
    chosen, there = line.options.get("layers", "all"), _common(a, b)
    named = there if chosen == "all" else chosen.split(",")
    if top := _TOP.fullmatch(chosen):
        named = there[-int(top[1]) :]
    known = {layer.layer: layer for layer in differences(a, b)}
    layers = [known[name] for name in named if name in known]
    if absent := [name for name in named if name not in there]:
        return NotJudged(line.sentence, [f"the layer {name}" for name in absent])
    if not layers:
        return NotJudged(line.sentence, [f"a layer with values of {a.name} and {b.name}"])
    listed = ", ".join(f"{x.layer} {x.difference:+.3f}" for x in layers)
    evidence = f"{a.name} less {b.name}, by layer: {listed}."
    if lacking := [name for name in named if name not in known]:
        return Claim(line.sentence, evidence, f"{NOT_SHOWN}: {_lacks(lacking[0], a, b)}")
    if len(a.by_seed) == len(b.by_seed) == 1:
        everywhere = all(x.difference > 2 * (x.se or 0) for x in layers)
        rule = " To count, each must exceed twice its standard error."
        return Claim(line.sentence, evidence + rule, _ONE_PAIR if everywhere else NOT_SHOWN)
    pairs = [_by_seed(a, b, x.layer) for x in layers]
    if not all(pairs):
        return Claim(line.sentence, evidence, f"{NOT_SHOWN}: no seed has both")
    tests = [sign_flip(basis.independent(found)) for found in pairs]
    test = in_all(tests)
    values = ", ".join(f"{x.layer} {own.p:.2g}" for x, own in zip(layers, tests, strict=True))
    evidence += f" Each must be positive; p: {values}, of which the largest counts."
    least = min(layers, key=lambda x: x.difference)
    return Claim(line.sentence, evidence, verdict(test), test.p, effect=f"least {least.difference:+.3f}, {least.layer}")


def _common(a: Comparison, b: Comparison) -> list[str]:
    return [layer for layer in a.layers if layer in b.layers]


def _lacks(layer: str, a: Comparison, b: Comparison) -> str:
    there = printable(", ".join(_common(a, b)), 200)
    return f"{printable(layer, 40)} has no value in all networks; the layers are {there}"


def _by_seed(a: Comparison, b: Comparison, layer: str) -> dict[str, float]:
    x, y = a.values(layer), b.values(layer)
    return {seed: x[seed] - y[seed] for seed in x if seed in y}


def _most_alike_below(line: Line, a: Comparison, b: Comparison, basis: Basis) -> Claim | NotJudged:
    """Judge that `a` exceeds `b` by more in the lowest layer than in the highest."""
    layers, all_layers = differences(a, b), _common(a, b)
    if len(layers) < 2:
        return NotJudged(line.sentence, [f"two layers with values of {a.name} and {b.name}"])
    if lacking := {all_layers[0], all_layers[-1]} - {layer.layer for layer in layers}:
        return Claim(line.sentence, "", f"{NOT_SHOWN}: {_lacks(min(lacking), a, b)}")
    if len(a.by_seed) == len(b.by_seed) == 1:
        largest = max(layers, key=lambda x: x.difference)
        holds = largest is layers[0] and largest.difference > 2 * (largest.se or 0)
        evidence = f"It is largest in {largest.layer}; the lowest is {layers[0].layer}."
        return Claim(line.sentence, evidence, _ONE_PAIR if holds else NOT_SHOWN)
    low, top = layers[0].layer, layers[-1].layer
    values = [x.values(layer) for x in (a, b) for layer in (low, top)]
    both = [seed for seed in values[0] if all(seed in each for each in values)]
    if not both:
        return _no_pair(line, a, b)
    excess = {s: values[0][s] - values[2][s] - (values[1][s] - values[3][s]) for s in both}
    evidence = f"{low} less {top}, by seed: {', '.join(f'{x:+.3f}' for x in excess.values())}."
    test = sign_flip(basis.independent(excess))
    return Claim(line.sentence, evidence, verdict(test), test.p, effect=signed(basis.independent(excess)))


def _moves_least_below(line: Line, comparison: Comparison, basis: Basis) -> Claim | NotJudged:
    """Compare the lowest layer with the most alike of those above it, in each seed."""
    results = comparison.results
    fields = ("normalised", "value")
    field = next((f for f in fields if all(getattr(x, f) is not None for scores in results for x in scores)), None)
    if field is None or any(len(scores) < 2 for scores in results):
        return NotJudged(line.sentence, [f"two layers, and values of all, in {comparison.name}"])
    lowest = [getattr(scores[0], field) for scores in results]
    above = [max(getattr(x, field) for x in scores[1:]) for scores in results]
    kind = "Similarity between floor and ceiling" if field == "normalised" else "Similarity"
    evidence = (
        f"{kind} of {comparison.name.removesuffix(TO_INIT)}'s {results[0][0].layer} to its own initialisation, by seed: "
        f"{_list(lowest)}; the most alike of the layers above it: {_list(above)}."
    )
    excess = {seed: x - y for seed, x, y in zip(comparison.by_seed, lowest, above, strict=True)}
    test = sign_flip(basis.independent(excess))
    return Claim(line.sentence, evidence, verdict(test), test.p, effect=signed(basis.independent(excess)))


def _stays_alike(line: Line, before: Comparison, after: Comparison, basis: Basis) -> Claim | NotJudged:
    """Judge that pairs which are more alike than others when training begins are so when it ends, in the lowest layer."""
    layer = after.layers[0]
    x, y = before.values(layer), after.values(layer)
    both = [seed for seed in x if seed in y]
    begun, ended = (basis.independent({seed: values[seed] for seed in both}) if both else [] for values in (x, y))
    if len(begun) < 3:
        what = "seeds" if len(both) < 3 else "source networks"
        return NotJudged(line.sentence, [f"three {what} of {after.name} and {before.name}"])
    if 1 in (len(set(begun)), len(set(ended))):
        return NotJudged(line.sentence, [f"{after.name} that differ in {layer}"])
    rho, test = correlation(begun, ended)
    pairs = ", ".join(f"{x[seed]:.3f} → {y[seed]:.3f}" for seed in both)
    evidence = f"{after.name}, {layer}, by seed: {pairs}; Spearman's ρ {rho:+.2f}."
    return Claim(line.sentence, evidence, verdict(test), test.p, effect=f"ρ {rho:+.2f}")


def _names_of(line: Line) -> tuple[str, ...]:
    """Name the comparisons that a claim is about."""
    if line.kind == "moves-least-below":
        return (f"{line.names[0]}{TO_INIT}",)
    if line.kind == "stays-alike":
        return (f"{line.names[0]}{AT_INIT}", line.names[0])
    return line.names


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


_OF_ARMS: dict[str, Callable[..., Claim | NotJudged]] = {
    "faster": _faster, "as-fast": _as_fast, "higher-auc": _higher_auc, "as-high": _as_high,
}  # fmt: skip
_OF_COMPARISONS: dict[str, Callable[..., Claim | NotJudged]] = {
    "more-alike": _more_alike, "most-alike-below": _most_alike_below,
    "moves-least-below": _moves_least_below, "stays-alike": _stays_alike,
}  # fmt: skip
