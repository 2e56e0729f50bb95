"""docs/edits.md, the reference of the edits: written from what they declare.

`python tests/test_reference.py` writes it; the test demands that it is what would be written.
"""

import re
import typing
from dataclasses import fields
from pathlib import Path
from typing import Annotated

from typer.models import OptionInfo

from wsurgery.commands._shared import Part
from wsurgery.operations.declaration import Edit, Parameter
from wsurgery.registry import edits

PAGE = Path(__file__).parents[1] / "docs" / "edits.md"
HEAD = """# The edits

<!-- Written by tests/test_reference.py from what each edit declares: do not edit. -->

Every edit reads one checkpoint (`IN`: a file, a folder of shards, a URL, or standard input) or several, and writes one: to
standard output, or `-o FILE`, `-o DIR/`. All take `--force`, `--threads N`, `--dry-run`, `--no-digest`, `--shard-size SIZE`,
`--part K/N`, `--quiet` and `--debug`; those marked *part* take the selectors; those marked *draws* take `--seed N`.

"""


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<")


def usage(edit: Edit) -> str:
    words = [f"wsurgery {edit.name}"]
    common = False
    for parameter in edit.parameters.values():
        common |= parameter.is_checkpoint and not parameter.declared
        if parameter.is_argument and parameter.declared:
            words.append(parameter.info.metavar or parameter.name.upper())
    return " ".join([*words, *(["[IN]"] if common else [])])


def row(option: str, hint: typing.Any, default: typing.Any, info: OptionInfo) -> str:
    choices = [str(choice) for choice in re.findall(r"'([^']+)'", str(hint))] if "Literal" in str(hint) else []
    number = next((letter for kind, letter in (("int", "N"), ("float", "X")) if kind in str(hint)), "")
    metavar = info.metavar or "\\|".join(choices) or number
    value = f" {metavar}" if metavar and hint is not bool else ""
    given = "" if default in (None, False) or "Ellipsis" in str(default) else f" Default: {default}."
    return f"| `{option}{value}` | {cell(info.help or '')}{given} |"


def options(parameters: list[Parameter]) -> list[str]:
    return [
        row(parameter.option, parameter.hint, None if parameter.required else parameter.default, parameter.info)
        for parameter in parameters
        if not parameter.is_argument and parameter.declared
    ]


def text() -> str:
    parts = [HEAD, "| selector | |\n|---|---|\n"]
    for name, hint in typing.get_type_hints(Part, include_extras=True).items():
        assert typing.get_origin(hint) is Annotated
        parts.append(row(f"--{name.rstrip('_').replace('_', '-')}", str, None, hint.__metadata__[0]) + "\n")
    for name, edit in sorted(edits().items()):
        marks = [mark for mark, holds in (("part", edit.takes_part), ("draws", edit.draws)) if holds]
        title = f"\n## {name}" + (f" *({', '.join(marks)})*" if marks else "")
        examples = re.findall(r"Example: (.*)", edit.__doc__)
        said = re.sub(r"\s*Example: .*", "", edit.__doc__).strip()
        parts.append(f"{title}\n\n    {usage(edit)}\n\n{said}\n\n")
        if rows := options(list(edit.parameters.values())):
            parts.append("| option | |\n|---|---|\n" + "\n".join(rows) + "\n\n")
        parts.append("".join(f"    {example}\n" for example in examples))
    return "".join(parts)


def test_it_is_what_the_edits_declare():
    assert PAGE.read_text() == text(), "python tests/test_reference.py writes it anew"


def test_every_option_of_the_command_stands_in_it(invoke):
    for name, edit in edits().items():
        section = PAGE.read_text().partition(f"\n## {name}")[2].partition("\n## ")[0]
        shown = set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", invoke(name, "--help").stdout, re.MULTILINE))
        common = (
            {f"--{field.name.rstrip('_').replace('_', '-')}" for field in fields(Part)} if edit.takes_part else set()
        )
        common |= set(re.findall(r"--[\w-]+", HEAD)) | {"--output", "--help", "--json"}
        assert shown - common == set(re.findall(r"\| `(--[\w-]+)", section)), name


if __name__ == "__main__":
    PAGE.write_text(text())
