"""A checkpoint as one page of HTML, without a script: its blocks as areas, what is in them, and its history."""

import base64
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from math import log10, prod
from typing import Any

import numpy as np

from wsurgery.anatomy import Selection
from wsurgery.anatomy.scales import scaled_note
from wsurgery.checkpoint import Checkpoint
from wsurgery.checkpoint.dtypes import BITS, is_float
from wsurgery.checkpoint.provenance import History, as_pipeline
from wsurgery.cores import workers
from wsurgery.errors import UsageError
from wsurgery.figures.areas import Colouring, area_map, change_word, colourings, drawn_rows, together
from wsurgery.figures.filter_grid import filter_grid, png
from wsurgery.figures.history_graph import history_svg
from wsurgery.figures.html import html_page, text
from wsurgery.operations.description import describe
from wsurgery.operations.layers import image_convolution
from wsurgery.operations.profile import BINS, POINTS, WIDEST, Profile, profile
from wsurgery.progress import Progress

MOST_TENSORS = 10_000  # that are shown one by one
_MOST_PIXELS = 1 << 16  # of first-layer filters
_MOST_ENTRIES = 100  # of metadata
_LONGEST = 300  # letters of a name
_HEIGHT = 20  # of a drawing, in its own units
_DECADES = 3  # of singular values
_HOW = (
    f"Histograms have {BINS} bins of equal width, from a tensor's smallest finite element to its largest (written below), "
    "and heights in proportion to counts; the tallest is as high as the box. Means and standard deviations are over all n "
    "elements of a tensor, not an estimate of anything: there is no band.",
    f"Singular values are those of the matrix (out, everything else), at most {POINTS} of them evenly spaced from the "
    f"largest, σ₁, to the smallest, on a logarithmic axis from σ₁ down to a thousandth of it. Of a matrix whose shorter side "
    f"is above {WIDEST:,}, or that would take longer than about a second, only the {POINTS} largest are computed, by a random "
    "sketch: where they hardly fall, these are some percent too small.",
    "Areas are parameters: elements without integers and running statistics, as wsurgery show counts them. What is below "
    "1/20,000 of all has no area on the map, and stands in the list.",
)


def render_view(
    checkpoint: Checkpoint,
    *,
    selection: Selection | None = None,
    against: str = "",
    changed: Mapping[str, Any] | None = None,
    threads: int | None = None,
) -> str:
    """Return the page: UTF-8 HTML with all that it needs inside, the same for the same bytes.

    Tensors are read one after the other, in file order. The page grows with the number of blocks, and with that of
    tensors up to `MOST_TENSORS`: of more the largest are shown.

    Args:
        checkpoint: open.
        selection: whose block map, if it has one, is taken in place of the checkpoint's own.
        against: what another checkpoint is called.
        changed: what `operations.changes.changes` says of this one and that one.
        threads: default all cores. They do not change the page.

    Raises:
        WsurgeryError: the checkpoint is damaged.
    """
    description, history = describe(checkpoint, selection), History.of(checkpoint)
    moved = {row["name"]: row["relative_l2"] for row in changed["tensors"]} if changed else {}
    moved_blocks = {row["name"]: row["relative_l2"] for row in changed["blocks"]} if changed else {}
    rows = drawn_rows(description)
    if changed:
        for tensor, row in rows.items():
            row |= {"change": change_word(moved.get(tensor)), "moved": moved.get(tensor)}
    ways = colourings(list(rows.values()))
    shown = _largest(checkpoint)
    cards, pictures = {}, {}
    for tensor, card, picture in _cards(checkpoint, rows, shown, threads):
        cards[tensor] = card
        if picture:
            pictures[rows[tensor]["block"]] = picture
    blocks, total = description["blocks"], sum(block["parameters"] for block in description["blocks"])
    classes: dict[tuple[str, ...], int] = {}  # of what has one colour in every way
    inner = [_cells(together([rows[name] for name in block["tensors"]], ways), classes) for block in blocks]
    listed = []
    for n, block in enumerate(blocks):
        members, picture = [rows[name] for name in block["tensors"]], pictures.get(block["name"], "")
        listed.append(_block(n, block, members, cards, inner[n], total, moved_blocks if changed else None, picture))
    label = checkpoint.name or checkpoint.label
    name = description["architecture"]["name"] if description["architecture"] else "unknown architecture"
    size = _bytes(sum(block["bytes"] for block in blocks))
    first = f"{name}: {total:,} parameters in {len(blocks):,} blocks, {len(rows):,} tensors, {size}."
    note = scaled_note(checkpoint.tensors, checkpoint.label)
    body = [f"<p>{text(first)}</p>", f"<p>{text(note)}</p>" if note else ""]
    if changed:
        said = f"Change is ‖B − A‖ / ‖A‖ from this checkpoint, A, to {against}, B: relative L2 distance, as in wsurgery diff."
        body.append(f"<p>{text(said)}</p>")
    if len(shown) < len(rows):
        body.append(f"<p>Of {len(rows):,} tensors the largest {len(shown):,} are shown one by one.</p>")
    body += ["<h2>Blocks</h2><section class='blocks'>", _choice(ways)]
    body += ["<div class='all'>", area_map(blocks, inner), *listed, "</div></section>"]
    body.append("<h2>History</h2>")
    if history.log:
        drawing = history_svg(history.log, label)
        body.append(f"<div class='scroll' tabindex='0' role='region' aria-label='History'>{drawing}</div>")
        lines = "\n".join(map(text, as_pipeline(history.log).splitlines()[:200]))
        body.append(f"<details class='more'><summary>As a shell pipeline</summary><pre>{lines}</pre></details>")
    else:
        body.append("<p>No history: wsurgery did not make it.</p>")
    body += [_metadata(history.others), "<details class='more'><summary>How to read this</summary>"]
    body += [*(f"<p>{text(line)}</p>" for line in _HOW), "</details>", f"<style>{_colours(len(ways), classes)}</style>"]
    return html_page(label, "\n".join(filter(None, body)), "view.css", "graph.css")


def _largest(checkpoint: Checkpoint) -> set[str]:
    names = sorted(checkpoint.tensors, key=lambda name: -checkpoint.tensors[name].elements)
    return set(names[:MOST_TENSORS])


def _cards(
    checkpoint: Checkpoint, rows: Mapping[str, Mapping[str, Any]], shown: set[str], threads: int | None
) -> Iterator[tuple[str, str, str]]:
    """Read the tensors that are shown, and yield the name and the HTML of each, and that of the first layer's filters."""
    first = None
    with suppress(UsageError):
        first = image_convolution(checkpoint)
    tensors = [tensor for name, tensor in checkpoint.tensors.items() if name in shown]
    pending: deque[tuple[str, Future[Profile] | None, str]] = deque()
    threads = workers(threads)

    def ready(allowed: int) -> Iterator[tuple[str, str, str]]:
        while len(pending) > allowed:
            name, future, picture = pending.popleft()
            yield name, _card(rows[name], future.result() if future else None), picture

    total = sum(tensor.nbytes for tensor in tensors)
    with ThreadPoolExecutor(threads) as pool, Progress(total, "reading") as progress:
        for tensor in tensors:
            if is_float(tensor.dtype) and BITS[tensor.dtype] >= 8:
                x = checkpoint.read_array(tensor.name)
                picture = _filters(x) if tensor.name == first else ""
                pending.append((tensor.name, pool.submit(profile, x), picture))
                del x  # not one more in memory than are in work
            else:
                pending.append((tensor.name, None, ""))
            yield from ready(threads)
            progress.advance(tensor.nbytes)
        yield from ready(0)


def _block(
    n: int,
    block: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    cards: Mapping[str, str],
    inner: str,
    total: int,
    moved: Mapping[str, float | None] | None,
    picture: str,
) -> str:
    frozen = sum(row["frozen"] for row in rows)
    share = block["parameters"] / total if total else 0
    words = [
        f"{block['parameters']:,} parameters ({share:.1%})",
        f"{len(rows):,} tensors",
        _bytes(block["bytes"]),
    ]
    words += [", ".join(dict.fromkeys(row[key] for row in rows)) for key in ("role", "dtype")]
    words += [f"frozen: {frozen} of {len(rows)}"] if frozen else []
    words += [f"change {_number(moved.get(block['name']))}"] if moved is not None else []
    inside = [cards[row["name"]] for row in rows if row["name"] in cards]
    others = len(rows) - len(inside)
    more = f"<p class='note'>And {others:,} smaller tensors.</p>" if others else ""
    return (
        f"<details class='block'><summary><strong>{text(block['name'], _LONGEST)}</strong>"
        f"<span class='bar' aria-hidden='true'><b style='width:{100 * share:.3g}%'>{inner}</b></span>"
        f"<small>{text(' · '.join(words))}</small></summary>"
        f"<div id='block-{n}'>{picture}</div><ul class='tensors'>{''.join(inside)}</ul>{more}</details>"
    )


def _card(row: Mapping[str, Any], found: Profile | None) -> str:
    shape = " × ".join(f"{side:,}" for side in row["shape"]) or "scalar"
    words = [row["role"], row["dtype"], f"{shape}, n {prod(row['shape']):,}"]
    words += ["frozen"] if row["frozen"] else []
    words += [f"change {_number(row['moved'])}"] if "moved" in row else []
    charts = ""
    if found and found.summary.min == found.summary.max is not None and not (found.summary.nan or found.summary.inf):
        words.append(f"all {_number(found.summary.min)}")
    elif found:
        odd = (("zero", found.summary.zeros), ("NaN", found.summary.nan), ("infinite", found.summary.inf))
        words += [f"{count:,} {what}" for what, count in odd if count]
        charts = f"<div class='charts'>{_histogram(found)}{_spectrum(found)}</div>"
    return f"<li><b>{text(row['name'], _LONGEST)}</b><small>{text(' · '.join(words))}</small>{charts}</li>"


def _histogram(found: Profile) -> str:
    if not found.counts:
        return ""
    tallest = max(found.counts)
    # What is there is seen, however little it is.
    heights = [max(round(_HEIGHT * count / tallest), count > 0) for count in found.counts]
    path = f"M0 {_HEIGHT}" + "".join(f"V{_HEIGHT - height}h1" for height in heights) + f"V{_HEIGHT}z"
    low, high, mean, std = (_number(getattr(found.summary, key)) for key in ("min", "max", "mean", "std"))
    return (
        f"<div><svg viewBox='0 0 {BINS} {_HEIGHT}' preserveAspectRatio='none' aria-hidden='true'>"
        f"<path d='{path}'/></svg><small>histogram: {low} to {high}, mean {mean}, std {std}</small></div>"
    )


def _spectrum(found: Profile) -> str:
    if not found.singular or not found.singular[0]:
        return ""
    heights = [_HEIGHT * (1 + log10(max(value / found.singular[0], 1e-9)) / _DECADES) for value in found.singular]
    points = "L".join(f"{i} {_HEIGHT - max(height, 0):.3g}" for i, height in enumerate(heights))
    which = f"{found.rank:,}" if found.all_of_them else f"largest {len(found.singular)} of {found.rank:,}, sketched"
    return (
        f"<div><svg viewBox='0 0 {len(heights) - 1} {_HEIGHT}' preserveAspectRatio='none' aria-hidden='true'>"
        f"<path class='line' d='M{points}'/></svg><small>singular values ({which}): {_number(found.singular[0])} to "
        f"{_number(found.singular[-1])}</small></div>"
    )


def _filters(weight: np.ndarray) -> str:
    """Draw the first layer's filters, (out, in, kh, kw), as many as there is room for."""
    if not weight.size:
        return ""
    most = max(1, _MOST_PIXELS // prod(weight.shape[2:]))
    with np.errstate(invalid="ignore"):  # a signalling NaN
        some = weight[:most].astype(np.float64)
    if not np.isfinite(some).all():
        return ""
    grid = filter_grid(some)
    data = base64.b64encode(png(grid.pixels)).decode()
    which = f"the first {len(some)} of {len(weight)} filters" if len(some) < len(weight) else f"{len(some)} filters"
    said = f"The first layer: {which}; black to white is ±{grid.scale:.3g}, mid-grey is zero."
    return (
        f"<figure class='first'><img src='data:image/png;base64,{data}' alt=''><figcaption>{said}</figcaption></figure>"
    )


def _cells(sizes: Mapping[tuple[str, ...], int], classes: dict[tuple[str, ...], int]) -> str:
    """Draw parameters as cells of a flex box."""
    numbered = ((classes.setdefault(colours, len(classes)), size) for colours, size in sizes.items())
    return "".join(f"<i class='c{n}' style='flex:{size} 0 0'></i>" for n, size in numbered)


def _choice(ways: Sequence[Colouring]) -> str:
    """Build the choice of colours, and a legend for each. The styles find what is chosen as what stands before the map."""
    parts = ["<fieldset><legend>Colour by</legend>"]
    for n, way in enumerate(ways):
        checked = "" if n else " checked"
        parts.append(f"<label><input type='radio' name='by' id='by-{n}'{checked}> {way.label}</label>")
    parts.append("</fieldset>")
    for n, way in enumerate(ways):
        items = (f"<li><i style='background:{colour}'></i>{text(value)}</li>" for value, colour in way.colours.items())
        parts.append(f"<ul class='key' id='key-{n}'>{''.join(items)}</ul>")
    return "".join(parts)


def _colours(ways: int, classes: Mapping[tuple[str, ...], int]) -> str:
    """Write the styles by which the choice colours the cells."""
    rules = []
    for n in range(ways):
        chosen = f"fieldset:has(#by-{n}:checked) ~"
        rules.append(f"{chosen} #key-{n} {{ display: flex; }}")
        for colours, i in classes.items():
            rules.append(f"{chosen} .all .c{i} {{ background: {colours[n]}; }}")
    return "\n".join(rules)


def _metadata(entries: Mapping[str, str]) -> str:
    """List what other tools wrote."""
    if not entries:
        return ""
    kept = sorted(entries.items())[:_MOST_ENTRIES]
    rows = "".join(f"<tr><th scope='row'>{text(key, 200)}</th><td>{text(value, 500)}</td></tr>" for key, value in kept)
    more = f"<p class='note'>And {len(entries) - len(kept):,} more.</p>" if len(entries) > len(kept) else ""
    return f"<h2>Metadata</h2><div class='scroll'><table>{rows}</table></div>{more}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"
