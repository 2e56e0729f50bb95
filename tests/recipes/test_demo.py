"""The demo at its smallest: every target, from drawing the data to the report."""

import json
import re

import pytest

SMALL = ["ARMS=random transfer", "SEEDS=1", "IMAGES=64", "STEPS=4", "PRETRAIN=4", "NET=cbr_tiny --width 0.05"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "out"


@pytest.mark.slow
def test_the_demo_runs_through_to_a_report_of_both_arms(out, make):
    printed = make("demo", "-j2", f"OUT={out}", *SMALL)
    page = (out / "report.html").read_text()
    for arm in ("random", "transfer"):
        run = out / "runs" / arm / "1"
        assert arm in page
        assert re.search(rf"^\W*{arm}\b", printed, re.MULTILINE)  # in the table
        assert json.loads((run / "metrics.json").read_text())["steps"] == 4
        assert json.loads((run / "eval.json").read_text())["n"] == 22
        assert len(json.loads((run / "cca-init.json").read_text())["layers"]) >= 4
    make("demo", "-q", f"OUT={out}", *SMALL)  # fails if anything would be made again
    more = make("demo", "-n", f"OUT={out}", "ARMS=random gabor", *SMALL[1:])
    assert "runs/gabor/1 " in more  # another arm is trained although the report is there
    assert "runs/random/1 " not in more


@pytest.mark.slow
def test_the_page_is_of_the_arms_and_seeds_that_were_asked_for(out, make):
    make("demo", "-j2", f"OUT={out}", *SMALL, "SEEDS=1 2")  # more than what follows
    make("demo", f"OUT={out}", *SMALL, "ARMS=transfer", "SEEDS=2")
    page = (out / "report.html").read_text()
    assert "Here are 1 runs in 1 arms" in page
    assert "Are two networks alike?" not in page
    assert re.search("Not judged here, for want of random, [^.]*random-pair: 8 claims", page)
    planned = make("demo", "-n", f"OUT={out}", *SMALL, "ARMS=transfer", "SEEDS=2 1")
    assert len(re.findall("wsurgery cca .*/runs/transfer/2 .*/runs/transfer/1 ", planned)) == 1  # another pair


def test_the_report_names_the_arms_the_seeds_and_the_pairs(make, tmp_path):
    planned = make("demo", "-n", f"OUT={tmp_path / 'out'}", "ARMS=random gabor", "SEEDS=3 1 2")
    (line,) = re.findall("wsurgery report .*", planned)
    assert "--arms random,gabor --seeds 3,1,2 --cca random-to-init,gabor-to-init,random-pair " in line
    assert "/runs/random/3 " in planned


ARMS = "random transfer meanvar shuffle sample gabor transfuse-block1 transfuse-block3 freeze-block1 freeze-block4"


@pytest.mark.parametrize("variables", [[], [f"ARMS={ARMS}", "SEEDS=1 2 3"]], ids=["default", "every arm"])
def test_every_line_is_a_command_that_a_user_can_type(variables, make, tmp_path):
    printed = make("demo", "-n", f"OUT={tmp_path / 'out'}", *variables).replace("\\\n", " ")
    lines = [line for line in printed.splitlines() if "/settings/" not in line]  # stamps
    assert len(lines) > 40
    for line in lines:
        assert all(stage.split()[0] in ("wsurgery", "mkdir", "touch") for stage in line.split(" | ")), line
    assert not (tmp_path / "out").exists()
