"""What was run, of runs that were: the demo's smallest."""

import shutil
from pathlib import Path

import pytest
import torch

from wsurgery import __version__
from wsurgery.experiments.report import as_json, read_report
from wsurgery.figures.page import render_page
from wsurgery.figures.tables import markdown


@pytest.fixture
def experiment(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "runs" / "random" / "1")
    return tmp_path


def test_a_report_says_what_was_run(experiment: Path) -> None:
    found = read_report(experiment, threshold="0.6")
    facts = found.ran.facts
    (data,) = facts["data"]
    assert data.startswith("synthetic:fundus?n=120&size=32 (digests: train ")
    assert facts["images"] == ["60 images of 30 patients to train on", "18 images of 9 patients to validate"]
    assert facts["network"] == ["cbr_tiny, width 0.05"]
    (seen,) = facts["images as the network sees them"]
    assert seen.startswith("32 pixels a side, 3 channels, fit crop, window auto; labels none, mild, moderate")
    assert facts["training"] == ["optimizer adam, lr 0.01, batch size 8, steps 12, eval every 4"]
    assert facts["steps taken"] == ["12"]
    (versions,) = facts["versions"]
    assert versions.startswith(f"wsurgery {__version__}, torch {torch.__version__}, python 3.")
    assert facts["machine"][0].endswith(", 1 thread, 1 process")
    assert found.ran.commands["random"].splitlines()[1].startswith("wsurgery train INIT1.safetensors --data")
    assert as_json(found)["what_ran"]["facts"]["network"] == ["cbr_tiny, width 0.05"]
    page, text = render_page(found, title="T"), markdown(found, title="T")
    assert "<details><summary>What was run</summary>" in page
    assert "<pre>wsurgery init cbr_tiny" in page
    for said in (page, text):
        assert "optimizer adam, lr 0.01, batch size 8" in said
        assert "60 images of 30 patients to train on" in said


def test_runs_that_say_nothing_have_no_such_section(make_experiment) -> None:
    folder = make_experiment({"random": [{0: 0.5, 9: 0.8}]}, bare=True)
    found = read_report(folder, threshold="0.6")
    assert set(found.ran.facts) == {"steps taken"}
