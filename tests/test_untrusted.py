import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from wsurgery.errors import WsurgeryError
from wsurgery.untrusted import open_own, open_regular, parse_json, read_regular


@dataclass
class Point:
    x: float
    name: str | None = None


@pytest.mark.parametrize(
    "text",
    ["", "[", '{"x": "1"}', '{"x": 1, "name": 2}', "{}", "[1]", '{"x": ' + "9" * 5001 + "}", "[" * 100_000, b"\xff"],
    ids=["empty", "cut off", "a string", "a number", "missing", "a list", "5,001 digits", "deep", "no UTF-8"],
)
def test_json_of_another_type_is_refused_in_one_line_with_the_name(text: str | bytes) -> None:
    with pytest.raises(WsurgeryError, match=r"^run/a\\x1b\.json is not what wsurgery writes: [^\n]+$"):
        parse_json(text, Point, "run/a\x1b.json")


def test_json_of_the_type_comes_in_as_python_wrote_it() -> None:
    assert parse_json(json.dumps({"x": 0.1, "name": "a"}), Point, "") == Point(0.1, "a")
    assert math.isnan(parse_json(json.dumps({"x": math.nan}), Point, "").x)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs")
def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(WsurgeryError, match=r"a\.png is not a regular file"):
        open_regular(tmp_path / "a.png")


def test_a_file_is_read_up_to_a_bound(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"1234")
    assert read_regular(file, 4) == b"1234"
    with pytest.raises(WsurgeryError, match="larger than 3 bytes"):
        read_regular(file, 3)


@pytest.mark.parametrize("mode", ["ab", "wb", "r+b"])
def test_what_is_written_in_place_is_no_link_and_no_device(tmp_path: Path, mode: Literal["ab", "wb", "r+b"]) -> None:
    target, link = tmp_path / "theirs", tmp_path / "log.jsonl"
    target.write_bytes(b"1234")
    link.symlink_to(target)
    with pytest.raises(WsurgeryError, match=r"log\.jsonl is a symbolic link"):
        open_own(link, mode)
    assert target.read_bytes() == b"1234"
    with pytest.raises(WsurgeryError, match="is not a regular file"):
        open_own(os.devnull, mode)
    with open_own(target, mode) as stream:
        stream.write(b"5")
    assert target.read_bytes() == {"ab": b"12345", "wb": b"5", "r+b": b"5234"}[mode]
