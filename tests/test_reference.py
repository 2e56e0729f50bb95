"""docs/commands.md, the reference of the commands: written from what they declare, with the laws and sources of tests/laws.

`python -m tests.test_reference` writes it; the test demands that it is what would be written.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tests.laws import LAWS, OF_EVERY_EDIT, SOURCES, Law
from tests.test_packaging import COMMANDS
from wsurgery.command_line import _GROUPS
from wsurgery.commands._shared import Part
from wsurgery.registry import edits

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "commands.md"
HEAD = """# Every command

<!-- Written by tests/test_reference.py from what each command declares: do not edit. -->

`wsurgery COMMAND --help` says the same. Every command takes `--debug`, which shows a traceback where something fails.

An edit reads one checkpoint (`IN`: a file, a folder of shards, a URL, or standard input) or several, and writes one: to
standard output, or `-o FILE`, `-o DIR/`. All edits take `--output`, `--force`, `--threads N`, `--dry-run`, `--no-digest`,
`--shard-size SIZE`, `--part K/N` and `--quiet`; those marked *part* take the selectors; those marked *draws* take `--seed N`.

"""
OF_ALL = """
**Laws** are what always holds, each with the test of the repository that checks it. Those of every edit stand here, a command's
own beside it; **sources** are papers that its help does not name.

"""
COMMON = {"--help", *re.findall(r"--[\w-]+", HEAD)}
SELECTORS = {f"--{field.name.rstrip('_').replace('_', '-')}" for field in fields(Part)}


KINDS = {"<int range>": "N", "<int>": "N", "<float range>": "X", "<float>": "X", " <str>": "", " <path>": ""}


def is_argument(parameter: Any) -> bool:
    return parameter.param_type_name == "argument"


def usage(words: tuple[str, ...]) -> str:
    context = COMMANDS[words].make_context("", [], resilient_parsing=True)
    names = [piece for each in COMMANDS[words].params if is_argument(each) for piece in each.get_usage_pieces(context)]
    plain = [re.sub(r"[{}]|\.\.\.$", "", name).replace("[[", "[").replace("]]", "]") for name in names]
    return " ".join(["wsurgery", *words, *plain])


def row(parameter: Any, context: Any) -> str:
    """A line of a command's --help as a row of a table."""
    shown, said = parameter.get_help_record(context)
    for typed, letter in KINDS.items():
        shown = shown.replace(typed, letter)
    shown = re.sub(r" <(.*)>$", r" \1", shown).removeprefix("-o, ").replace("[IN]", "IN").replace("|", "\\|")
    said, _, more = said.partition("  [")
    for each in more.rstrip("]").split("; ") if more else ():
        limits = each.replace("<=", " ≤ ").replace(">=", " ≥ ").replace("<", " < ").replace(">", " > ")
        said += f" {limits}." if limits != each else f" {each[0].upper()}{each[1:]}."
    said = re.sub(r"([|<*[])", r"\\\1", " ".join(said.split()))
    return f"| `{shown}` | {said} |"


def options(words: tuple[str, ...]) -> Iterator[Any]:
    """What a command's own table has: of an edit, not what all edits take."""
    name, common = words[0], {"--help", "--debug"}
    if name in edits():
        common = COMMON | ({"--seed"} if edits()[name].draws else set())
        common |= SELECTORS if edits()[name].takes_part else set()
    for parameter in COMMANDS[words].params:
        in_usage = is_argument(parameter) and (name in edits() or not parameter.help)
        if not in_usage and not common & set(parameter.opts):
            yield parameter


def section(words: tuple[str, ...]) -> str:
    name, command = words[0], COMMANDS[words]
    marks = []
    if name in edits():
        marks = [m for m, holds in (("part", edits()[name].takes_part), ("draws", edits()[name].draws)) if holds]
    said, *examples = re.split(r"\s*Example: ", command.help.strip())
    text = f"\n### {' '.join(words)}" + (f" *({', '.join(marks)})*" if marks else "") + f"\n\n    {usage(words)}\n\n"
    text += said.strip() + "\n\n"
    context = command.make_context("", [], resilient_parsing=True)
    if rows := [row(each, context) for each in options(words)]:
        text += "| option | |\n|---|---|\n" + "\n".join(rows) + "\n\n"
    text += "".join("    " + example.strip().replace("\n", "\n    ") + "\n" for example in examples)
    text += f"\n**Laws**\n\n{listed(LAWS[' '.join(words)])}"
    sources = SOURCES.get(" ".join(words), ())
    return text + (f"\n**Sources**: {'; '.join(sources)}.\n" if sources else "")


def listed(laws: list[Law]) -> str:
    return "".join(f"- {law.sentence} `{law.test}`\n" for law in laws)


def text() -> str:
    edit = COMMANDS["meanvar",]
    context = edit.make_context("", [], resilient_parsing=True)
    selectors = [row(each, context) + "\n" for each in edit.params if SELECTORS & set(each.opts)]
    parts = [HEAD, "| selector | |\n|---|---|\n", *selectors, OF_ALL, listed(OF_EVERY_EDIT)]
    for title, lines in _GROUPS.items():
        parts.append(f"\n## {title}\n")
        parts += [section(words) for name in sorted(lines) for words in sorted(COMMANDS) if words[0] == name]
    return "".join(parts)


def test_it_is_what_the_commands_declare():
    assert PAGE.read_text() == text(), "python -m tests.test_reference writes it anew"


def test_every_option_of_every_command_stands_in_it(invoke):
    """As a command's own help lists them."""
    for words in COMMANDS:
        there = PAGE.read_text().partition(f"\n### {' '.join(words)}")[2].partition("\n## ")[0].partition("\n### ")[0]
        shown = set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", invoke(*words, "--help").stdout, re.MULTILINE))
        marks = there.partition("\n")[0]
        common = (COMMON if words[0] in edits() else {"--help", "--debug"}) | (SELECTORS if "part" in marks else set())
        common |= {"--seed"} if "draws" in marks else set()
        assert shown - common == set(re.findall(r"^\| `(--[\w-]+)", there, re.MULTILINE)) - common, words


def test_every_command_has_a_law_and_no_other_name_has():
    assert LAWS.keys() == {" ".join(words) for words in COMMANDS}
    assert all(LAWS.values())
    assert SOURCES.keys() <= LAWS.keys()


@pytest.mark.parametrize("laws", [OF_EVERY_EDIT, *LAWS.values()], ids=["of every edit", *LAWS])
def test_a_law_is_a_line_and_its_test_is_there_and_named_once(laws):
    assert len({law.test for law in laws}) == len(laws)
    assert laws is OF_EVERY_EDIT or {law.test for law in laws}.isdisjoint(law.test for law in OF_EVERY_EDIT)
    for sentence, test in laws:
        assert re.fullmatch(r"[^\n]{1,109}\.", sentence), sentence
        file, _, name = test.partition("::")
        found = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
        assert name in {each.name for each in found if isinstance(each, ast.FunctionDef)}, test
        assert name.startswith("test_")


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_is_not_named_by_the_help_as_well(name):
    said = COMMANDS[tuple(name.split())].help
    assert not [source for source in SOURCES[name] for number in re.findall(r"\d{4}\.\d{5}", source) if number in said]


if __name__ == "__main__":
    PAGE.write_text(text())
