"""Time in proportion to the number of tensors: four times as many take four times as many calls, reads and writes."""

import json
import os
import struct
import sys
from collections import Counter

import pytest

FEW, MANY = 1000, 4000
MOST = 4.5  # times as many calls


def write_many(path, n: int) -> None:
    """Write n tensors of two elements each, a module each."""
    fields = {
        f"blocks.{i}.v.weight": {"dtype": "F32", "shape": [2], "data_offsets": [8 * i, 8 * i + 8]} for i in range(n)
    }
    header = json.dumps(fields).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<ff", 1.0, 2.0) * n)


COMMANDS = {
    "scale": "scale {0} --by 2 -o x --threads 1",
    "meanvar": "meanvar {0} -o x --threads 1",
    "cast": "cast {0} --to bf16 -o x --threads 1",
    "drop": "drop {0} --only *[13579].v.weight -o x",
    "rename": "rename blocks b {0} -o x",
    "average": "average {0} {0} -o x --threads 1",
    "transfuse": "transfuse {0} --only *[13579].v.weight --into {0} -o x",
    "freeze-spec": "freeze-spec {0} --only *[13579].v.weight -o x",
    "convert": "convert {0} -o x",
    "shards": "scale {0} --by 2 -o shards/ --shard-size 8kB --threads 1",
    "diff": "diff {0} {0} --json --threads 1",
    "show": "show {0} --stats --json --threads 1",
    "diff table": "diff {0} {0} --tensors --threads 1",
    "show table": "show {0} --stats --threads 1",
    "digest": "digest {0}",
}


@pytest.mark.parametrize("line", COMMANDS.values(), ids=COMMANDS)
def test_calls_grow_as_the_number_of_tensors(line, invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for n in (FEW, MANY):
        write_many(tmp_path / f"{n}.safetensors", n)

    def calls(n: int) -> int:
        count = 0

        def counted(frame, event, argument):
            nonlocal count
            count += event in ("call", "c_call")

        words = [*line.format(f"{n}.safetensors").split(), *(["--force"] if " -o " in line else [])]
        invoke(*words)  # so that what is imported and compiled once is
        sys.setprofile(counted)
        try:
            invoke(*words)
        finally:
            sys.setprofile(None)
        return count

    assert calls(MANY) < MOST * calls(FEW)


@pytest.mark.parametrize("line", ["scale {0} --by 2 -o x", "drop {0} --only *[13579].v.weight -o x", "digest {0}"])
def test_small_tensors_are_read_and_written_many_at_a_time(line, invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_many(tmp_path / "many", MANY)
    system_calls: Counter[str] = Counter()

    def audited(name: str):
        real = getattr(os, name)

        def counted(*arguments):
            system_calls[name] += 1
            return real(*arguments)

        return counted

    for name in ("copy_file_range", "sendfile", "splice"):
        monkeypatch.setattr(os, name, audited(name))

    def counted(frame, event, argument):
        if event == "c_call" and argument.__name__ in ("readinto", "write", "submit"):
            system_calls[argument.__name__] += 1

    sys.setprofile(counted)
    try:
        invoke(*line.format("many").split())
    finally:
        sys.setprofile(None)
    assert 0 < system_calls.total() < MANY / 20
