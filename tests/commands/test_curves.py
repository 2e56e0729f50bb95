import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from wsurgery.command_line import build_app


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(), ["curves", *map(str, arguments)])


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / arm / seed for arm in ("random", "transfer") for seed in "12"]
    for folder in folders:
        folder.mkdir(parents=True)
        log = [
            {
                "step": step,
                "loss": 0.5,
                "macro_auc": 0.5 + step / 100,
                "auc": {"x": 0.5, "y": 0.6},
                "distance_from_init": {"conv1": step / 100, "block1": step / 50, "head": step / 10},
            }
            for step in (0, 10, 20)
        ]
        (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
    return folders


@pytest.mark.parametrize("metric", ["auc", "loss"])
def test_curves_writes_a_picture_and_prints_nothing(runs: list[Path], tmp_path: Path, metric: str) -> None:
    result = invoke(*runs, "-o", tmp_path / "a.png", "--metric", metric, "--threshold", "0.6")
    assert (result.exit_code, result.output) == (0, "")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.getextrema()[0][0] < 128 < picture.getextrema()[0][1]  # ink on paper
    again = invoke(*runs, "-o", tmp_path / "a.png")
    assert again.exit_code == 2
    assert "add --force" in again.stderr
    assert invoke(*runs, "-o", tmp_path / "a.png", "--force").exit_code == 0


def test_a_panel_a_label_or_a_block(runs: list[Path], tmp_path: Path) -> None:
    panels = {}
    for name, more in (("mean", ()), ("label", ("--by", "label")), ("block", ("--by", "block", "--smooth", "0.5"))):
        assert invoke(*runs, "-o", tmp_path / f"{name}.svg", *more).exit_code == 0
        panels[name] = (tmp_path / f"{name}.svg").read_text().count('id="axes_')
    assert panels == {"mean": 1, "label": 2, "block": 3}
    refused = invoke(*runs, "-o", tmp_path / "a.svg", "--by", "block", "--metric", "loss")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "--metric loss is of the whole network" in refused.stderr


def test_a_broken_log_ends_in_one_line_and_no_file(runs: list[Path], tmp_path: Path) -> None:
    (runs[1] / "log.jsonl").write_text("{")
    result = invoke(*runs, "-o", tmp_path / "a.svg")
    assert result.exit_code == 1
    assert result.stderr.startswith("wsurgery curves: ")
    assert "log.jsonl line 1" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "a.svg").exists()


def test_an_unknown_metric_is_a_usage_error(runs: list[Path], tmp_path: Path) -> None:
    assert invoke(*runs, "-o", tmp_path / "a.svg", "--metric", "joy").exit_code == 2
