import json
import os
import pty
import subprocess
import sys

import pytest

from tests.conftest import said_on

tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def scalars(folder):
    """Name → [(step, value)], as TensorBoard reads them."""
    events = tensorboard.EventAccumulator(str(folder)).Reload()
    return {name: [(x.step, x.value) for x in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_shows_the_log(fresh, fundus, invoke, tmp_path):
    given = [fresh, "--data", fundus, "-o", tmp_path / "run", "--batch-size", 8, "--steps", 8, "--eval-every", 4]
    given += ["--device", "cpu", "--threads", 1, "--log-to", "tensorboard"]
    invoke("train", *given)
    entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    shown = scalars(tmp_path / "run" / "tensorboard")
    for name in ("loss", "macro_auc", "lr"):
        assert shown[name] == [(x["step"], pytest.approx(x[name])) for x in entries if x.get(name) is not None]
    assert len(shown["auc/none"]) == len([x for x in entries if "auc" in x])
    moved = [(x["step"], pytest.approx(x["distance_from_init"]["head"])) for x in entries if "auc" in x]
    assert shown["distance_from_init/head"] == moved


def test_a_logger_that_is_not_installed_is_named_before_anything_is_written(fresh, fundus, tmp_path):
    given = ["train", fresh, "--data", fundus, "-o", tmp_path / "run", "--steps", 1, "--log-to", "wandb"]
    blocked = "import sys, runpy; sys.modules['wandb'] = None; runpy.run_module('wsurgery', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", blocked, *map(str, given)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "wsurgery train: needs wandb: pip install 'wsurgery[wandb]'\n")
    assert not (tmp_path / "run").exists()


def test_on_a_terminal_one_line_is_kept_up_to_date_and_evaluations_stay(fresh, fundus, tmp_path):
    given = [
        "train",
        fresh,
        "--data",
        fundus,
        "-o",
        tmp_path / "run",
        "--batch-size",
        8,
        "--steps",
        40,
        "--eval-every",
        20,
    ]
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "wsurgery", *map(str, given), "--device", "cpu", "--threads", "1"],
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    ):
        os.close(theirs)
        text = said_on(ours).decode()
    for step in (0, 20, 40):
        assert f"step {step}  " in text
    assert "of 40" in text  # the bar
    assert f"{tmp_path / 'run'}: 40 steps" in text.rstrip().splitlines()[-1]


def test_wandb_has_the_log_of_each_run(fresh, fundus, invoke, tmp_path, monkeypatch):
    """In the file that wandb writes where it has no network."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    given = [fresh, "--data", fundus, "--eval-every", 2, "--batch-size", 4, "--device", "cpu", "--log-to", "wandb"]
    runs = [tmp_path / experiment / "transfer" / "1" for experiment in "ab"]
    for run in runs:
        invoke("train", *given, "--steps", 4, "-o", run)
    assert len({(run / "wandb.id").read_text() for run in runs}) == 2  # two experiments may have arms of the same name
    (file,) = runs[0].glob("wandb/offline-run-*/*.wandb")
    for line in (runs[0] / "log.jsonl").read_text().splitlines():
        entry = json.loads(line)
        assert json.dumps(entry["macro_auc"]).encode() in file.read_bytes()
        assert all(json.dumps(auc).encode() in file.read_bytes() for auc in entry["auc"].values())
