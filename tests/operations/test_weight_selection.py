"""`init --from`: against the authors' definition, written with torch's index_select."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import wsurgery
from tests.commands.test_small_edits import history
from wsurgery.checkpoint import open_checkpoint
from wsurgery.checkpoint.writer import write_checkpoint
from wsurgery.operations.weight_selection import evenly_spaced


def selected(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    for axis, count in enumerate(shape):
        size = x.shape[axis]
        if size % count == 0:
            indices = torch.arange(count) * (size // count)
        else:
            indices = torch.linspace(0, size - 1, count, dtype=torch.float64).round().long()
        x = x.index_select(axis, indices)
    return x


@pytest.fixture
def larger(invoke, tmp_path):
    invoke("init", "resnet34", "--width", 0.25, "--seed", 3, "--no-zero-init-last", "-o", tmp_path / "init")
    path = tmp_path / "larger.safetensors"
    invoke("add-noise", tmp_path / "init", "--std", 0.1, "-o", path)
    return path


@pytest.mark.parametrize(("size", "count"), [(8, 4), (9, 4), (7, 7), (5, 1), (12, 5), (1, 1)])
def test_indices_are_spaced_evenly_from_the_first_on(size, count):
    found = evenly_spaced(size, count)
    assert found[0] == 0
    assert found[-1] <= size - 1
    assert count == 1 or np.ptp(np.diff(found)) <= 1
    assert len(set(found)) == count


@pytest.mark.parametrize("width", [0.25, 0.125, 0.1])
def test_each_tensor_is_selected_from_that_of_its_name_and_the_head_is_drawn(width, larger, invoke, tmp_path):
    given = ["init", "resnet18", "--width", width, "--num-classes", 4, "--seed", 5]
    done = invoke(*given, "--from", larger, "-o", tmp_path / "y")
    invoke(*given, "-o", tmp_path / "drawn")
    x, y, drawn = (load_file(path) for path in (larger, tmp_path / "y", tmp_path / "drawn"))
    assert list(y) == list(drawn)
    for name, value in y.items():
        assert value.equal(drawn[name] if name.startswith("fc.") else selected(x[name], tuple(value.shape))), name
    assert f"{len(y) - 2} of {len(y)} tensors are selected" in done.stderr
    made = history(tmp_path / "y")
    assert made["architecture"] == history(tmp_path / "drawn")["architecture"]
    assert [record["command"] for record in made["log"]] == ["init"]


def test_file_pipe_threads_python_log_and_replay_agree(larger, invoke, shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "wsurgery init resnet18 --width 0.125 --num-classes 4 --seed 5"
    done = shell(
        f"{words} --from larger.safetensors --threads 1 > one; {words} --from larger.safetensors --threads 8 > many;"
        f"{words} --from <(wsurgery scale larger.safetensors --by 2) > piped; wsurgery replay one && wsurgery replay piped",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "one").read_bytes() == (tmp_path / "many").read_bytes()
    for name, source in (("one", "larger.safetensors"), ("piped", wsurgery.open("larger.safetensors").scale(by=2))):
        made = wsurgery.init("resnet18", width=0.125, num_classes=4, from_=source, seed=5)
        made.write(f"python-{name}")
        assert (tmp_path / f"python-{name}").read_bytes() == (tmp_path / name).read_bytes()
    again = shell(f"{invoke('log', 'piped').stdout.strip()} > again", tmp_path)
    assert again.returncode == 0, again.stderr.decode()
    assert (tmp_path / "again").read_bytes() == (tmp_path / "piped").read_bytes()


def test_a_network_of_another_library_and_what_has_no_counterpart(larger, invoke, tmp_path):
    invoke("drop", larger, "--only", "layer2.1.*", "-o", tmp_path / "part")
    invoke("rename", "^", "module.", tmp_path / "part", "-o", tmp_path / "wrapped")
    invoke("cast", tmp_path / "wrapped", "--to", "bf16", "-o", tmp_path / "half")
    done = invoke("init", "resnet18", "--width", 0.125, "--seed", 5, "--from", tmp_path / "half", "-o", tmp_path / "y")
    assert "layer2.1.conv1.weight (and 11 more below the head) is not in" in done.stderr
    y = load_file(tmp_path / "y")
    assert {x.dtype for x in y.values()} == {torch.float32, torch.int64}
    x = load_file(larger)["layer1.0.conv1.weight"].bfloat16().float()
    assert y["layer1.0.conv1.weight"].equal(selected(x, tuple(y["layer1.0.conv1.weight"].shape)))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["resnet18"], "layer1.0.conv1.weight is (64, 64, 3, 3) here and (16, 64, 3, 3) in"),
        (["resnet50", "--width", 0.1], "--from takes a larger network of the same family"),
        (["cbr_tiny", "--width", 0.05], "has no tensor of this network's names, such as block1.conv.weight"),
    ],
)
def test_what_is_no_larger_network_of_the_family_is_refused(words, said, larger, invoke, tmp_path):
    done = invoke("init", *words, "--from", larger, "-o", tmp_path / "y", check=False)
    assert done.exit_code == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "y").exists()


def test_nothing_is_selected_from_packed_elements(larger, invoke, tmp_path):
    packed = "layer1.0.conv1.weight"
    with open_checkpoint(larger) as checkpoint:
        tensors = [
            (replace(tensor, dtype="F4"), bytes(tensor.elements // 2))
            if tensor.name == packed
            else (tensor, bytes(checkpoint.read(tensor)))
            for tensor in checkpoint.tensors.values()
        ]
        write_checkpoint(tmp_path / "packed", tensors, checkpoint.header.metadata)
    done = invoke(
        "init", "resnet18", "--width", 0.125, "--from", tmp_path / "packed", "-o", tmp_path / "y", check=False
    )
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert f"packed: {packed}: F4 elements are smaller than a byte" in done.stderr
    assert not (tmp_path / "y").exists()
