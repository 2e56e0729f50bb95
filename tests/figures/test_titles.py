import shutil
from pathlib import Path

import pytest

from wsurgery.commands._pictures import labels_of
from wsurgery.figures.titles import network_names, networks_of_runs


def test_each_network_is_named_once_and_what_says_none_is_passed_over(invoke, resnet, tmp_path: Path) -> None:
    for name, network in (("a", "cbr_tiny"), ("b", "resnet18"), ("c", "cbr_tiny")):
        (tmp_path / name).mkdir()
        invoke("init", network, "--width", 0.05, "--num-classes", 2, "-o", tmp_path / name / "init.safetensors")
    (tmp_path / "broken").write_bytes(b"x")
    files = [tmp_path / name / "init.safetensors" for name in "abc"]
    assert (
        network_names([*files, resnet, tmp_path / "broken", "-", "https://example.invalid/x"]) == "cbr_tiny, resnet18"
    )
    assert networks_of_runs([tmp_path / name for name in ("missing", "b", "a")]) == "resnet18, cbr_tiny"


@pytest.mark.parametrize("command", ["filters", "histogram"])
def test_a_pipe_is_read_once(command, resnet, shell, tmp_path):
    """By what draws it: a named pipe that is opened again waits for a writer."""
    line = f"mkfifo p; cat {resnet} > p & wsurgery {command} p -o named.png && wsurgery {command} <(cat {resnet}) -o other.png"
    done = shell(f"timeout 100 bash -c '{line}'", tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "named.png").exists()
    assert (tmp_path / "other.png").exists()


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["run.safetensors", "a/b/c/d.safetensors"], ["run", "b/c/d"]),
        (["lr-0.1", "lr-0.01"], ["lr-0.1", "lr-0.01"]),
        (["e1/runs/bce/1", "e2/runs/bce/1"], ["e1/runs/bce/1", "e2/runs/bce/1"]),
        (
            ["x/resnet50.a1_in1k.safetensors", "x/resnet50.tv_in1k.safetensors"],
            ["x/resnet50.a1_in1k", "x/resnet50.tv_in1k"],
        ),
        (["same", "same"], ["same", "same"]),
    ],
)
def test_labels_tell_checkpoints_apart(given, shown):
    assert labels_of(given) == shown


def test_the_folder_that_one_stands_in_has_its_name(resnet, invoke, tmp_path, monkeypatch):
    (tmp_path / "net").mkdir()
    shutil.copy(resnet, tmp_path / "net" / "model.safetensors")
    monkeypatch.chdir(tmp_path / "net")
    assert labels_of(["."]) == ["net"]
    invoke("histogram", ".", "-o", tmp_path / "h.svg")
    assert "net" in (tmp_path / "h.svg").read_text()
    invoke("diff", ".", ".", "--plot", tmp_path / "d.svg")
