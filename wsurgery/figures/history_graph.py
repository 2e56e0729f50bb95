"""A checkpoint's history as a drawing: files and commands from top to bottom, and what flowed where."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from wsurgery.checkpoint.opening import STDIN
from wsurgery.checkpoint.provenance import WITHOUT_OPTIONS, Record
from wsurgery.figures.html import shared, text

MOST_NODES = 300
_WIDTH, _HEIGHT = 168, 42  # of a node, in pixels
_COLUMN, _ROW = 184, 84  # from one to the next
_TITLE, _DETAIL = 20, 26  # letters that a node has room for


@dataclass
class Node:
    """A box of the drawing.

    Attributes:
        kind: `more` stands for commands and files that there is no room for.
        title, detail: its two lines.
        depth: counted from the bottom, where the checkpoint itself stands.
        inputs: what it read, what flows through first, each with the option that it was given with.
        column: counted from the left; what flows through stays in one.
    """

    kind: Literal["file", "command", "more", "result"]
    title: str
    detail: str = ""
    depth: int = 0
    inputs: list[tuple["Node", str]] = field(default_factory=list)
    column: int = 0


def history_graph(log: Sequence[Record], result: str) -> list[Node]:
    """Lay a history out: a tree that is drawn without crossings.

    Args:
        log: the records of a checkpoint.
        result: what the checkpoint is called.

    Returns:
        A node for the checkpoint, which is the first, for each record, and for each input that has no history of its own:
        the newest, some more than `MOST_NODES` at most.
    """
    nodes = [Node("result", result)]
    _grow(nodes, log, nodes[0])
    _spread(nodes[0], 0)
    return nodes


def _grow(nodes: list[Node], log: Sequence[Record], child: Node, option: str = "") -> None:
    """Add the nodes of a log whose result `child` took."""

    def add(node: Node, option: str, *, flows: bool = False) -> Node:
        node.depth = child.depth + 1
        child.inputs.insert(0 if flows else len(child.inputs), (node, option))
        nodes.append(node)
        return node

    for i, record in reversed(list(enumerate(log))):
        flows = i < len(log) - 1
        if len(nodes) >= MOST_NODES:
            add(Node("more", "…", f"{i + 1:,} earlier commands"), option, flows=flows)
            return
        child, option = add(_command(record), option, flows=flows), ""
        inputs = record.get("inputs", [])
        options = WITHOUT_OPTIONS.get(record["command"]) or [given.get("option", "") for given in inputs]
        for j, (given, how) in enumerate(zip(inputs, options[-len(inputs) :], strict=False)):
            if i and not j and given["name"] == STDIN:  # what the record before it made
                option = how
            elif len(nodes) >= MOST_NODES:
                add(Node("more", "…", f"{len(inputs) - j:,} more inputs"), "")
                break
            elif given.get("log"):
                _grow(nodes, given["log"], child, how)
            else:
                add(_file(given), how)


def _command(record: Record) -> Node:
    words = shlex.join(record.get("arguments", []))
    seed = f"seed {record['seed']}" if "seed" in record else ""
    return Node("command", record["command"], " · ".join(part for part in (seed, words) if part))


def _file(given: dict[str, Any]) -> Node:
    name = given.get("url") or given["name"]
    size = f"{given['size'] / 1e6:,.1f} MB" if "size" in given else ""
    digest = given.get("blake3") or given.get("header", "")
    title = "standard input" if name == STDIN else name.rpartition("/")[2] or name
    return Node("file", title, " · ".join(part for part in (size, digest[:8]) if part))


def _spread(node: Node, column: int) -> dict[int, int]:
    """Give a node and all above it their columns; return the last column that is taken at each depth."""
    node.column = column
    taken = {node.depth: column}
    for i, (other, _) in enumerate(node.inputs):
        depths = {each.depth for each in _above(other)}
        beside = column if i == 0 else 1 + max(taken.get(depth, column) for depth in depths)
        taken |= _spread(other, beside)
    return taken


def _above(node: Node) -> Iterator[Node]:
    yield node
    for other, _ in node.inputs:
        yield from _above(other)


def history_svg(log: Sequence[Record], result: str, *, alone: bool = False) -> str:
    """Draw a history: files are round, commands square, and the checkpoint itself stands at the bottom.

    Args:
        log: the records of a checkpoint.
        result: what the checkpoint is called.
        alone: whether it is a file of its own, with its colours inside, and not a part of a page.

    Returns:
        An `<svg>` element, the same for the same records.
    """
    nodes = history_graph(log, result)
    rows = 1 + max(node.depth for node in nodes)
    width, height = _COLUMN * (1 + max(node.column for node in nodes)), _ROW * (rows - 1) + _HEIGHT + 2
    said = f"History of {result}: {', '.join(record['command'] for record in log[-20:]) or 'nothing'}"
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' class='history' viewBox='0 0 {width} {height}' width='{width}' "
        f"height='{height}' style='min-width:{0.9 * width:.0f}px' role='img' aria-label='{text(said, 1000)}'>"
    ]
    if alone:
        parts.append(f"<style>{shared('graph.css')}</style><rect class='ground' width='{width}' height='{height}'/>")
    for node in nodes:
        x, y = _COLUMN * node.column + _COLUMN // 2, _ROW * (rows - 1 - node.depth) + 1
        for other, option in node.inputs:
            start, above = _COLUMN * other.column + _COLUMN // 2, y - _ROW + _HEIGHT
            parts.append(f"<path class='edge' d='M{start} {above}V{y - 14}H{x}V{y - 5}'/>")
            if option:
                parts.append(f"<text class='option' x='{start + 6}' y='{above + 16}'>{text(option, _DETAIL)}</text>")
        if node.inputs:
            parts.append(f"<path class='tip' d='M{x - 4} {y - 6}h8l-4 6z'/>")
        corner = 4 if node.kind in ("command", "more") else _HEIGHT // 2
        parts.append(
            f"<g class='{node.kind}'><title>{text(f'{node.title} {node.detail}', 500)}</title>"
            f"<rect x='{x - _WIDTH // 2}' y='{y}' width='{_WIDTH}' height='{_HEIGHT}' rx='{corner}'/>"
            f"<text class='title' x='{x}' y='{y + (18 if node.detail else 26)}'>{text(node.title, _TITLE)}</text>"
            + (f"<text x='{x}' y='{y + 33}'>{text(node.detail, _DETAIL)}</text></g>" if node.detail else "</g>")
        )
    return "".join([*parts, "</svg>"])
