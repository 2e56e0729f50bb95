"""The experiments that come with the package: what there is, and a copy to change."""

import difflib
import re
import shutil
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path
from typing import NamedTuple

from wsurgery.errors import UsageError, printable
from wsurgery.untrusted import require_local


class Recipe(NamedTuple):
    """A recipe.

    Attributes:
        name: of its folder.
        about: the first sentence of its Makefile.
    """

    name: str
    about: str


def recipes() -> list[Recipe]:
    """Find the recipes, by their names."""
    with as_file(files("wsurgery.recipes")) as root:
        return [Recipe(path.parent.name, _about(path)) for path in sorted(root.glob("*/Makefile"))]


def copy_recipe(name: str, folder: Path) -> None:
    """Copy a recipe and the rules that it shares with the others.

    Args:
        name: the recipe.
        folder: where to; made if it is missing.

    Raises:
        UsageError: there is no such recipe, or the folder holds something.
    """
    known = [each.name for each in recipes()]
    if name not in known:
        near = [f"{near} is" for near in difflib.get_close_matches(name, known, n=1)]
        raise UsageError(
            f"there is no recipe {printable(name)}, {(*near, 'wsurgery recipe list names those that are')[0]}"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{printable(str(folder))} exists and is not an empty folder: name another")
    require_local(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with as_file(files("wsurgery.recipes")) as root:
        for path in _parts(root, name):
            shutil.copyfile(path, folder / path.name)


def _parts(root: Path, name: str) -> Iterator[Path]:
    yield from root.glob("*.mk")
    yield from (root / "cifar_resnet.py", root / "beyond.py")
    for path in (root / name).iterdir():
        if not path.name.startswith("RESULTS") and (path.name == "Makefile" or path.suffix in (".md", ".txt", ".py")):
            yield path


def _about(makefile: Path) -> str:
    lines = []
    for line in makefile.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        lines.append(line[2:])
    return re.split(r"(?<! et al)\. ", " ".join(lines))[0].rstrip(".")
