"""Laws of the history: what comes in has its types, and what is printed is, to bash, the words that came in."""

import json
import subprocess

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.conftest import small_resnet
from wsurgery.checkpoint.provenance import History, as_pipeline, make_record
from wsurgery.checkpoint.records import MAX_DEPTH
from wsurgery.errors import WsurgeryError

WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)))
# Bash shows what it takes a line for: each word, then a NUL.
SHOW = "wsurgery() { printf '%s\\0' \"$@\"; }\n"


def in_bash(script: str) -> list[str]:
    done = subprocess.run(["bash", "-c", SHOW + script], capture_output=True, timeout=20)
    assert done.stderr == b""
    return done.stdout.decode().split("\0")[:-1]


@example(["$(touch x)", "a'b", "!!", "\x1b]0;x\x07'!\\", "\u202ea", "A " * 5100, "a\nb", "", "~", "é"])
@given(st.lists(WORDS, max_size=8))
@settings(max_examples=60, deadline=None)
def test_bash_reads_the_words_of_a_log_as_they_were_and_nothing_drives_the_terminal(words):
    line = as_pipeline([{"command": "meanvar", "arguments": words, "seed": 3, "inputs": []}])
    assert line.isprintable()
    assert in_bash(line) == ["meanvar", *words, "--seed", "3"]


@given(WORDS.filter(lambda name: name not in ("", "-")))
@settings(max_examples=30, deadline=None)
def test_bash_reads_the_names_of_inputs_and_of_outputs_as_they_were(name):
    inner = {"command": "shuffle", "inputs": [{"name": name}]}
    line = as_pipeline([{"command": "meanvar", "inputs": [{"name": "x", "log": [inner]}]}])
    assert line.isprintable()
    assert in_bash(f"wsurgery() {{ [ $1 = meanvar ] && cat $2 || printf '%s\\0' \"$@\"; }}\n{line}") == [
        "shuffle",
        name,
    ]
    run = as_pipeline([{"command": "train", "output": name}]).splitlines()[1]
    assert in_bash(f"cat() {{ printf '%s\\0' \"$@\"; }}\n{run}") == [f"RUN1/{name}"]


def test_a_file_name_that_is_no_utf8_is_that_file_to_bash():
    line = as_pipeline([{"command": "meanvar", "inputs": [{"name": b"a\xff".decode(errors="surrogateescape")}]}])
    done = subprocess.run(["bash", "-c", SHOW + line], capture_output=True, timeout=20)
    assert done.stdout == b"meanvar\0a\xff\0"


M = {"command": "meanvar"}
DEEP = [M]
for _ in range(MAX_DEPTH):
    DEEP = [{**M, "inputs": [{"name": "x", "log": DEEP}]}]
NOT_WSURGERYS = {
    "a list": [],
    "a log that is none": {"log": M},
    "a record that is none": {"log": [5]},
    "no command": {"log": [{}]},
    "a shell as command": {"log": [{"command": "init; touch x; #"}]},
    "a line as command": {"log": [{"command": "init\n"}]},
    "an option as command": {"log": [{"command": "--help"}]},
    "a word as seed": {"log": [{**M, "seed": "1; touch x"}]},
    "a bool as seed": {"log": [{**M, "seed": True}]},
    "a negative seed": {"log": [{**M, "seed": -1}]},
    "a seed without end": {"log": [{**M, "seed": 10**301}]},
    "no arguments": {"log": [{**M, "arguments": None}]},
    "numbers as arguments": {"log": [{**M, "arguments": [1]}]},
    "no inputs": {"log": [{**M, "inputs": None}]},
    "an input that is none": {"log": [{**M, "inputs": [5]}]},
    "an input without a name": {"log": [{**M, "inputs": [{}]}]},
    "a number as name": {"log": [{**M, "inputs": [{"name": 5}]}]},
    "a list as URL": {"log": [{**M, "inputs": [{"name": "x", "url": ["y"]}]}]},
    "a list as digest": {"log": [{**M, "inputs": [{"name": "x", "blake3": []}]}]},
    "a size that is none": {"log": [{**M, "inputs": [{"name": "x", "size": "1"}]}]},
    "a nested log that is none": {"log": [{**M, "inputs": [{"name": "x", "log": 5}]}]},
    "a nested record that is none": {"log": [{**M, "inputs": [{"name": "x", "log": [{}]}]}]},
    "a nested shell": {"log": [{**M, "inputs": [{"name": "x", "log": [{"command": "init $(touch x)"}]}]}]},
    "logs without end": {"log": DEEP},
    "records without end": {"log": [M] * 100_001},
    "a number as output": {"log": [{"command": "train", "output": 5}]},
    "a version that is none": {"log": [{**M, "version": {}}]},
    "a package that is none": {"log": [{**M, "package": "x"}]},
    "a package without a name": {"log": [{**M, "package": {"version": "1"}}]},
    "a glob that is none": {"freeze": [1]},
    "globs that are none": {"freeze": "conv1"},
    "a block map that is none": {"blocks": {"a": "b"}},
    "an empty block map": {"blocks": {}},
    "an architecture that is none": {"architecture": "resnet18"},
    "an architecture without a name": {"architecture": {}},
    "a number of classes that is none": {"architecture": {"name": "x", "num_classes": "5"}},
    "more classes than a dimension has": {"architecture": {"name": "x", "num_classes": 1 << 31}},
    "fewer channels than none": {"architecture": {"name": "x", "in_chans": -1}},
    "arguments that are none": {"architecture": {"name": "x", "args": []}},
    "an argument without end": {"architecture": {"name": "x", "args": {"a": 10**400}}},
}


@pytest.mark.parametrize("entry", NOT_WSURGERYS.values(), ids=NOT_WSURGERYS)
def test_an_entry_of_other_types_is_refused_in_one_line_by_all_who_read_it(entry, tmp_path, invoke):
    save_file(small_resnet(seed=0), tmp_path / "x", metadata={"wsurgery": json.dumps(entry)})
    for command in ("show", "log", "replay"):
        done = invoke(command, tmp_path / "x", check=False)
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr.endswith("x has a 'wsurgery' metadata entry that is not wsurgery's\n")
        assert done.stderr.count("\n") == 1


def test_what_a_newer_version_wrote_into_a_record_stays_in_it(tmp_path, invoke):
    record = {"command": "of-tomorrow", "inputs": [{"name": "x", "colour": [1]}], "mood": {"a": None}, "version": "9"}
    save_file(small_resnet(seed=0), tmp_path / "x", metadata={"wsurgery": json.dumps({"log": [record]})})
    invoke("reset-bn", tmp_path / "x", "-o", tmp_path / "y")
    with safe_open(tmp_path / "y", "numpy") as file:
        assert json.loads(file.metadata()["wsurgery"])["log"][0] == record
    assert load_file(tmp_path / "y").keys() == load_file(tmp_path / "x").keys()


def test_no_record_is_made_that_could_not_be_read_again():
    log = [M]
    for _ in range(MAX_DEPTH - 1):
        log = [*History().then(make_record("meanvar", [], seed=None, inputs=[{"name": "x", "log": log}])).log]
    with pytest.raises(WsurgeryError, match="128 deep"):
        History().then(make_record("meanvar", [], seed=None, inputs=[{"name": "x", "log": log}]))


def test_no_history_is_written_that_would_not_be_read(tmp_path, wsurgery):
    """Two of 60,000 commands are 120,000, and no file may have more than 100,000."""
    record = {"command": "scale", "arguments": ["--by", "1"], "version": "0.1.0", "inputs": [{"name": "stdin"}]}
    metadata = {"wsurgery": json.dumps({"log": [record] * 60_000})}
    save_file({"fc.weight": np.ones((2, 2), np.float32)}, tmp_path / "long", metadata)
    refused = wsurgery("lerp", "long", "long", "--t", 0.5, "-o", "out", check=False, cwd=tmp_path)
    assert refused.returncode == 1
    assert "a history is longer than 100,000 commands" in refused.stderr.decode()
    assert not (tmp_path / "out").exists()
