"""The pages: what they show is run, and what it prints compared; everything has its place in them.

In a block of `console` a line that begins with `$ ` is run, with the lines that it is continued on, in a folder of the page's
own; what it prints, on both outputs, stands below, `...` for what may be anything. Blocks of `pycon` are a session of Python,
whose digits are not compared. A comment above a block says more:

- `<!-- not run: WHY -->`;
- `<!-- numbers vary -->`: the digits depend on the machine;
- `<!-- beforehand: COMMAND -->`: it is run first, and not shown;
- `<!-- file: NAME -->`: what is in the block, of any kind, is put into the folder.

A page on which something is trained is slow. `python tests/test_docs.py PAGE...` writes what is printed now into the pages.
"""

import doctest
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

import wsurgery
from tests.test_packaging import COMMANDS, ROOT
from wsurgery.data.sources import ADAPTERS, SCHEMES
from wsurgery.similarity.metric_names import METRICS

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FIRST = ROOT / "docs" / "tutorials" / "first-pipeline.md"  # tests/test_light_install.py follows it
BLOCK = re.compile(r"(?:<!-- ([^\n]*) -->\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
STEP = re.compile(r"^\$ ((?:.*\\\n)*.*\n)((?:(?!\$ ).*\n)*)", re.MULTILINE)
Check = Callable[[str, str, str, bool], None]


def has_console(page: Path) -> bool:
    return any(
        kind == "console" and not (said or "").startswith("not run")
        for said, kind, _ in BLOCK.findall(page.read_text())
    )


def runner(folder: Path, python: Path) -> Callable[[str], str]:
    """Return what runs a command in a folder, where there is what a Python has, and returns what it printed."""
    path = f"{python.parent}:{os.environ['PATH']}"
    terminal = {"PATH": path, "COLUMNS": "110", "PYTHONDONTWRITEBYTECODE": "1", "OMP_WAIT_POLICY": "passive"}

    def run(command: str) -> str:
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **terminal},
            timeout=600,
        )
        printed = "".join(line.rstrip() + "\n" for line in done.stdout.decode().splitlines())
        assert "Traceback" not in printed, printed
        return printed

    return run


def as_printed(shown: str, printed: str, *, numbers: bool) -> bool:
    """Whether what a page shows is what was printed."""
    if not numbers:
        shown, printed = (re.sub(r"\d+([.,]\d+)*|[ ─━]+", " ", text) for text in (shown, printed))
    pattern = ".*".join(map(re.escape, shown.strip("\n").split("...")))
    return re.fullmatch(pattern, printed.strip("\n"), re.DOTALL) is not None


def agrees(command: str, shown: str, printed: str, numbers: bool) -> None:
    """Demand that what a page shows is what was printed."""
    assert as_printed(shown, printed, numbers=numbers), f"$ {command}{printed}"


def followed(text: str, folder: Path, check: Check | None = None, *, python: Path = Path(sys.executable)) -> str:
    """Run what a page shows; return the page with what was printed where that is something else."""
    run = runner(folder, python)

    def block(found: re.Match[str]) -> str:
        said, kind, content = found[1] or "", found[2], found[3]
        if said.startswith("file: "):
            (folder / said.removeprefix("file: ")).write_text(content)
        if said.startswith("beforehand: "):
            run(said.removeprefix("beforehand: "))
        if kind != "console" or said.startswith("not run"):
            return found[0]

        def step(each: re.Match[str]) -> str:
            command, shown, printed, numbers = each[1], each[2], run(each[1]), said != "numbers vary"
            if check:
                check(command, shown, printed, numbers)
            same = as_printed(shown, printed, numbers=True)
            return each[0] if same else f"$ {command}{printed}" + "\n" * shown.endswith("\n\n")

        return found[0].replace(content, STEP.sub(step, content))

    return BLOCK.sub(block, text)


class LikeAPage(doctest.OutputChecker):
    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return as_printed(want, got, numbers=False)


def slow(page: Path) -> bool:
    return re.search(r"^(\$|>>>) .*wsurgery.train\b", page.read_text(), re.MULTILINE) is not None


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=str(page.relative_to(ROOT)), marks=[pytest.mark.slow] if slow(page) else [])
        for page in PAGES
        if has_console(page) and page != FIRST
    ],
)
def test_what_a_page_shows_is_what_is_printed(page, tmp_path):
    followed(page.read_text(), tmp_path, agrees)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if "```pycon" in page.read_text()], ids=lambda page: page.stem)
def test_a_session_of_python_prints_what_a_page_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = "\n".join(content for _, kind, content in BLOCK.findall(page.read_text()) if kind == "pycon")
    test = doctest.DocTestParser().get_doctest(session, {}, page.stem, str(page), 0)
    said: list[str] = []
    failed, tried = doctest.DocTestRunner(LikeAPage()).run(test, out=said.append)
    assert (failed, tried > 0) == (0, True), "".join(said)


def test_the_tests_of_equivalence_give_what_is_said_of_them():
    (code,) = (
        content for _, kind, content in BLOCK.findall((ROOT / "docs" / "statistics.md").read_text()) if kind == "python"
    )
    of_auc, of_steps = (re.sub(r"#.*", "", line) for line in code.splitlines() if line.startswith("equivalence("))
    given: dict[str, object] = {}
    exec(code, given)
    assert eval(of_auc, given) == 1 / 32
    assert eval(of_steps, given) > 0.05


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_not_run_says_why(page):
    for said, kind, content in BLOCK.findall(page.read_text()):
        assert kind != "sh" or (said or "").startswith("not run: "), content


LINE = re.compile(r"""wsurgery [a-z-]+ (?:'[^'\n]*'|"[^"\n]*"|[^'"|;>&\n])*""")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_not_run_is_accepted_by_the_command_line(page):
    """Commands in blocks that are not run, and in the cells of tables."""
    text = page.read_text().replace("\\\n", " ")
    shown = [content for said, _, content in BLOCK.findall(text) if (said or "").startswith("not run")]
    shown += [
        cell for row in re.findall(r"^\|.*", text, re.MULTILINE) for cell in re.findall(r"`(wsurgery [^`]*)`", row)
    ]
    for line in LINE.findall("\n".join(shown).replace("\\|", "|")):
        typed = shlex.split(re.sub(r"\$\w+|\$\(\(.*?\)\)", "1", line), comments=True)
        words = next(words for words in COMMANDS if list(words) == typed[1 : 1 + len(words)])
        COMMANDS[words].make_context("wsurgery", typed[1 + len(words) :])


def test_the_navigation_names_every_page():
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]))
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]}
    assert pages <= listed
    assert listed - pages - {"index.md"} == {name for name in listed if (ROOT / name).is_file() and name not in pages}


def test_everything_has_its_place():
    pages = {page.name: page.read_text() for page in PAGES}
    missing = [name for name in METRICS if f"`{name}`" not in pages["similarity.md"]]
    missing += [name for name in [*SCHEMES, *ADAPTERS] if f"`{name}:" not in pages["data.md"]]
    named = set(re.findall(r"\w+", pages["api.md"]))
    missing += [name for name in dir(wsurgery) if name[0] != "_" and name not in named]
    missing += [words for words in COMMANDS if f"\n### {' '.join(words)}" not in pages["commands.md"]]
    assert missing == []


if __name__ == "__main__":
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            Path(name).write_text(followed(Path(name).read_text(), Path(folder)))
