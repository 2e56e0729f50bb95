"""What a notebook shows of a checkpoint and of a run, by itself: HTML without a style sheet, for it stands on others' pages."""

from contextlib import suppress
from pathlib import Path

from wsurgery.checkpoint import Checkpoint
from wsurgery.checkpoint.opening import is_run
from wsurgery.errors import WsurgeryError
from wsurgery.figures.areas import colourings, drawn_rows, together
from wsurgery.figures.html import text
from wsurgery.operations.description import describe

_MOST_BLOCKS = 100


def checkpoint_html(checkpoint: Checkpoint) -> str:
    """Return a table of a checkpoint's blocks, with bars of their parameters by role; of a run's, its curves below.

    Only the header is read, and of a run the log. Of more than 100 blocks the first are shown.
    """
    description = describe(checkpoint)
    rows = drawn_rows(description)
    ways = colourings(list(rows.values()))[:1]
    blocks = description["blocks"]
    total = sum(block["parameters"] for block in blocks)
    lines = []
    for block in blocks[:_MOST_BLOCKS]:
        members = [rows[name] for name in block["tensors"]]
        bar = "".join(
            f"<i style='display:inline-block;height:.8em;width:{100 * size / total:.3g}%;background:{colour}'></i>"
            for (colour,), size in together(members, ways).items()
        )
        roles = ", ".join(dict.fromkeys(row["role"] for row in members))
        cells = f"{block['parameters']:,}", f"{len(members):,}", roles
        lines.append(
            f"<tr><th style='text-align:left'>{text(block['name'], 80)}</th><td style='width:16em'>{bar}</td>"
            + "".join(f"<td>{text(cell)}</td>" for cell in cells)
        )
    left = len(blocks) - _MOST_BLOCKS
    more = f"<p>and {left:,} more blocks</p>" if left > 0 else ""
    head = "".join(f"<th>{name}</th>" for name in ("block", "share", "parameters", "tensors", "roles"))
    said = f"{checkpoint.label}: {total:,} parameters in {len(rows):,} tensors"
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{'</tr>'.join(lines)}</tr></tbody></table>"
    folder = checkpoint.path.parent if checkpoint.path else None
    curves = (folder and is_run(folder) and run_html(folder)) or ""
    return f"<p>{text(said)}</p>{table}{more}{curves}"


def run_html(folder: Path) -> str | None:
    """Return a run's curves, macro AUC and loss; None without an evaluation, or without the library that draws."""
    with suppress(WsurgeryError, ModuleNotFoundError):
        from wsurgery.experiments.runs import read_run
        from wsurgery.figures.curves import Metric, draw_curves
        from wsurgery.figures.style import inline_svg

        run = read_run(folder)
        metrics: tuple[Metric, ...] = ("auc", "loss") if run.loss else ("auc",)
        drawn = (inline_svg(draw_curves([run], metric=metric), f"{metric} against steps") for metric in metrics)
        return "".join(f"<div style='display:inline-block;width:28em;max-width:100%'>{svg}</div>" for svg in drawn)
    return None
