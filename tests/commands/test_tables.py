import csv
import io
import os
import pty
import re
import subprocess
import sys
import termios

import pytest
from rich.console import Console
from rich.table import Table

from tests.conftest import said_on
from wsurgery.commands._tables import fitted

NUMBERS = {"mean": "-8.888e-05", "interval": "-0.2071 to +0.0256", "counts": "25 / 35 / 0", "n": "1,234,567"}


def printed(table: Table, width: int, *expendable: str) -> tuple[str, list[str]]:
    console = Console(width=width, file=io.StringIO())
    parts, left_out = fitted(table, console, expendable=expendable)
    for part in parts:
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue(), left_out


def a_table(**look) -> Table:
    table = Table("name", "role", **look)
    for heading in NUMBERS:
        table.add_column(heading, justify="right")
    for name in ("layer1.0.bn1.num_batches_tracked", "fc"):
        table.add_row(name, "batch_norm", *NUMBERS.values())
    return table


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
@pytest.mark.parametrize("look", [{"box": None, "pad_edge": False}, {}], ids=["plain", "boxed"])
def test_no_word_of_a_number_is_broken_and_no_line_is_too_long(look, width):
    text, left_out = printed(a_table(**look), width, "role")
    words = text.replace("│", " ").split()
    for number in NUMBERS.values():
        for word in number.split():
            assert words.count(word) >= 2
    assert max(map(len, text.splitlines())) <= width
    assert left_out == ([] if "batch_norm" in text else ["role"])
    assert "fc" in words


def test_where_there_is_room_the_table_is_the_same():
    table = a_table()
    assert fitted(table, Console(width=200), expendable=["role"]) == ([table], [])


@pytest.mark.skipif(sys.version_info < (3, 11), reason="cannot set a terminal's size")
def test_numbers_of_show_are_whole_on_a_terminal_of_80_columns(resnet, invoke):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 80))
    arguments = [sys.executable, "-m", "wsurgery", "show", resnet.name, "--stats"]
    with subprocess.Popen(
        arguments, cwd=resnet.parent, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"}
    ):
        os.close(theirs)
        said = re.sub("\x1b\\[[0-9;]*m", "", said_on(ours).decode())
    assert max(map(len, said.splitlines())) <= 80
    rows = csv.DictReader(invoke("show", resnet, "--csv", "--stats").stdout.splitlines())
    means = {f"{float(row['mean']):.4g}" for row in rows if row["mean"]}
    assert len(means) > 1
    assert means <= set(said.split())
