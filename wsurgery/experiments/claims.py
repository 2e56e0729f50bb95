"""Claims about an experiment: a file of them, one a line, and what runs and comparisons do and do not show of each.

A line is `KIND NAME NAME [KEY=VALUE] : SENTENCE`, `#` begins a comment. Kinds and their tests are here, claims are a recipe's.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import log
from pathlib import Path
from typing import NamedTuple

from wsurgery.errors import UsageError, printable
from wsurgery.experiments.cca import AT_INIT, TO_INIT, Comparison, differences
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
from wsurgery.untrusted import read_regular

_MAX_FILE = 1 << 20  # bytes
_ONE_PAIR = "suggestive only (1 pair of each kind)"
NOT_CORRECTED = "not once p is corrected"
FACTOR, MARGIN = 1.25, 0.01  # of steps, and of AUC: within which two arms are alike, where a line says no other margin


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


class Line(NamedTuple):
    """A line of a file of claims.

    Attributes:
        kind: one of `KINDS`.
        names: of arms or comparisons.
        options: `margin`, `label`, `layers` or `except`.
        sentence: the claim in words.
        where: file and line, for a message.
    """

    kind: str
    names: tuple[str, ...]
    options: Mapping[str, str]
    sentence: str
    where: str

    def margin(self, default: float) -> float:
        """Return the margin that it says, or the default."""
        return float(self.options.get("margin", default))


class Kind(NamedTuple):
    """A kind of claim.

    Attributes:
        takes: what its names are, in words, for a message.
        number: how many they are.
        options: the keys that it has.
        across: it is about several networks.
    """

    takes: str
    number: int
    options: tuple[str, ...] = ()
    across: bool = False


KINDS = {
    "faster": Kind("ARM than ARM", 2, ("label",)),
    "as-fast": Kind("ARM ARM", 2, ("margin",)),
    "higher-auc": Kind("ARM than ARM", 2),
    "as-high": Kind("ARM ARM", 2, ("margin",)),
    "more-alike": Kind("COMPARISON than COMPARISON", 2, ("layers",)),
    "most-alike-below": Kind("COMPARISON than COMPARISON", 2),
    "moves-least-below": Kind("ARM", 1),
    "stays-alike": Kind("COMPARISON", 1),
    "larger-gain": Kind("ARM over ARM", 2, ("except",), across=True),
    "shrinking-gap": Kind("ARM over ARM", 2, across=True),
    "moves-less": Kind("ARM", 1, ("except",), across=True),
}


def read_claims(path: Path) -> list[Line]:
    """Read a file of claims.

    Raises:
        UsageError: a line is none; the message says which, and what its kind takes.
        OSError: the file cannot be read.
    """
    try:
        text = read_regular(path, _MAX_FILE).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{printable(str(path))} is not UTF-8 text") from None
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            lines.append(_read_line(line, f"{printable(str(path))}, line {number}"))
    return lines


def _read_line(line: str, where: str) -> Line:
    words, colon, sentence = line.partition(" : ")
    kind, *rest = words.split() or [""]
    if kind not in KINDS:
        raise UsageError(f"{where}: {printable(kind, 40)} is no kind of claim; there are {', '.join(KINDS)}")
    names = tuple(word for word in rest if "=" not in word)
    options = dict(word.split("=", 1) for word in rest if "=" in word)
    known = KINDS[kind]
    if not colon or not sentence.strip() or len(names) != known.number or not set(options) <= set(known.options):
        keys = "".join(f" [{key}=VALUE]" for key in known.options)
        raise UsageError(
            f"{where}: a claim of this kind is `{kind} {known.takes.replace(' than', '').replace(' over', '')}{keys} : SENTENCE`"
        )
    found = Line(kind, names, options, sentence.strip(), where)
    try:
        sound = found.margin(MARGIN) > (1 if kind == "as-fast" and "margin" in options else 0)
    except ValueError:
        sound = False
    if not sound:
        raise UsageError(
            f"{where}: margin={printable(options['margin'], 40)}: give a factor above 1 of steps, or an AUC above 0"
        )
    return found


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
) -> list[Claim]:
    """Judge those claims on one experiment that it has the runs and comparisons for.

    Args:
        lines: the claims.
        arms: what `summarise` returned.
        comparisons: what `find_comparisons` did.
        basis: what they are judged by.
    """
    found: list[Claim | None] = []
    for line in lines:
        if line.kind in _OF_ARMS and all(name in arms for name in line.names):
            found.append(_OF_ARMS[line.kind](line, *(arms[name] for name in line.names), basis))
        elif line.kind in _OF_COMPARISONS:
            names = _names_of(line)
            if all(name in comparisons for name in names):
                found.append(_OF_COMPARISONS[line.kind](line, *(comparisons[name] for name in names), basis))
    return [claim for claim in found if claim]


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


def _faster(line: Line, a: Arm, b: Arm, basis: Basis) -> Claim | None:
    of = ""
    if said := line.options.get("label"):
        labels = {x.replace(" ", "_"): x for x in shared_labels([*a.runs, *b.runs, *basis.plateau])}
        if said not in labels:
            return None
        label = labels[said]
        of, basis = f" for {printable(label, 40)}", basis.of(label)
        a, b = (replace(arm, runs=[run.of(label) for run in arm.runs]).at(basis.thresholds.tested) for arm in (a, b))
    ratios = log_ratios(a, b)
    if not ratios:
        return None
    test = sign_flip([-x for x in basis.independent(ratios)])
    return Claim(line.sentence, _speed(a, b, basis, of), verdict(test), test.p, effect=_ratio(a, b, basis))


def _as_fast(line: Line, a: Arm, b: Arm, basis: Basis) -> Claim | None:
    ratios = log_ratios(a, b)
    if not ratios:
        return None
    evidence, factor = _speed(a, b, basis), line.margin(FACTOR)
    if any(map(any, late(a, b))):
        passed = "never passed" if None in (*a.steps, *b.steps) else "passed when the other was no longer watched"
        words = f"{NOT_SHOWN}: a run {passed}, so its speed is not known"
        return Claim(line.sentence, evidence, words, effect=_ratio(a, b, basis))
    test = equivalence(basis.independent(ratios), margin=log(factor))
    words = _alike(test, f"a factor of {factor:g}")
    return Claim(line.sentence, evidence, words, test.p, effect=_ratio(a, b, basis))


def _ratio(a: Arm, b: Arm, basis: Basis) -> str:
    found = times(a, b, basis.units)
    return found if found == NEITHER else f"{found} × the steps"


def _speed(a: Arm, b: Arm, basis: Basis, of: str = "") -> str:
    """Say by how much A is faster: steps at the threshold, the ratio at the others, and the area under the curve."""
    thresholds = basis.thresholds
    bound = ", as if who never passed had at the next step" if any(map(any, late(a, b))) else ""
    ratio = times(a, b, basis.units, named=True)
    ratio = ratio if ratio == NEITHER else f"{ratio} times as many{bound}"
    beside = ", ".join(f"{times(a.at(auc), b.at(auc), basis.units)} at {auc:g}" for auc in thresholds.others)
    seeds = {run.seed: run.area for run in b.runs}
    areas = {run.seed: run.area - seeds[run.seed] for run in a.runs if run.seed in seeds}
    return (
        f"Steps to a validation AUC of {thresholds.tested:g}{of}, by seed: {a.steps_in_words()} with {a.name}, "
        f"{b.steps_in_words()} with {b.name}; {ratio}{f'; {beside}' if beside else ''}. "
        f"Mean AUC along training: {signed(basis.independent(areas), named=True)}."
    )


def _higher_auc(line: Line, a: Arm, b: Arm, basis: Basis) -> Claim | None:
    gains = _gains(a, b)
    if not gains:
        return None
    test = sign_flip(basis.independent(gains))
    return Claim(
        line.sentence, _accuracy(a, b, gains, basis), verdict(test), test.p, effect=signed(basis.independent(gains))
    )


def _as_high(line: Line, a: Arm, b: Arm, basis: Basis) -> Claim | None:
    gains = _gains(a, b)
    if not gains:
        return None
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


def _more_alike(line: Line, a: Comparison, b: Comparison, basis: Basis) -> Claim | None:
    """Judge that `a` exceeds `b` in every layer of the choice."""
    chosen = line.options.get("layers", "all")
    named = _common(a, b)
    if chosen.startswith("top") and chosen[3:].isdecimal():
        named = named[-int(chosen[3:]) :]
    elif chosen != "all":
        named = chosen.split(",")
    known = {layer.layer: layer for layer in differences(a, b)}
    layers = [known[name] for name in named if name in known]
    if not layers:
        return None
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


def _most_alike_below(line: Line, a: Comparison, b: Comparison, basis: Basis) -> Claim | None:
    """Judge that `a` exceeds `b` by more in the lowest layer than in the highest."""
    layers, all_layers = differences(a, b), _common(a, b)
    if len(layers) < 2:
        return None
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
        return None  # without pairs, no seed has a difference of its own
    excess = {s: values[0][s] - values[2][s] - (values[1][s] - values[3][s]) for s in both}
    evidence = f"{low} less {top}, by seed: {', '.join(f'{x:+.3f}' for x in excess.values())}."
    test = sign_flip(basis.independent(excess))
    return Claim(line.sentence, evidence, verdict(test), test.p, effect=signed(basis.independent(excess)))


def _moves_least_below(line: Line, comparison: Comparison, basis: Basis) -> Claim | None:
    """Compare the lowest layer with the most alike of those above it, in each seed."""
    results = comparison.results
    fields = ("normalised", "value")
    field = next((f for f in fields if all(getattr(x, f) is not None for scores in results for x in scores)), None)
    if field is None or any(len(scores) < 2 for scores in results):
        return None
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


def _stays_alike(line: Line, before: Comparison, after: Comparison, basis: Basis) -> Claim | None:
    """Judge that pairs which are more alike than others when training begins are so when it ends, in the lowest layer."""
    layer = after.layers[0]
    x, y = before.values(layer), after.values(layer)
    both = [seed for seed in x if seed in y]
    if len(both) < 3 or any(len({values[seed] for seed in both}) == 1 for values in (x, y)):
        return None
    rho, test = correlation(*(basis.independent({seed: values[seed] for seed in both}) for values in (x, y)))
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


_OF_ARMS: dict[str, Callable[..., Claim | None]] = {
    "faster": _faster, "as-fast": _as_fast, "higher-auc": _higher_auc, "as-high": _as_high,
}  # fmt: skip
_OF_COMPARISONS: dict[str, Callable[..., Claim | None]] = {
    "more-alike": _more_alike, "most-alike-below": _most_alike_below,
    "moves-least-below": _moves_least_below, "stays-alike": _stays_alike,
}  # fmt: skip
