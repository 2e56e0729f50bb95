"""A comparison of two runs or arms as tables for a terminal."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from wsurgery.errors import printable
from wsurgery.experiments.comparison import AucRow, Aucs, Steps
from wsurgery.statistics.bootstrap import Sample

_NONE = "–"


def steps_table(steps: Steps) -> Table:
    """Show the steps of each run to the threshold, the median, the difference, and its test."""
    table = _table(f"steps to a validation AUC of {steps.threshold:g}", ["", "seed by seed", "median"])
    for name, runs, middle in zip("AB", (steps.runs_a, steps.runs_b), steps.medians, strict=True):
        reached = [(run.steps_to(steps.threshold), run.last_step) for run in runs]
        table.add_row(
            name, ", ".join(f"> {last}" if at is None else f"{at}" for at, last in reached), middle.in_words()
        )
    differences = ", ".join(pair.in_words() for pair in steps.differences)
    table.add_row("A − B", differences or _NONE, steps.difference.in_words())
    if steps.differences:
        a, b, undecided = steps.sooner
        test = f"sign test, pairs of one seed: n = {len(steps.differences)}; A sooner in {a}, B in {b}, undecided {undecided}"
    else:
        kind = "exact" if steps.exact else "approximate"
        test = f"log-rank test, {kind}: n = {len(steps.runs_a)} and {len(steps.runs_b)} runs"
    table.caption = f"{test}; p = {_p(steps.p)}"
    return table


def auc_table(aucs: Aucs) -> Table:
    """Show the AUC of A and B, their difference with its intervals and DeLong's test, for each label and their mean."""
    rows = {**aucs.labels, "macro": aucs.macro, **({"referable": aucs.referable} if aucs.referable else {})}
    pairs = max((len(row.tests) for row in rows.values() if row), default=1)
    spread = "over seeds" if pairs > 1 else "95 %, DeLong"
    columns = ["label", "A", "B", "A − B", spread, "95 %, bootstrap", "p, DeLong"]
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
    note = f"{whole}, taken as independent{clustered}{drawn}{lost}"
    if pairs > 1:
        note += f"\nmeans of {pairs} pairs of runs; p: smallest to largest of the pairs"
    table.caption = f"{note}\nintervals and p speak of these networks on other {aucs.unit}, not of other seeds"
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(
        title=title, title_justify="left", caption_justify="left", box=None, header_style="bold", pad_edge=False
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def _cells(row: AucRow) -> list[str]:
    if len(row.tests) > 1:
        p = [test.p for test in row.tests if test.p is not None]
        detail = f"{row.seeds.low:+.4f} to {row.seeds.high:+.4f}{' (± 1 sd)' if row.seeds.kind == 'sd' else ''}"
        tested = f"{_p(min(p))} to {_p(max(p))}" if p else _NONE
    else:
        (test,) = row.tests
        detail, tested = _interval(test.ci), _NONE if test.p is None else _p(test.p)
    return [f"{row.a:.4f}", f"{row.b:.4f}", f"{row.difference:+.4f}", detail, _interval(row.ci), tested]


def _interval(ci: tuple[float, float] | None) -> str:
    return _NONE if ci is None else f"{ci[0]:+.4f} to {ci[1]:+.4f}"


def _p(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"
