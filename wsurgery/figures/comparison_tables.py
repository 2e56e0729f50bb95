"""A comparison of two runs or arms as tables for a terminal."""

from collections.abc import Sequence
from math import exp

from rich.table import Table
from rich.text import Text

from wsurgery.errors import printable
from wsurgery.experiments.comparison import AucRow, Aucs, Steps
from wsurgery.statistics.bootstrap import Sample
from wsurgery.statistics.delong import WITHOUT_INTERVAL
from wsurgery.statistics.pairs import PairedTest

_NONE = "–"


def steps_table(steps: Steps) -> Table:
    """Show the steps of each run to the threshold, the median, the difference, and its test."""
    table = _table(f"steps to a validation AUC of {steps.threshold:g}", ["", "seed by seed", "median"])
    for name, runs, middle in zip("AB", (steps.runs_a, steps.runs_b), steps.medians, strict=True):
        reached = [(run.steps_to(steps.threshold), run.last_start) for run in runs]
        table.add_row(
            name, ", ".join(f"> {last}" if at is None else f"{at}" for at, last in reached), middle.in_words()
        )
    differences = ", ".join(pair.in_words() for pair in steps.differences)
    table.add_row("A − B", differences or _NONE, steps.difference.in_words())
    kind = "exact" if steps.exact else "approximate"
    if steps.pairs:
        (a, b, undecided), tested, n = steps.sooner, steps.pairs, len(steps.differences)
        interval = f" ({tested.level:.0%}: {exp(tested.ci[0]):.2f} to {exp(tested.ci[1]):.2f})" if tested.ci else ""
        bound = ", a run that never got there while both were watched taken for just past the end" if steps.cut else ""
        table.caption = (
            f"pairs of one seed: n = {n}{_of_sources(tested.n, n)}; A sooner in {a}, B in {b}, undecided {undecided}; A takes "
            f"{exp(tested.mean):.2f} times the steps of B{interval}{bound}\n"
            f"sign flips of log steps, {kind}, one-sided: p = {_p(tested.p_less)} that A is sooner, {_p(tested.p_greater)} "
            f"that B is; {_least(tested)}"
        )
    else:
        sizes = f"{len(steps.runs_a)} and {len(steps.runs_b)} runs"
        table.caption = f"log-rank test, {kind}: n = {sizes}; p = {_p(steps.p)}"
    return table


def auc_table(aucs: Aucs) -> Table:
    """Show the AUC of A and B, their difference with its intervals and DeLong's test, for each label and their mean."""
    rows = {**aucs.labels, "macro": aucs.macro, **({"referable": aucs.referable} if aucs.referable else {})}
    pairs = max((len(row.tests) for row in rows.values() if row), default=1)
    spread = "over seeds" if pairs > 1 else "95 %, DeLong"
    over_seeds = next((row.over_seeds for row in rows.values() if row and row.over_seeds), None)
    p = "p, over seeds" if over_seeds else "p, DeLong"
    columns = ["label", "A", "B", "A − B", spread, "95 %, bootstrap", p]
    table = _table("AUC on the same images", columns)
    for name, row in rows.items():
        table.add_row(Text(printable(name)), *(_cells(row) if row else [_NONE] * (len(columns) - 1)))
    drawn = f"; the bootstrap draws {aucs.unit} {aucs.resamples:,} times" if aucs.resamples else ""
    left_out = aucs.macro.left_out if aucs.macro else 0
    lost = (
        f", and leaves {left_out:,} samples that lack a class of some label out of the macro AUC's" if left_out else ""
    )
    whole = Sample(aucs.images, aucs.unit, aucs.units).in_words()
    clustered = ": clustered DeLong (Obuchowski 1997)" if aucs.unit == "patients" else ""
    certain = any(row and row.ci is None and not any(test.ci for test in row.tests) for row in rows.values())
    perfect = f". {WITHOUT_INTERVAL}" if certain else ""
    note = f"{whole}, taken as independent{clustered}{drawn}{lost}{perfect}"
    of_images = f"of these networks on other {aucs.unit}, not of other seeds"
    if over_seeds:
        note += (
            f"\nmeans of {pairs} pairs of runs{_of_sources(over_seeds.n, pairs)}; p: sign flips, one-sided for the sign of "
            f"A − B, so double it if that was not named before; {_least(over_seeds)}\nthe bootstrap speaks {of_images}"
        )
    else:
        more = f"means of {pairs} pairs of runs; p: smallest to largest of the pairs\n" if pairs > 1 else ""
        note += f"\n{more}intervals and p speak {of_images}"
    table.caption = note
    return table


def _least(test: PairedTest) -> str:
    return f"{test.n} {'pair' if test.n == 1 else 'pairs'} can give {_p(test.least)} at least"


def _of_sources(units: int, pairs: int) -> str:
    """Say that several pairs share a source network, whose mean is what is tested."""
    return f" of {units} source networks, whose means are tested" if units < pairs else ""


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(
        title=title, title_justify="left", caption_justify="left", box=None, header_style="bold", pad_edge=False
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def _cells(row: AucRow) -> list[str]:
    if len(row.tests) > 1:
        detail = f"{row.seeds.low:+.4f} to {row.seeds.high:+.4f}{' (± 1 sd)' if row.seeds.kind == 'sd' else ''}"
        if row.over_seeds:
            if row.over_seeds.ci:
                detail = f"{_interval(row.over_seeds.ci)} ({row.over_seeds.level:.0%})"
            tested = _p(min(row.over_seeds.p_greater, row.over_seeds.p_less))
        else:
            p = [test.p for test in row.tests if test.p is not None]
            tested = f"{_p(min(p))} to {_p(max(p))}" if p else _NONE
    else:
        (test,) = row.tests
        detail, tested = _interval(test.ci), _NONE if test.p is None else _p(test.p)
    return [f"{row.a:.4f}", f"{row.b:.4f}", f"{row.difference:+.4f}", detail, _interval(row.ci), tested]


def _interval(ci: tuple[float, float] | None) -> str:
    return _NONE if ci is None else f"{ci[0]:+.4f} to {ci[1]:+.4f}"


def _p(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"
