"""The report as text: tables for the terminal, and Markdown for a recipe's RESULTS.md."""

import re
from collections.abc import Iterable, Mapping, Sequence

from rich.table import Table
from rich.text import Text

from wsurgery.errors import printable
from wsurgery.experiments.baselines import baseline_notes
from wsurgery.experiments.cca import Comparison, layer_names, metric_of
from wsurgery.experiments.claims import Claim, NotJudged, not_judged_in_words
from wsurgery.experiments.networks import Networks, gap_rows
from wsurgery.experiments.report import Report
from wsurgery.experiments.summary import LEVEL, in_words
from wsurgery.experiments.what_ran import WhatRan
from wsurgery.statistics.bootstrap import samples_in_words
from wsurgery.statistics.permutation import ALPHA
from wsurgery.statistics.spread import SD_FROM, spread

Rows = list[list[str]]  # the head first
ARMS_NOTE = (
    f"In brackets the range over the seeds; from {SD_FROM} seeds on, ± one standard deviation instead. Mean along training: "
    "the area under the validation AUC's curve, by steps. Steps: to the first of three evaluations in a row above the "
    "threshold, of a third of them where there are fewer than nine; > N: there was none from a step up to N on. Times the "
    f"baseline's steps: the geometric mean over the seeds, with its {LEVEL:.0%} interval; ≤ where a run of the baseline never "
    "passed, ≥ where one of the arm did not, ~ for both."
)


def comparison_note(comparisons: Iterable[Comparison]) -> str:
    """Say what stands in the table of comparisons."""
    metric = metric_of(comparisons)
    return (
        f"{metric[:1].upper()}{metric[1:]} by layer: mean over the seeds, with their spread; in square brackets the floor and "
        "the ceiling."
    )


def arms_note(report: Report) -> str:
    """Say of how many images and patients test AUCs are, what thresholds are, and of how many source networks it speaks."""
    samples = dict.fromkeys(sample for arm in report.arms.values() for sample in arm.samples if sample)
    thresholds, units = report.thresholds, report.basis.units
    said = []
    if samples:
        whose = " and ".join(dict.fromkeys(sample.independent for sample in samples))
        said.append(
            f"Test AUC: of {samples_in_words(samples)}; its spread over seeds is no interval for "
            f"other {whose}, which eval and compare give."
        )
    if thresholds.origin:
        said.append(f"The thresholds are {thresholds.origin}.")
    if thresholds.others:
        said.append(f"Claims are tested at {thresholds.tested:g}.")
    if any(run.stopped is not None for arm in report.arms.values() for run in arm.runs):
        said.append("A run that --until-auc stopped is taken to stay above what it had reached.")
    if any(run.last_step > report.last_of_all for arm in report.arms.values() for run in arm.runs):
        said.append(f"Mean along training is up to step {report.last_of_all}, the last that all runs have.")
    said += baseline_notes(report.arms.values())
    sources = len(set(units.values()))
    if 1 < sources < len(units):
        said.append(f"{sources} source networks: intervals and tests are of the means of the seeds of each.")
    elif sources > 1:
        said.append("Each seed has a source network of its own, for which the intervals and tests speak, too.")
    elif sources:
        said.append("One source network: another may differ from it by more than intervals and tests say.")
    return " ".join(said)


def table_rows(report: Report) -> Rows:
    """Return the table of arms in words: their accuracy."""
    rows = [["arm", "seeds", "test macro AUC", "valid. AUC at end", "mean along training"]]
    for arm in report.arms.values():
        accuracy = [in_words(each) for each in (arm.test_spread, arm.valid_spread, spread(report.areas(arm)))]
        rows.append([printable(arm.name, 40), f"{len(arm.runs)}", *accuracy])
    return rows


def speed_rows(report: Report) -> Rows:
    """Return the table of speed in words: steps at the tested threshold, and against the baseline at each."""
    thresholds = report.thresholds
    base = printable(report.baseline, 40)
    rows = [
        [
            "arm",
            f"steps to AUC {thresholds.tested:g}, by seed",
            *(f"times {base}'s, to {auc:g}" for auc in thresholds.aucs if report.baseline),
        ]
    ]
    for arm in report.arms.values():
        against = [report.against_baseline(arm, auc) for auc in thresholds.aucs if report.baseline]
        rows.append([printable(arm.name, 40), arm.steps_in_words(), *against])
    return rows


def comparison_rows(comparisons: Mapping[str, Comparison]) -> Rows:
    """Return the table of comparisons in words: a row each, a column a layer."""
    layers = layer_names({name: comparison.results for name, comparison in comparisons.items()})
    rows = [["networks", "seeds", *(printable(layer, 40) for layer in layers)]]
    for name, comparison in comparisons.items():
        floors, ceilings = comparison.means("floor"), comparison.means("ceiling")
        rows.append([printable(name, 40), f"{len(comparison.by_seed)}"])
        for layer in layers:
            cell = in_words(comparison.spread(layer))
            if cell != "–" and layer in floors and layer in ceilings:
                cell += f" [{floors[layer]:.2f}, {ceilings[layer]:.2f}]"
            rows[-1].append(cell)
    return rows


def tests_note(claims: Iterable[Claim]) -> str:
    """Say how claims were tested; empty where none was."""
    tested = sum(claim.p is not None for claim in claims)
    if not tested:
        return ""
    several = f" Holm's correction is for the {tested} claims of this page that were tested." if tested > 1 else ""
    return (
        "The tests are exact: signs of the differences by seed are flipped (Fisher 1935), for arms of one seed share a head "
        f"and the order of images; one-sided, and shown is p < {ALPHA:g}. What is said to be alike is tested by two such "
        f"tests against a margin (Schuirmann 1987).{several} A run that never passed counts as if it had at the next step."
    )


def terminal_tables(report: Report | Networks) -> list[Table]:
    """Return the tables for a terminal."""
    if isinstance(report, Networks):
        tables = [table for name, one in report.reports.items() for table in _terminal(one, printable(name, 40))]
        return tables + ([_table(rows, "")] if (rows := gap_rows(report.reports)) else [])
    return _terminal(report)


def _terminal(report: Report, title: str | None = None) -> list[Table]:
    tables = []
    if report.arms:
        note = f"{ARMS_NOTE} {arms_note(report)}".rstrip()
        tables = [_table(table_rows(report), ""), _table(speed_rows(report), note)]
    tables += (
        [_table(comparison_rows(report.comparisons), comparison_note(report.comparisons.values()))]
        if report.comparisons
        else []
    )
    tables[0].title = Text(title) if title else None
    return tables


def _table(rows: Rows, caption: str) -> Table:
    head, *rest = rows
    table = Table(caption=Text(caption), caption_justify="left")
    for column in head:
        table.add_column(Text(column), no_wrap=column in ("arm", "networks", "test macro AUC"))
    for row in rest:
        table.add_row(*map(Text, row))  # as Text, for a name in square brackets is no markup
    return table


def markdown(report: Report | Networks, *, title: str, paper: str = "") -> str:
    """Return the tables and the verdicts as Markdown.

    Args:
        report: one experiment, or several.
        title: the first heading.
        paper: Markdown that stands first, under "The paper".
    """
    parts = [f"# {_markdown(printable(title, 200))}", ""]
    if paper:
        parts += ["## The paper", "", paper.strip(), ""]
    if isinstance(report, Networks):
        for name, one in report.reports.items():
            parts += [f"## {_markdown(printable(name, 40))}", "", *_sections(one)]
        rows = gap_rows(report.reports)
        if listed := [*_markdown_table(rows), *_list(report.claims, report.not_judged)]:
            parts += ["## Across networks", "", *listed]
        notes = notes_of(report.reports.values(), report.all_claims)
    else:
        parts += ["## Here", ""] if paper else []
        parts += _sections(report)
        notes = notes_of([report], report.claims)
    return "\n".join([*parts, "\n\n".join(notes)]).rstrip("\n") + "\n"


def notes_of(reports: Iterable[Report], claims: Iterable[Claim]) -> list[str]:
    """Say how to read tables and claims, once for all networks of a page."""
    arms = [ARMS_NOTE] if any(report.arms for report in reports) else []
    return [*arms, *([note] if (note := tests_note(claims)) else [])]


def _sections(report: Report) -> list[str]:
    parts = []
    if report.arms:
        parts = [*_markdown_table(table_rows(report)), *_markdown_table(speed_rows(report))]
        parts += [note, ""] if (note := arms_note(report)) else []
    if report.comparisons:
        note = _markdown(comparison_note(report.comparisons.values()))
        parts += [*_markdown_table(comparison_rows(report.comparisons)), note, ""]
    parts += _list(report.claims, report.not_judged)
    if report.ran.facts:
        parts += ["What was run:", "", *(f"- {_markdown(fact)}" for fact in facts_in_words(report.ran)), ""]
    return parts


def facts_in_words(ran: WhatRan) -> list[str]:
    """Write what was run, a sentence a heading."""
    return [printable(f"{heading}: {'; '.join(said)}", 2000) for heading, said in ran.facts.items()]


def _list(claims: Sequence[Claim], others: Sequence[NotJudged]) -> list[str]:
    items = []
    for x in claims:
        claim, evidence, verdict = (_markdown(printable(words, 10_000)) for words in (x.claim, x.evidence, x.verdict))
        items.append(f"- **{claim}** {evidence} *{verdict}.*")
    said = not_judged_in_words(others)
    return [*([*items, ""] if items else []), *([_markdown(said), ""] if said else [])]


def _markdown_table(rows: Rows) -> list[str]:
    if not rows:
        return []
    names = [rows[0], *([_markdown(name), *(cell.replace("|", "\\|") for cell in rest)] for name, *rest in rows[1:])]
    names[0] = [*map(_markdown, names[0])]
    lines = ["| " + " | ".join(row) + " |" for row in names]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:], ""]


def _markdown(text: str) -> str:
    """Escape what begins an element of Markdown or of HTML: names are those of folders and of files of other people."""
    entities = {"<": "&lt;", "&": "&amp;"}
    return re.sub(r"[\\`*|\[\]]|<(?=[A-Za-z/!?])|&(?=[#A-Za-z])", lambda c: entities.get(c[0], f"\\{c[0]}"), text)
