"""A run folder may be a stranger's: damage is one line, no link is followed, and nothing outside is touched."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from tests.conftest import TRAINING

FILES = (
    "config.json",
    "log.jsonl",
    "init.safetensors",
    "last.safetensors",
    "best.safetensors",
    "resume.pt",
    "metrics.json",
)


@pytest.fixture
def train(invoke, fresh, fundus):
    return lambda run: invoke("train", fresh, "--data", fundus, "-o", run, *TRAINING, check=False)


@pytest.fixture
def stopped(train, tmp_path, monkeypatch):
    """The folder of a run that was stopped after step 6."""
    import wsurgery.training.loop as loop

    original = loop.signals_noted

    class Once:
        def __enter__(self):
            self.calls = 0
            return self

        def __exit__(self, *rest):
            pass

        def __call__(self):
            self.calls += 1
            return 15 if self.calls == 7 else 0

    monkeypatch.setattr(loop, "signals_noted", Once)
    assert train(tmp_path / "run").exit_code == 143
    monkeypatch.setattr(loop, "signals_noted", original)
    assert (tmp_path / "run" / "resume.pt").exists()
    return tmp_path / "run"


def require_refused(done, run, name):
    assert done.exit_code in (1, 2), done.stdout
    assert done.stderr.splitlines()[-1].startswith("wsurgery train: ")
    assert name in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", [*FILES, "dangling: config.json", "tensorboard", "wandb.id"])
def test_no_link_in_it_is_followed(name, train, finished, tmp_path):
    run, outside = tmp_path / "run", tmp_path / "outside"
    shutil.copytree(finished, run)
    (run / "metrics.json").unlink()
    (run / "log.jsonl").write_text("")
    dangling, name = "dangling" in name, name.removeprefix("dangling: ")
    if not dangling:
        outside.write_bytes(b"mine")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(outside)
    done = train(run)
    require_refused(done, run, f"{name} is a symbolic link")
    assert outside.exists() != dangling
    assert dangling or outside.read_bytes() == b"mine"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"7",
        b"null",
        b"{}",
        b'{"settings": 5}',
        b'{"settings": {}, "init": 5}',
        b"[" * 10**5,
        b"9" * 5000,
    ],
)
def test_a_damaged_configuration_is_one_line(content, train, stopped):
    (stopped / "config.json").write_bytes(content)
    done = train(stopped)
    assert done.exit_code in (1, 2)
    assert "config.json is not what wsurgery writes" in done.stderr or "was begun with other" in done.stderr


@pytest.mark.parametrize(
    "metrics",
    ["", "{}", "[]", '{"steps": 1, "best": {}, "last": {}, "steps_to_auc": {}}', "7" * 5000,
     '{"steps": 1, "best": {"step": 1, "macro_auc": "\\u001b[2J"}, "last": {"step": 1, "macro_auc": 1}, "steps_to_auc": {}}'],
)  # fmt: skip
def test_a_damaged_result_is_one_line(metrics, train, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").write_text(metrics)
    require_refused(train(tmp_path / "run"), tmp_path / "run", "metrics.json is not what wsurgery writes")


def change(state, kind):
    model, optimizer, progress = state["model"], state["optimizer"], state["progress"]
    name = next(iter(model))
    if kind == "no model":
        del state["model"]
    elif kind == "another shape":
        model[name] = model[name].flatten()
    elif kind == "another type":
        model[name] = model[name].double()
    elif kind == "a tensor more":
        model["x"] = model[name]
    elif kind == "a number for a tensor":
        model[name] = 5
    elif kind == "a learning rate of words":
        optimizer["param_groups"][0]["lr"] = "fast"
    elif kind == "no groups":
        optimizer["param_groups"] = []
    elif kind == "a state of no parameter":
        optimizer["state"]["x"] = {}
    elif kind == "a moment of another shape":
        optimizer["state"][0]["exp_avg"] = torch.zeros(7, 7)
    elif kind == "a moment less":
        del optimizer["state"][0]["exp_avg"]
    elif kind == "a step beyond the end":
        progress["step"] = 10**30
    elif kind == "a step that is a word":
        progress["step"] = "six"
    elif kind == "no progress":
        state["progress"] = None
    elif kind == "a log of a petabyte":
        state["log_bytes"] = 10**15
    elif kind == "a list":
        return [state]
    elif kind == "a tensor repeated":
        optimizer["state"] = {i: {"exp_avg": torch.zeros(1).expand(10**7)} for i in range(4)}
    return state


KINDS = (
    "no model", "another shape", "another type", "a tensor more", "a number for a tensor", "a learning rate of words",
    "no groups", "a state of no parameter", "a moment of another shape", "a moment less", "a step beyond the end",
    "a step that is a word", "no progress", "a log of a petabyte", "a list", "a tensor repeated",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_that_is_not_of_this_run_is_one_line(kind, train, stopped):
    log = (stopped / "log.jsonl").read_bytes()
    torch.save(change(torch.load(stopped / "resume.pt"), kind), stopped / "resume.pt")
    require_refused(train(stopped), stopped, "resume.pt")
    assert (stopped / "log.jsonl").read_bytes() == log


def test_a_state_that_is_cut_or_no_state_is_one_line_and_the_whole_one_goes_on(train, stopped):
    whole = (stopped / "resume.pt").read_bytes()
    for content in (b"", b"PK\x03\x04", whole[:-1], whole[: len(whole) // 2], b"\x80\x02c__builtin__\neval\n."):
        (stopped / "resume.pt").write_bytes(content)
        require_refused(train(stopped), stopped, "resume.pt")
    os.remove(stopped / "resume.pt")
    os.mkfifo(stopped / "resume.pt")
    require_refused(train(stopped), stopped, "resume.pt is not a regular file")
    os.remove(stopped / "resume.pt")
    (stopped / "resume.pt").write_bytes(whole)
    assert train(stopped).exit_code == 0
    assert json.loads((stopped / "metrics.json").read_text())["steps"] == 12


# Trains with no room for a file of more than N bytes, as on a disk that is full.
NO_ROOM = """
import resource, signal, sys
limit = int(sys.argv.pop(1))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
from wsurgery.__main__ import main
main()
"""


@pytest.mark.parametrize("missing", [1, 30, 10_000])
def test_a_full_disk_leaves_the_older_state_which_goes_on(missing, train, stopped, finished, fresh, fundus):
    """One byte too few, too: torch takes the last piece of the archive for written, however much of it was."""
    before = (stopped / "resume.pt").read_bytes()
    words = ["train", fresh, "--data", fundus, "-o", stopped, *TRAINING]
    limit = (finished / "resume.pt").stat().st_size - missing
    done = subprocess.run([sys.executable, "-c", NO_ROOM, *map(str, (limit, *words))], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"wsurgery train: {stopped}/resume.pt: File too large"
    assert "Traceback" not in done.stderr
    assert (stopped / "resume.pt").read_bytes() == before
    assert train(stopped).exit_code == 0
    for name in ("last", "best"):
        assert (stopped / f"{name}.safetensors").read_bytes() == (finished / f"{name}.safetensors").read_bytes()


def test_shards_and_results_beside_a_checkpoint_are_not_written_through_links(
    invoke, fresh, fundus, finished, tmp_path
):
    outside = tmp_path / "outside"
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "model.safetensors.index.json").symlink_to(outside)
    done = invoke("scale", fresh, "--by", 2, "-o", f"{tmp_path}/shards/", "--force", check=False)
    assert done.exit_code == 1
    assert "index.json is a symbolic link" in done.stderr
    shutil.copy(finished / "best.safetensors", tmp_path / "best.safetensors")
    (tmp_path / "eval.json").symlink_to(outside)
    done = invoke(
        "eval", tmp_path / "best.safetensors", "--data", fundus, "--beside", "eval.json", "--bootstrap", 0, check=False
    )
    assert done.exit_code == 1
    assert "eval.json is a symbolic link" in done.stderr
    assert not outside.exists()
