"""What others wrote, made safe to print and to keep in a table."""

import csv
import io
import json

from hypothesis import example, given
from hypothesis import strategies as st

from wsurgery.errors import plain_cell, printable_json, table_cell

TEXTS = st.text(st.characters(exclude_categories=("Cs",)))


@example("\x1b[2J\u202e\x7f\x9b\U000e0001é")
@given(TEXTS)
def test_json_drives_no_terminal_says_the_same_and_keeps_what_can_be_read(text):
    value = {"a": [text, 1.5], text: None}
    written = printable_json(value)
    assert json.loads(written) == value
    assert all(line.isprintable() for line in written.split("\n"))
    if text.isprintable():
        assert written == json.dumps(value, indent=2, ensure_ascii=False)


@example("=cmd|' /C calc'!A0")
@example("'=1")
@example("'''@x")
@example("-x")
@given(st.one_of(TEXTS, st.from_regex(r"\A'*[=+@\t\r-].*\Z")))
def test_a_cell_begins_no_formula_and_the_text_comes_back(text):
    stream = io.StringIO()
    csv.writer(stream).writerow([table_cell(text)])
    [[cell]] = csv.reader(io.StringIO(stream.getvalue(), newline=""))
    assert plain_cell(cell) == text
    assert cell[:1] not in ("=", "@", "\t", "\r")
    if cell.startswith(("+", "-")):
        float(cell)


def test_numbers_stay_numbers():
    assert [table_cell(text) for text in ("-1", "+2.5e-3", "7", "")] == ["-1", "+2.5e-3", "7", ""]
