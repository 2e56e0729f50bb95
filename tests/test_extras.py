"""Which library comes with which extra, and what is said where one is missing."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_packaging import PROJECT, ROOT
from wsurgery.extras import remedy

BASE = {re.match(r"[\w.-]+", line)[0].replace("-", "_") for line in PROJECT["project"]["dependencies"]}
TRAINING = ("data", "figures", "models", "similarity", "training")  # the rooms above the wall


def libraries(files) -> set[str]:
    """The top-level modules that files import, wherever they do, but for Python's own and ours."""
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"wsurgery", "_typeshed"}


def test_every_library_is_of_the_base_or_of_an_extra():
    imported = libraries(file for folder in ("wsurgery", "commands") for file in (ROOT / folder).rglob("*.py"))
    with_torch = {"triton"}  # which torch brings where there is one, and nobody needs
    unknown = {name for name in imported - BASE - with_torch if remedy(ModuleNotFoundError(name=name)) is None}
    assert unknown == set()


def test_surgery_needs_every_library_of_the_base():
    files = [path for path in (ROOT / "wsurgery").rglob("*.py") if path.parts[len(ROOT.parts) + 1] not in TRAINING]
    assert libraries([*files, *(ROOT / "commands").glob("*.py")]) >= BASE


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("torch", "needs torch: pip install 'wsurgery[train]'"),
        ("PIL", "needs pillow: pip install 'wsurgery[train]'"),
        ("markdown_it", "needs markdown-it-py: pip install 'wsurgery[train]'"),
        ("s3fs", "needs s3fs: pip install 'wsurgery[remote]'"),
        ("tensorboard", "needs tensorboard: pip install 'wsurgery[tensorboard]'"),
        ("torch.nothing", None),  # torch is there, and is another one than it should be
        ("numpy", None),
        ("wsurgery.nothing", None),
    ],
)
def test_an_extra_is_named_for_a_library_of_its_own_only(module, said):
    assert remedy(ModuleNotFoundError(name=module)) == said


@pytest.mark.parametrize("missing", ["wsurgery.checkpoint.reader", "torch"])
def test_a_module_that_no_extra_brings_and_debug_end_in_a_traceback(missing, tmp_path):
    block = "import sys, runpy; sys.modules[sys.argv.pop(1)] = None; runpy.run_module('wsurgery', run_name='__main__')"
    words = ["init", "vit_tiny_patch16_224", "-o", "x", "--debug"] if missing == "torch" else ["show", "x"]
    done = subprocess.run([sys.executable, "-c", block, missing, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert list(Path(tmp_path).iterdir()) == []
