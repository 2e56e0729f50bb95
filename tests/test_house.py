"""The rooms of the house as the imports draw them, held against the drawing and the table of docs/house.md.

An import counts wherever it stands: at the head of a module, inside a function, or under TYPE_CHECKING, for who names a
type knows the room that it is from.
"""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "house.md").read_text(encoding="utf-8")
HEAVY = {"torch", "torchvision", "timm", "scipy", "matplotlib", "sklearn"}
TOP = "commands"
ABOVE_ALL = {
    f"wsurgery.{name}" for name in ("__main__", "command_line", "pipeline", "registry", "replay", "studies")
}  # they stand on the top room
DOORS = {"wsurgery.plugin": "operations"}  # modules beside a room that are part of it


class Room(NamedTuple):
    """The rooms that a room uses, and the heavy libraries."""

    uses: set[str]
    heavy: set[str]


def table() -> dict[str, Room]:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("| `")]
    return {
        name.strip("`"): Room(PACKAGES - {TOP} if uses == "all" else set(re.findall(r"\w+", uses)), set(heavy.split()))
        for name, _, uses, heavy in rows
    }


def drawing() -> tuple[dict[str, int], set[str]]:
    """Return the floor of each room in the drawing, and the rooms left of the wall."""
    drawn = ElementTree.parse(ROOT / "docs" / "assets" / "house.svg").getroot()
    wall = next(float(each.attrib["x1"]) for each in drawn.iter() if each.get("id") == "wall")
    floors, left = {}, set()
    for floor in drawn.iter("{http://www.w3.org/2000/svg}g"):
        for name in (each for each in floor if each.get("class") == "name" and each.text):
            floors[name.text] = int(floor.attrib["id"].removeprefix("floor-"))
            left |= {name.text} if float(name.attrib["x"]) < wall else set()
    return floors, left


def parse() -> dict[str, ast.Module]:
    """Parse every module, by its name when installed."""
    paths = {path.relative_to(ROOT): path for path in sorted((ROOT / "wsurgery").rglob("*.py"))}
    paths |= {"wsurgery" / path.relative_to(ROOT): path for path in sorted((ROOT / TOP).rglob("*.py"))}
    return {
        ".".join(name.with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text(encoding="utf-8"))
        for name, path in paths.items()
    }


MODULES = parse()
PACKAGES = {path.parent.name for path in (ROOT / "wsurgery").glob("*/__init__.py")} - {"studies"} | {TOP}


def imported(tree: ast.Module) -> Iterator[str]:
    """Name what a module imports: modules, and packages of which it takes something else."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            assert node.level == 0, f"from {'.' * node.level}{node.module}: write the whole name"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in whole)


IMPORTS = {name: set(imported(tree)) for name, tree in MODULES.items()}


def room_of(module: str) -> str | None:
    """Return the room of a module; None for one that lies beside them."""
    if module in ABOVE_ALL or module.rpartition(".")[0] in ABOVE_ALL:
        return TOP
    if module in DOORS:
        return DOORS[module]
    package = module.split(".")[1] if "." in module else ""
    return package if package in PACKAGES else None


def drawn() -> dict[str, Room]:
    """The rooms as the imports draw them."""
    found = {room: Room(set(), set()) for room in sorted(PACKAGES)}
    for module, names in IMPORTS.items():
        if room := room_of(module):
            others = {room_of(name) for name in names if name in MODULES}
            found[room].uses.update(others - {room, None})
            beside = {name for name in names if name in MODULES and room_of(name) is None}
            reached = names.union(*(IMPORTS[name] for name in beside))
            found[room].heavy.update({name.partition(".")[0] for name in reached} & HEAVY)
    return found


@pytest.mark.parametrize("room", sorted(PACKAGES))
def test_a_room_uses_what_the_table_says_and_no_more(room: str) -> None:
    said, found = table()[room], drawn()[room]
    assert found.heavy == said.heavy
    assert found.uses <= said.uses
    assert room == TOP or said.uses <= found.uses, "the table has an arrow that no import draws"


def test_the_table_has_every_room_and_no_other() -> None:
    assert set(table()) == PACKAGES


def test_the_drawing_has_every_room_on_its_lowest_floor() -> None:
    uses = {room: found.uses for room, found in drawn().items()}
    floors: dict[str, int] = {}
    for room in TopologicalSorter(uses).static_order():
        floors[room] = max((floors[other] + 1 for other in uses[room]), default=0)
    assert drawing()[0] == floors


def test_no_arrow_crosses_the_wall_from_the_left() -> None:
    left = drawing()[1]
    assert left
    for room in left:
        assert table()[room].heavy <= {"scipy"}, room  # inside functions only: ruff's TID253
        assert table()[room].uses <= left, room


def test_what_lies_beside_the_rooms_is_named_and_uses_none() -> None:
    beside = {module for module in MODULES.keys() - ABOVE_ALL - {"wsurgery"} if room_of(module) is None}
    named = re.findall(r"`(\w+)`", PAGE.split("Beside the rooms lie ")[1].split(", which")[0])
    assert {f"wsurgery.{name}" for name in named} == beside
    for module in beside:
        assert {room_of(name) for name in IMPORTS[module] if name in MODULES} <= {None}, module


def test_no_import_runs_in_a_circle() -> None:
    graph = {module: IMPORTS[module] & MODULES.keys() for module in MODULES}
    TopologicalSorter(graph).prepare()  # a CycleError names the circle


def test_no_two_modules_of_different_rooms_have_one_name() -> None:
    names = [module.split(".") for module in MODULES if room_of(module) not in (TOP, None)]
    modules = [parts[-1] for parts in names if len(parts) > 2]
    assert sorted({name for name in modules if modules.count(name) > 1}) == []
