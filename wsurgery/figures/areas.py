"""A checkpoint's blocks as areas of parameters, in order, and the colours of what is in them."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

from wsurgery.figures.html import text
from wsurgery.operations.description import is_parameter

ASPECT = 2.0  # of the map: width over height
_SMALLEST = 1 / 20_000  # of all parameters: what is smaller has no area, and stands in the list alone
_GREY = "#8c959f"
# Okabe and Ito's palette, its yellow darker, and tints: each is seen on white and on black.
ROLE_COLOURS = {
    "conv": "#0072b2", "depthwise": "#56b4e9", "linear": "#e69f00", "batch_norm": "#009e73", "norm": "#5cc4a0",
    "embedding": "#cc79a7", "position": "#a05195", "token": "#d55e00", "layer_scale": "#b8a800", "bias": "#7a6a58",
}  # fmt: skip
_PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a800", "#a05195")
_FROZEN = {"frozen": "#56b4e9", "trained": "#e69f00"}
# Relative L2 distance of a tensor, up to and with; viridis, from dark to light.
_CHANGES = (
    (0.0, "unchanged", "#8c959f"), (0.01, "up to 0.01", "#46327e"), (0.1, "up to 0.1", "#2c728e"),
    (0.5, "up to 0.5", "#27ad81"), (1.0, "up to 1", "#9bd93c"), (float("inf"), "above 1", "#e8c500"),
)  # fmt: skip
_UNKNOWN = "undefined: from 0, or no counterpart"


class Rectangle(NamedTuple):
    """A part of the map, in percent of its width and height."""

    left: float
    top: float
    width: float
    height: float


def strips(sizes: Sequence[float], aspect: float = ASPECT) -> list[Rectangle]:
    """Fill a rectangle with areas in proportion to `sizes`, all above 0, in order, in rows from the top.

    The rows are those of strip treemaps (Bederson, Shneiderman and Wattenberg 2002): a row takes another area as long as
    this makes its areas more nearly square.

    Args:
        sizes: at least one.
        aspect: width over height.
    """
    areas = [size / sum(sizes) for size in sizes]  # of a map of height 1 and width 1, seen `aspect` times as wide
    rows: list[list[float]] = [areas[:1]]
    for area in areas[1:]:
        if _oblong([*rows[-1], area], aspect) <= _oblong(rows[-1], aspect):
            rows[-1].append(area)
        else:
            rows.append([area])
    found, top = [], 0.0
    for row in rows:
        height, left = sum(row), 0.0
        for area in row:
            found.append(Rectangle(100 * left, 100 * top, 100 * area / height, 100 * height))
            left += area / height
        top += height
    return found


def _oblong(row: Sequence[float], aspect: float) -> float:
    """Return the mean of long over short side of the areas of a row."""
    height = sum(row)
    ratios = (aspect * area / height**2 for area in row)
    return sum(max(ratio, 1 / ratio) for ratio in ratios) / len(row)


def change_word(relative_l2: float | None) -> str:
    """Say in which class of change a tensor is."""
    if relative_l2 is None:
        return _UNKNOWN
    return next(word for most, word, _ in _CHANGES if relative_l2 <= most)


def drawn_rows(description: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the tensors of `operations.description.describe` by name, each with its `parameters` and its `state`."""
    return {
        row["name"]: row
        | {"parameters": prod(row["shape"]) if is_parameter(row["name"], row["role"]) else 0}
        | {"state": "frozen" if row["frozen"] else "trained"}
        for row in description["tensors"]
    }


class Colouring(NamedTuple):
    """A way to colour tensors.

    Attributes:
        key: that a tensor's row has it under.
        label: for people.
        colours: by value, in the order of the legend.
    """

    key: str
    label: str
    colours: Mapping[str, str]


def colourings(rows: Sequence[Mapping[str, Any]]) -> list[Colouring]:
    """Return the ways to colour these tensors: by role, element type, frozen, and `change` where they have it."""
    values = {key: dict.fromkeys(row[key] for row in rows) for key in ("role", "dtype")}
    dtypes = {dtype: _PALETTE[i] if i < len(_PALETTE) else _GREY for i, dtype in enumerate(values["dtype"])}
    found = [
        Colouring("role", "role", {role: ROLE_COLOURS.get(role, _GREY) for role in values["role"]}),
        Colouring("dtype", "element type", dtypes),
        Colouring("state", "frozen", _FROZEN),
    ]
    if any("change" in row for row in rows):
        colours = {word: colour for _, word, colour in _CHANGES} | {_UNKNOWN: "#d55e00"}
        found.append(Colouring("change", "change", colours))
    return found


def together(rows: Sequence[Mapping[str, Any]], ways: Sequence[Colouring]) -> dict[tuple[str, ...], int]:
    """Sum the parameters of tensors that have one colour in every way.

    Args:
        rows: with `parameters` and what `ways` look at.
        ways: to colour them.

    Returns:
        Colours, one a way → parameters, above 0.
    """
    found: dict[tuple[str, ...], int] = {}
    for row in rows:
        if row["parameters"]:
            colours = tuple(way.colours[row[way.key]] for way in ways)
            found[colours] = found.get(colours, 0) + row["parameters"]
    return found


def area_map(blocks: Sequence[Mapping[str, Any]], inner: Sequence[str]) -> str:
    """Draw the map: a link for each block that is large enough, to `#block-N`.

    Args:
        blocks: with `name` and `parameters`.
        inner: the cells of each.
    """
    total = sum(block["parameters"] for block in blocks)
    large = [n for n, block in enumerate(blocks) if block["parameters"] > _SMALLEST * total]
    if not large:
        return ""
    parts = []
    for n, place in zip(large, strips([blocks[n]["parameters"] for n in large]), strict=True):
        style = ";".join(f"{side}:{value:.4g}%" for side, value in zip(place._fields, place, strict=True))
        column = ";flex-direction:column" if place.height > ASPECT * place.width else ""
        said = f"{text(blocks[n]['name'], 80)} <small>{blocks[n]['parameters'] / total:.1%}</small>"
        parts.append(f"<a href='#block-{n}' tabindex='-1' style='{style}{column}'>{inner[n]}<span>{said}</span></a>")
    return f"<div class='map' aria-hidden='true'>{''.join(parts)}</div>"
