"""`wsurgery replay`: histories that real pipelines wrote, and histories that nobody should run."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.conftest import small_resnet
from wsurgery.checkpoint.digest import file_digest

PIPELINES = {
    "files and pipes": "wsurgery shuffle resnet.safetensors --seed 3 --except 'fc.*' | wsurgery shuffle --role conv"
    " | wsurgery transfuse 'donor one.safetensors' --upto conv1 | wsurgery freeze-spec --blocks block1 > made",
    "one command": "wsurgery meanvar resnet.safetensors --bn meanvar --seed 7 -o made",
    "a source with a history": "wsurgery meanvar resnet.safetensors -o parent"
    " && wsurgery transfuse parent --upto conv1 --into 'donor one.safetensors' -o made && rm parent",
    "a source through a pipe": "wsurgery transfuse <(wsurgery meanvar resnet.safetensors | wsurgery reset-bn) --upto conv1"
    " --into 'donor one.safetensors' -o made",
    "drawn above a block": "wsurgery transfuse resnet.safetensors --upto block1 --rest random --seed 5 > made",
    "names": "wsurgery rename layer1 stage1 resnet.safetensors > made",
    "a mean with what is piped in": "wsurgery shuffle resnet.safetensors | wsurgery average - 'donor one.safetensors' > made",
    "by structure": "wsurgery meanvar resnet.safetensors --per filter --role conv | wsurgery covariance --of space"
    " | wsurgery spectrum --keep left --seed 2 | wsurgery shuffle --within position | wsurgery shuffle --axis in > made",
    "inputs given with options": "wsurgery prune 'donor one.safetensors' --sparsity 0.5 > pruned"
    " && wsurgery transfuse resnet.safetensors --upto conv1 --into <(wsurgery reset-bn pruned) | wsurgery prune --zeros-of pruned"
    " | wsurgery merge - resnet.safetensors --base 'donor one.safetensors' --method task -o made",
    "a fresh network": "wsurgery init cbr_tiny --width 0.05 --num-classes 5 --seed 2 | wsurgery gabor > made",
}


@pytest.fixture
def folder(resnet, tmp_path):
    save_file(small_resnet(seed=1), tmp_path / "donor one.safetensors")
    return tmp_path


def rewrite_log(path, out, change) -> None:
    """Copy a checkpoint with another log."""
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    history = json.loads(metadata["wsurgery"])
    change(history["log"])
    save_file(load_file(path), out, metadata={**metadata, "wsurgery": json.dumps(history)})


@pytest.mark.parametrize("line", PIPELINES.values(), ids=PIPELINES)
def test_what_a_pipeline_made_is_made_again(line, folder, shell, wsurgery):
    made = shell(line, folder)
    assert made.returncode == 0, made.stderr.decode()
    before = sorted(folder.iterdir())
    done = wsurgery("replay", folder / "made")
    assert (done.stdout, done.stderr) == (b"identical\n", b"")
    assert sorted(folder.iterdir()) == before
    typed = shell(f"{wsurgery('log', folder / 'made').stdout.decode().rstrip()} > again", folder)
    assert typed.returncode == 0, typed.stderr.decode()
    made, again = load_file(folder / "made"), load_file(folder / "again")
    assert {name: x.tobytes() for name, x in made.items()} == {name: x.tobytes() for name, x in again.items()}


def test_inputs_are_found_in_another_folder(folder, wsurgery):
    (folder / "inputs").mkdir()
    wsurgery("meanvar", folder / "resnet.safetensors", "-o", folder / "made")
    (folder / "resnet.safetensors").rename(folder / "inputs" / "resnet.safetensors")
    lost = wsurgery("replay", "made", cwd=folder, check=False)
    assert lost.returncode == 1
    assert b"--inputs DIR" in lost.stderr
    assert wsurgery("replay", "made", "--inputs", "inputs", cwd=folder).stdout == b"identical\n"


def test_inputs_of_one_name_are_told_apart_by_their_digests(folder, invoke):
    for seed, name in enumerate("xy"):
        (folder / name).mkdir()
        save_file(small_resnet(seed), folder / name / "best")
    invoke("lerp", folder / "x" / "best", folder / "y" / "best", "--t", 0.25, "-o", folder / "made")
    one = invoke("replay", folder / "made", "--inputs", folder / "x", check=False)
    assert (one.exit_code, one.stderr.count("\n")) == (1, 1)
    assert "--inputs DIR, which may be given several times" in one.stderr
    for first, second in ("xy", "yx"):
        both = "--inputs", folder / first, "--inputs", folder / second
        assert invoke("replay", folder / "made", *both).stdout == "identical\n"
    invoke("lerp", folder / "x" / "best", folder / "y" / "best", "--t", 0.25, "--no-digest", "-o", folder / "trusted")
    assert "which input is it" in invoke("replay", folder / "trusted", *both, check=False).stderr


def test_the_first_tensor_that_is_not_identical_is_named(folder, wsurgery):
    wsurgery("meanvar", folder / "resnet.safetensors", "-o", folder / "made")
    content = bytearray((folder / "made").read_bytes())
    with safe_open(folder / "made", "numpy") as file:
        last = file.offset_keys()[-1]
    content[-1] ^= 1
    (folder / "made").write_bytes(content)
    done = wsurgery("replay", folder / "made", check=False)
    assert (done.returncode, done.stdout.decode()) == (1, f"different: {last} differs\n")


def test_a_header_that_alone_differs_is_told_with_its_version(folder, wsurgery):
    wsurgery("meanvar", folder / "resnet.safetensors", "-o", folder / "made")
    content = (folder / "made").read_bytes()
    version = json.loads(wsurgery("log", folder / "made", "--json").stdout)[0]["version"]
    other = "9" * len(version)
    (folder / "made").write_bytes(
        content.replace(f'\\"version\\":\\"{version}'.encode(), f'\\"version\\":\\"{other}'.encode())
    )
    done = wsurgery("replay", folder / "made", check=False)
    assert done.returncode == 1
    assert b"every tensor is identical" in done.stdout
    assert other.encode() in done.stdout


def test_an_input_that_is_another_file_is_refused_before_anything_runs(folder, wsurgery):
    wsurgery("meanvar", folder / "resnet.safetensors", "-o", folder / "made")
    save_file(small_resnet(seed=9), folder / "resnet.safetensors")
    done = wsurgery("replay", folder / "made", check=False)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)
    assert b"resnet.safetensors has the digest" in done.stderr


def test_a_trained_input_is_taken_as_it_is(folder, wsurgery):
    train = {"command": "train", "arguments": [], "seed": 0, "version": "0", "inputs": []}
    metadata = {"wsurgery": json.dumps({"log": [train]})}
    save_file(small_resnet(seed=2), folder / "trained", metadata=metadata)
    wsurgery("transfuse", "trained", "--upto", "conv1", "--into", "resnet.safetensors", "-o", "made", cwd=folder)
    done = wsurgery("replay", folder / "made")
    assert done.stdout == b"identical\n"
    assert b"trained is taken as it is" in done.stderr
    refused = wsurgery("replay", folder / "trained", check=False)
    assert (refused.returncode, refused.stderr.count(b"\n")) == (2, 1)
    assert b"needs data and time; wsurgery log FILE prints the commands, to be run by hand" in refused.stderr


def test_a_parent_that_comes_out_otherwise_is_named(folder, wsurgery):
    wsurgery("meanvar", "resnet.safetensors", "-o", "parent", cwd=folder)
    wsurgery("transfuse", "parent", "--upto", "conv1", "--into", "donor one.safetensors", "-o", "made", cwd=folder)

    def other_seed(log):
        log[0]["inputs"][1]["log"][0]["seed"] = 5

    rewrite_log(folder / "made", folder / "changed", other_seed)
    done = wsurgery("replay", folder / "changed", check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"parent, an input, comes out otherwise" in done.stderr


def test_a_command_that_fails_is_named_with_its_own_words(folder, shell, wsurgery):
    made = shell("wsurgery shuffle resnet.safetensors | wsurgery meanvar | wsurgery reset-bn > made", folder)
    assert made.returncode == 0

    def broken(log):
        log[1]["arguments"] = ["--blocks", "block9"]

    rewrite_log(folder / "made", folder / "broken", broken)
    done = wsurgery("replay", folder / "broken", check=False)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert b"meanvar failed when it was run again" in done.stderr
    assert b"block9" in done.stderr


SOURCE = {"name": "resnet.safetensors", "blake3": "0"}
HOSTILE = {
    "a shell": {"command": "meanvar; touch owned", "inputs": [SOURCE]},
    "another program": {"command": "../../bin/sh", "inputs": [SOURCE]},
    "another command": {"command": "data", "arguments": ["make", "synthetic:fundus"]},
    "training": {"command": "train", "arguments": []},
    "itself": {"command": "replay", "inputs": [SOURCE]},
    "an output": {"command": "meanvar", "arguments": ["-oowned"], "inputs": [SOURCE]},
    "an output in words": {"command": "meanvar", "arguments": ["--output=owned"], "inputs": [SOURCE]},
    "force": {"command": "meanvar", "arguments": ["--force"], "inputs": [SOURCE]},
    "a path as argument": {"command": "transfuse", "arguments": ["--into", "/etc/passwd"], "inputs": [SOURCE]},
    "a download": {"command": "init", "arguments": ["resnet18", "--arg", "pretrained=True"]},
    "a path as input": {"command": "meanvar", "inputs": [{**SOURCE, "name": "../resnet.safetensors"}]},
    "the folder above": {"command": "meanvar", "inputs": [{**SOURCE, "name": ".."}]},
    "a NUL": {"command": "meanvar", "inputs": [{**SOURCE, "name": "a\0b"}]},
    "a NUL in an argument": {"command": "meanvar", "arguments": ["a\0b"], "inputs": [SOURCE]},
    "arguments of another type": {"command": "meanvar", "arguments": "-o x", "inputs": [SOURCE]},
    "numbers as arguments": {"command": "meanvar", "arguments": [1], "inputs": [SOURCE]},
    "a seed of another type": {"command": "meanvar", "seed": "--help", "inputs": [SOURCE]},
    "a negative seed": {"command": "meanvar", "seed": -1, "inputs": [SOURCE]},
    "inputs of another type": {"command": "meanvar", "inputs": {"name": "x"}},
    "an input without a name": {"command": "meanvar", "inputs": [{}]},
    "a log of another type": {"command": "meanvar", "inputs": [{**SOURCE, "log": "x"}]},
    "a pipe without a history": {"command": "meanvar", "inputs": [{"name": "-", "header": "0"}]},
}


@pytest.mark.parametrize("record", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_history_is_refused_and_nothing_runs(record, folder, invoke, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)  # to start a process would be a traceback
    record = {"version": "0", "arguments": [], "inputs": [], **record}
    metadata = {"wsurgery": json.dumps({"log": [record]})}
    save_file({"x": np.ones(2)}, folder / "hostile", metadata=metadata)
    before = sorted(folder.iterdir())
    done = invoke("replay", folder / "hostile", check=False)
    assert done.exit_code in (1, 2)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("shape", ["long", "wide", "deep"])
def test_a_history_without_end_is_refused(shape, folder, invoke, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)
    record = {"command": "reset-bn", "arguments": [], "version": "0", "inputs": []}
    log = [record] * 100
    if shape == "wide":
        log = [{**record, "inputs": [{"name": "x", "log": [record] * 10}] * 10}]
    if shape == "deep":
        log = [record]
        for _ in range(100):
            log = [{**record, "inputs": [{"name": "x", "log": log}]}]
    save_file({"x": np.ones(2)}, folder / "endless", metadata={"wsurgery": json.dumps({"log": log})})
    done = invoke("replay", folder / "endless", check=False)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "at most" in done.stderr


def hostile(folder, *log) -> str:
    save_file({"a" * 60: np.ones(2)}, folder / "hostile", metadata={"wsurgery": json.dumps({"log": log})})
    return folder / "hostile"


def rename_for_ever(folder) -> str:
    """A history with a regular expression that takes 2^60 steps on a name."""
    save_file({"a" * 60: np.ones(2)}, folder / "source")
    given = {"name": "source", "blake3": file_digest(folder / "source")}
    return hostile(folder, {"command": "rename", "arguments": ["(a|a)+b", "c"], "inputs": [given]})


@pytest.fixture
def temporary(tmp_path_factory, monkeypatch):
    path = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(path))
    return path


def test_a_history_that_takes_for_ever_is_ended(folder, wsurgery, temporary):
    # Its process has standard error open: what it says comes in only when that has ended, too.
    done = wsurgery("replay", rename_for_ever(folder), "--timeout", 2, check=False)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)
    assert b"not made again in 2 s: add --timeout SECONDS" in done.stderr
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_a_signal_ends_a_replay_and_its_process(folder, temporary):
    command = [sys.executable, "-m", "wsurgery", "replay", str(rename_for_ever(folder))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while not list(temporary.iterdir()):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60)[0] == b""
    assert process.returncode == 143
    assert list(temporary.iterdir()) == []


def test_parents_of_parents_cost_no_more_than_their_number(folder, invoke):
    first = {"command": "init", "arguments": ["cbr_tiny", "--width", "0.05"], "seed": 0, "inputs": []}
    log = [first]
    for _ in range(50):  # at one more each doubled the time
        given = {"name": "-", "header": "0", "log": log}
        log = [{"command": "transfuse", "arguments": ["--upto", "block1", "--rest", "random"], "inputs": [given]}]
    done = invoke("replay", hostile(folder, *log), "--timeout", 60, check=False)
    assert (done.exit_code, done.stderr) == (1, "")
    assert done.stdout.startswith("different: ")


def test_a_history_that_writes_more_than_there_is_room_for_writes_nothing(folder, invoke, temporary):
    made = {"command": "init", "arguments": ["cbr_tiny", "--width", "300"], "inputs": []}
    done = invoke("replay", hostile(folder, made), check=False)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "--room SIZE" in done.stderr
    assert list(temporary.iterdir()) == []
    invoke("init", "cbr_tiny", "--width", 0.05, "-o", folder / "small")
    size = (folder / "small").stat().st_size
    assert "--room SIZE" in invoke("replay", folder / "small", "--room", size // 2, check=False).stderr
    assert invoke("replay", folder / "small", "--room", size).stdout == "identical\n"


def test_a_file_without_a_history_and_a_folder_are_refused(folder, wsurgery):
    for source in (folder / "resnet.safetensors", folder):
        done = wsurgery("replay", source, check=False)
        assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
