import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from wsurgery.command_line import build_app

ARMS = {"random": 0.7, "transfer": 0.95, "[red]unknown[/red]": 0.92}


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(), ["report", *map(str, arguments)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for arm, auc in ARMS.items():
        run = tmp_path / "demo" / "runs" / arm.replace("/", "∕") / "1"
        run.mkdir(parents=True)
        log = [{"step": 0, "macro_auc": 0.5}, {"step": 50, "macro_auc": auc, "loss": 0.4}]
        (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
        (run / "metrics.json").write_text("{}")
    return tmp_path / "demo"


def test_report_writes_the_page_and_prints_the_table(folder: Path, tmp_path: Path) -> None:
    result = invoke(folder, "-o", tmp_path / "a.html", "--title", "Mine & yours")
    assert (result.exit_code, result.stderr) == (0, "")
    page = (tmp_path / "a.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "<h1>Mine &amp; yours</h1>" in page
    for arm in ARMS:
        assert arm.replace("/", "∕") in result.stdout  # square brackets are a name's, not markup
    assert "> 50" in result.stdout
    assert "0.950" in result.stdout


def test_json_instead_of_the_table_is_nothing_but_json(folder: Path, tmp_path: Path) -> None:
    result = invoke(folder, "-o", tmp_path / "a.html", "--json", "--threshold", "0.6")
    data = json.loads(result.stdout)
    assert data["threshold"] == 0.6
    assert {arm["arm"]: arm["steps_to_threshold"] for arm in data["arms"]} == {
        arm.replace("/", "∕"): [50] for arm in ARMS
    }


def test_an_unfinished_run_ends_in_one_line_and_no_file(folder: Path, tmp_path: Path) -> None:
    (folder / "runs" / "random" / "1" / "metrics.json").unlink()
    result = invoke(folder, "-o", tmp_path / "a.html")
    assert result.exit_code == 1
    assert "random/1 has not ended" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "a.html").exists()


def test_a_choice_that_is_not_there_ends_in_one_line_with_the_list(folder: Path, tmp_path: Path) -> None:
    result = invoke(folder, "-o", tmp_path / "a.html", "--arms", "random,gabor")
    assert result.exit_code == 2
    assert "has no runs of gabor: there are random, transfer" in result.stderr
    result = invoke(folder, "-o", tmp_path / "a.html", "--cca", "pair")
    assert result.exit_code == 2
    assert "has no comparison pair; there are: none" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "a.html").exists()


def test_claims_are_of_runs_and_not_of_pages(tmp_path: Path) -> None:
    (tmp_path / "RESULTS.md").write_text("# R")
    (tmp_path / "claims.txt").write_text("faster a b : It is.")
    result = invoke(tmp_path / "RESULTS.md", "-o", tmp_path / "a.html", "--claims", tmp_path / "claims.txt")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "a.html").exists()


@pytest.mark.parametrize("name", ["a.pdf", "a.docx", "a"])
def test_what_is_neither_a_page_nor_markdown_is_refused_by_name(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "RESULTS.md").write_text("# R")
    for what in (folder, tmp_path / "RESULTS.md"):
        result = invoke(what, "-o", tmp_path / name)
        assert result.exit_code == 2
        assert f"{name}: a report is an .html page" in result.stderr
        assert result.stderr.count("\n") == 1
        assert not (tmp_path / name).exists()


def test_two_folders_are_one_page(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to(folder)
    shutil.copytree(folder, tmp_path / "small")
    (tmp_path / "paper.md").write_text("Figure 6.")
    arguments = ["--arms", "transfer,random", "--cca", "none", "--paper", tmp_path / "paper.md", "--json"]
    result = invoke(folder, tmp_path / "small", "-o", tmp_path / "a.md", *arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    assert list(json.loads(result.stdout)["networks"]) == ["demo", "small"]
    text = (tmp_path / "a.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# Transfusion", "## The paper", "## demo", "## small",
    ]  # fmt: skip
    assert text.index("| transfer |") < text.index("| random |")
    result = invoke(folder, tmp_path / "other", "-o", tmp_path / "b.md")
    assert result.exit_code == 2
    assert "have the same name" in result.stderr


@pytest.mark.parametrize("networks", [1, 2])
def test_seeds_that_are_nowhere_are_said_and_none_at_all_is_an_error(
    folder: Path, tmp_path: Path, networks: int
) -> None:
    shutil.copytree(folder / "runs/random/1", folder / "runs/random/10")
    shutil.copytree(folder, tmp_path / "small")
    (folder / "cca").mkdir()
    layers = [{"layer": layer, "value": 0.5} for layer in ("conv1", "block1")]
    (folder / "cca/pair.json").write_text(json.dumps({"layers": layers}))  # of no seed
    given = [*(folder, tmp_path / "small")[:networks], "-o", tmp_path / "a.md", "--force"]
    result = invoke(*given, "--arms", "transfer,random", "--seeds", "1,2,99")
    assert result.exit_code == 0
    assert result.stderr == "--seeds 2, 99: no run or comparison of this page has it; there are 1\n"
    assert invoke(*given, "--seeds", "1,10").stderr == ""
    (tmp_path / "a.md").unlink()
    result = invoke(*given, "--seeds", "2,99")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "--seeds 2, 99: no run or comparison has one of them; there are 1, 10" in result.stderr
    assert not (tmp_path / "a.md").exists()


def test_a_network_left_out_that_is_none_of_the_page_is_said(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "shallow")
    (tmp_path / "claims.txt").write_text("# mine\nlarger-gain transfer random except=shalow,shallow : It gains more.")
    result = invoke(folder, tmp_path / "shallow", "-o", tmp_path / "a.md", "--claims", tmp_path / "claims.txt")
    assert result.exit_code == 0
    said = "claims.txt, line 2: except=shalow is no network of this page; there are demo, shallow\n"
    assert result.stderr.endswith(said)
    assert result.stderr.count("\n") == 1
    assert "Not judged here, for want of another network: 1 claim." in (tmp_path / "a.md").read_text()


def test_a_layer_that_cannot_be_ends_in_one_line_with_those_there_are(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        for seed in range(3):
            file = folder / "cca" / name / f"{seed}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"layers": [{"layer": x, "value": 0.5} for x in ("conv1", "block1")]}))
    (tmp_path / "claims.txt").write_text("more-alike a b layers=blok1 : They are.")
    result = invoke(folder, "-o", tmp_path / "a.md", "--claims", tmp_path / "claims.txt")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "claims.txt, line 1: a and b have no layer blok1; there are conv1, block1" in result.stderr
    assert not (tmp_path / "a.md").exists()


def test_a_paper_that_is_no_text_ends_in_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "paper.md").write_bytes(b"\xff\xfe")
    result = invoke(folder, "-o", tmp_path / "a.md", "--paper", tmp_path / "paper.md")
    assert result.exit_code == 2
    assert "paper.md is not UTF-8 text" in result.stderr
    assert invoke(folder, "-o", tmp_path / "a.md", "--paper", tmp_path / "no.md").exit_code == 1
