"""The report on an experiment: what its runs came to, as a table for the terminal, as JSON, and as data for its page."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from wsurgery.errors import UsageError, printable
from wsurgery.figures.curves import SD_FROM
from wsurgery.figures.runs import LayerScore, find_runs, read_similarities
from wsurgery.figures.summary import Arm, against_random, in_words, summarise
from wsurgery.figures.verdicts import PRETRAINED_PAIR, RANDOM_PAIR, Claim, claims, pair_differences

SPREAD_NOTE = (
    f"In brackets the range over the seeds; from {SD_FROM} seeds on, ± one standard deviation instead. "
    "> N: never passed in N steps."
)


@dataclass(frozen=True)
class Report:
    """What is known of an experiment.

    Attributes:
        arms: by name, in the order of the page.
        pairs: cca results by name, the pretrained and the random pair first.
        claims: the paper's claims that could be judged.
        threshold: the validation macro AUC, 0 to 1, that steps are counted to.
    """

    arms: Mapping[str, Arm]
    pairs: Mapping[str, Sequence[LayerScore]]
    claims: Sequence[Claim]
    threshold: float


def read_report(folder: Path, *, threshold: float) -> Report:
    """Read an experiment: its runs in `folder`/runs/ARM/SEED and its comparisons in `folder`/cca/NAME.json.

    Raises:
        UsageError: there are no runs, or the threshold is no AUC.
        WsurgeryError: a run has not ended, or a file is broken.
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"--threshold {threshold:g} is no AUC: give a number from 0 to 1, such as 0.9")
    arms = summarise(find_runs(folder), threshold)
    first = [PRETRAINED_PAIR, RANDOM_PAIR]
    paths = sorted((folder / "cca").glob("*.json"), key=lambda path: (path.stem not in first, path.stem))
    pairs = {path.stem: read_similarities(path) for path in paths}
    return Report(arms, pairs, claims(arms, pairs, threshold), threshold)


def as_json(report: Report) -> dict[str, Any]:
    """Return the table, the pairs and the verdicts as JSON data. A null step count is a run that never passed."""
    both = PRETRAINED_PAIR in report.pairs and RANDOM_PAIR in report.pairs
    return {
        "threshold": report.threshold,
        "arms": [
            {
                "arm": arm.name,
                "seeds": [run.seed for run in arm.runs],
                "test_macro_auc": {"values": arm.test_auc, **(arm.test_spread._asdict() if arm.test_spread else {})},
                "valid_macro_auc": {"values": arm.last_auc, **arm.valid_spread._asdict()},
                "steps_to_threshold": arm.steps,
                "last_step": [run.last_step for run in arm.runs],
                "against_random": against_random(arm, report.arms) or None,
                "cca_init": [[asdict(layer) for layer in scores] for scores in arm.init_scores],
            }
            for arm in report.arms.values()
        ],
        "pair_differences": [x._asdict() for x in pair_differences(report.pairs)] if both else [],
        "claims": [claim._asdict() for claim in report.claims],
    }


def table_rows(report: Report) -> list[list[str]]:
    """Return the table of arms in words, its head first."""
    steps = f"steps to AUC {report.threshold:g}, by seed"
    rows = [["arm", "seeds", "test macro AUC", "valid. AUC at end", steps, "against random"]]
    for arm in report.arms.values():
        cells = [printable(arm.name, 40), f"{len(arm.runs)}", in_words(arm.test_spread), in_words(arm.valid_spread)]
        rows.append([*cells, arm.steps_in_words(), against_random(arm, report.arms)])
    return rows


def terminal_table(report: Report) -> Table:
    """Return the table of arms for a terminal."""
    head, *rows = table_rows(report)
    table = Table(caption=SPREAD_NOTE, caption_justify="left")
    for column in head:
        table.add_column(column, no_wrap=column in ("arm", "test macro AUC"))
    for row in rows:
        table.add_row(*map(Text, row))  # as Text, for a name in square brackets is no markup
    return table


def markdown(report: Report, *, title: str) -> str:
    """Return the table of arms, the similarities by layer and the verdicts as Markdown, for a recipe's RESULTS.md."""

    def table(rows: Sequence[Sequence[str]]) -> list[str]:
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:], ""]

    def cells(scores: Sequence[LayerScore]) -> list[str]:
        return ["–" if score.value is None else f"{score.value:.3f}" for score in scores]

    parts = [f"# {title}", "", *table(table_rows(report)), SPREAD_NOTE, ""]
    compared = {f"{arm.name} to its init": arm.init_scores[0] for arm in report.arms.values() if arm.init_scores}
    compared |= {name: list(scores) for name, scores in report.pairs.items()}
    if compared:
        layers = [score.layer for score in next(iter(compared.values()))]
        parts += ["Mean canonical correlation by layer:", ""]
        parts += table([["networks", *layers], *([printable(name, 40), *cells(compared[name])] for name in compared)])
    parts += [f"- **{claim.claim}** {claim.evidence} *{claim.verdict}.*" for claim in report.claims]
    return "\n".join(parts) + "\n"
