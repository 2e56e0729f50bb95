"""What an installed copy, a newcomer and the help need: laws about the repository as a whole."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from wsurgery import __version__
from wsurgery.checkpoint.opening import open_checkpoint
from wsurgery.checkpoint.provenance import History
from wsurgery.command_line import build_app

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def leaves(group, prefix=()):
    """Every command that can be typed, by its words."""
    for name, entry in group.commands.items():
        if hasattr(entry, "commands"):
            yield from leaves(entry, (*prefix, name))
        else:
            yield (*prefix, name), entry


APP = build_app()
COMMANDS = dict(leaves(typer.main.get_command(APP)))


def files_of_git() -> list[str]:
    """Return the files that git has, by their names from the root, or skip where there is no git."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True)
    if listed.returncode:
        pytest.skip("this is no git repository")
    return [name for name in listed.stdout.decode().split("\0")[:-1] if (ROOT / name).is_file()]


def example(command) -> str:
    return command.help.partition("Example: ")[2].split("\n\n")[0].replace("\n", " ")


def test_every_module_of_commands_is_a_command():
    modules = {path.stem for path in (ROOT / "commands").glob("[!_]*.py")}
    assert modules == {words[0].replace("-", "_") for words in COMMANDS}


def test_the_list_of_commands_is_in_groups_of_whole_lines_at_80_columns():
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(APP, ["--help"]).stdout
    groups = ("Surgery", "Look", "Data and training", "Figures")
    lists = [shown.partition(f"\n{title}:\n")[2].partition("\n\n")[0].splitlines() for title in groups]
    lines = [line for one in lists for line in one]
    assert all(lists)
    assert sorted(line.split()[0] for line in lines) == sorted({words[0] for words in COMMANDS})
    for line in lines:
        assert re.fullmatch(r"  [a-z-]+ {2,}[^ ].*\w[.?]", line), line
        assert len(line) <= 80
    assert "..." not in shown.partition("\nSurgery:")[2]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_commands_help_has_an_example(words):
    done = CliRunner(env={"COLUMNS": "200"}).invoke(APP, [*words, "--help"])
    assert (done.exit_code, done.stderr) == (0, "")
    assert "Example: wsurgery " in done.stdout
    assert f"wsurgery {' '.join(words)}" in example(COMMANDS[words])
    for parameter in COMMANDS[words].params:
        assert parameter.help, f"{parameter.name} has no help"


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_examples_are_accepted_by_the_command_line(words):
    for stage in re.split(r" [|>] ", example(COMMANDS[words])):
        typed = shlex.split(stage)
        if typed[0] != "wsurgery":
            continue
        found = next(key for key in COMMANDS if list(key) == typed[1 : 1 + len(key)])
        COMMANDS[found].make_context("wsurgery", typed[1 + len(found) :])


def test_the_readme_names_every_command():
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("there is no README.md yet")
    text = readme.read_text()
    missing = [" ".join(words) for words in COMMANDS if not re.search(rf"\b{words[-1]}\b", text)]
    assert missing == []
    assert len(text.splitlines()) <= 200


def test_the_module_runs_as_a_command():
    done = subprocess.run([sys.executable, "-m", "wsurgery", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"wsurgery {__version__}\n"), done.stderr
    assert __version__ == PROJECT["project"]["version"]
    assert PROJECT["project"]["scripts"]["wsurgery"] == "wsurgery.__main__:main"


def test_all_that_name_the_version_agree(resnet, tmp_path, wsurgery):
    """What `--version` prints is held above; a record, the changelog and the citation say the same."""
    wsurgery("scale", resnet, "--by", 2, "-o", tmp_path / "scaled")
    with open_checkpoint(tmp_path / "scaled") as scaled:
        assert History.of(scaled).log[-1]["version"] == __version__
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == __version__
    assert re.search(r"^version: (\S+)", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == __version__


def test_no_tracked_file_names_a_folder_of_the_machine_that_it_was_written_on():
    machine = re.compile(rb"(?<![\w.])/(root|work|Users)/|\bwork-?place", re.IGNORECASE)
    for name in files_of_git():
        found = machine.search((ROOT / name).read_bytes())
        assert found is None, f"{name}: {found[0].decode()}"
