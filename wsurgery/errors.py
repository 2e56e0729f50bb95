"""The errors that a user can cause, each one line: what is wrong, where, what to do; and text that others wrote, made safe."""

import csv
import json
import re
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

_LOGIN = re.compile(
    r"""\b([a-z][a-z0-9+.-]+[:;]/+|https?[:;]|(?:https?|s3|hf)//)  # a URL, mistyped or not
    (?:[^\s/?#]*@                        # a login without a character that should have been escaped
    |[^\s/?#:@]*:(?!\d*(?:[/?#]|$))[^\s@]*@)  # or with one: what stands behind the colon is no port""",
    re.IGNORECASE | re.VERBOSE,
)
_SIGNATURE = re.compile(r"([?&][\w.-]*(?:sig|token|secret|key|credential|password)[\w.-]*=)[^&\s#]+", re.IGNORECASE)


class WsurgeryError(Exception):
    """Bad data: a broken file, a shape that does not fit. Exit status 1."""

    exit_status = 1


class UsageError(WsurgeryError):
    """A command that cannot mean anything: an unknown block, a missing argument. Exit status 2."""

    exit_status = 2


def printable(text: str, limit: int = 200) -> str:
    """Escape control characters and cut `text` at `limit` characters, so a hostile name cannot drive a terminal."""
    escaped = text
    if not text.isprintable():
        escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return escaped if len(escaped) <= limit else escaped[: limit - 1] + "…"


def redacted(text: str) -> str:
    """Leave out of a text what the URLs in it have of logins and signatures, also where they are mistyped."""
    return _SIGNATURE.sub(r"\1…", _LOGIN.sub(r"\1", text)) if ":" in text or "=" in text else text


def located(error: BaseException, is_theirs: Callable[[FrameType], bool]) -> str | None:
    """Say in one line an error that somebody else's code raised, and where: `clip.py, line 9: KeyError: 'x'`.

    Args:
        error: as it was caught.
        is_theirs: whether a frame of its traceback is of that code. The innermost one counts.

    Returns:
        None if none is.
    """
    said = printable(" ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":"), 500)
    if isinstance(error, SyntaxError) and error.filename:
        return f"{printable(Path(error.filename).name)}, line {error.lineno}: {said}"
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if is_theirs(frame):
            return f"{printable(Path(frame.f_code.co_filename).name)}, line {line}: {said}"
    return None


def printable_json(value: Any) -> str:
    """Write JSON, indented, for a terminal or a file: control and bidirectional characters as escapes, all others as they are."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    return "\n".join(
        line if line.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)
        for line in text.split("\n")
    )


def table_cell(text: str) -> str:
    """Write text as a cell of a CSV file that a spreadsheet does not take for a formula, as OWASP has it; numbers stay.

    `plain_cell` takes it back.
    """
    return f"'{text}" if _FORMULA.match(text) and not _is_number(text) else text


def plain_cell(cell: str) -> str:
    """Return the text of which `table_cell` made a cell."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


class _Lines(list[str]):
    def write(self, line: str) -> None:
        self.append(f"{line[:-2]}\n")


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Write rows as CSV whose lines end in \\n; a cell with a line break of any kind is quoted."""
    lines = _Lines()
    csv.writer(lines, lineterminator="\r\n").writerows(rows)  # before 3.13 it quotes only the breaks that are in it
    return "".join(lines)


_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
